"""The fan-out of a load, as people see it: a line while it runs, a table at the end."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import msgspec
from rich.text import Text

from pipelines.terminal import plain_table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

_ASK_SECONDS = 0.5


class FanOutView:
    """What a load's fan-out says of itself at `/healthz` of a port of the loopback interface."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def line(self) -> Text:
        """Each listener with its delivered events; what is wrong with it in red."""
        try:
            with self._ask(f"{self.address}/healthz", timeout=_ASK_SECONDS) as answer:
                listeners: dict[str, dict[str, Any]] = json.load(answer)["listeners"]
        except (OSError, ValueError):
            return Text("fan-out: not there yet", style="dim")
        line = Text("fan-out  ", style="dim")
        for name, facts in listeners.items():
            wrong = facts["state"] not in ("ok", "failing") or facts["dead_lettered"] or facts["dropped"]
            line.append(f"{_short(name)} ", style="red" if wrong else "")
            line.append(f"{facts['delivered']:,}", style="bold red" if wrong else "bold")
            if wrong:
                line.append(f" ({facts['state']}, {facts['dead_lettered'] + facts['dropped']:,} given up)", style="red")
            line.append("  ")
        line.append(f"{self.address}/metrics", style="dim")
        return line


def print_sinks(console: Console, report: Path) -> None:
    """What became of the events at each listener of the load, by its report; nothing where there is none."""
    try:
        sinks: list[dict[str, Any]] = msgspec.json.decode(report.read_bytes()).get("sinks", [])
    except (OSError, msgspec.DecodeError):
        return
    if not sinks:
        return
    console.print("\n[bold]Fan-out[/]: every listener was told of every event")
    table = plain_table()
    table.add_column("listener", no_wrap=True)
    table.add_column("where", no_wrap=True, overflow="ellipsis", max_width=44)
    for name in ("accepted", "delivered", "dead letters", "dropped", "retries"):
        table.add_column(name, justify="right", no_wrap=True)
    for sink in sinks:
        if "absent" in sink:
            continue
        numbers = [f"{sink[key]:,}" for key in ("accepted", "delivered", "dead_lettered", "dropped", "retries")]
        lost = sink["dead_lettered"] + sink["dropped"]
        table.add_row(_short(sink["listener"]), sink["where"], *numbers, style="red" if lost else "")
    console.print(table)
    for sink in sinks:
        if "absent" in sink:
            console.print(f"not there: {sink['absent']}", style="dim", highlight=False, markup=False)


def _short(name: str) -> str:
    """RedisCacheListener is Redis cache's to its readers."""
    for ending in ("Listener", "Saga", "Analytics"):
        name = name.removesuffix(ending)
    return name
