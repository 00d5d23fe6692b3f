"""A real browser for the tests: Chromium without a window, which loads a page and says what became of it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from tests.servers.server import require_debian

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 120


class Loaded(NamedTuple):
    """What became of a page."""

    dom: str
    """The document, once its scripts have run."""
    requests: list[str]
    """The addresses that the page asked for; not those that the browser asks of its maker."""
    console: list[str]
    """What the page complained of: errors of scripts, and loads that its policy forbade."""


def load(url: str, folder: Path, *options: str, seconds: int = 5) -> Loaded:
    """Open the page in a browser of its own, whose state is in the folder.

    Its time is virtual: the seconds pass as soon as nothing is left to be done.
    """
    command = require_debian("chromium", "chromium")
    log = folder / "net.json"
    arguments = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
        *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--no-first-run"),
        *("--disable-sync", "--disable-default-apps", "--disable-features=OptimizationHints,MediaRouter"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what the browser wants for itself, it does not get
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        "--enable-logging=stderr",
        f"--virtual-time-budget={seconds * 1000}",
    ]
    done = subprocess.run(
        [command, *arguments, *options, "--dump-dom", url], capture_output=True, check=True, timeout=SECONDS
    )
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return Loaded(done.stdout.decode(), _requests(log), console)


def _requests(log: Path) -> list[str]:
    """What the network's own log tells of requests that were begun."""
    told = json.loads(log.read_text(encoding="utf-8"))
    begin = told["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    begun = [event.get("params", {}) for event in told["events"] if event["type"] == begin]
    # A page's request has an origin as its initiator: of a file's it is `null`.
    return sorted({one["url"] for one in begun if one.get("initiator", "not an origin") != "not an origin"})
