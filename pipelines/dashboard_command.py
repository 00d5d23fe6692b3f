"""`sagascope dashboard`: the live numbers over HTTP."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from typing import Annotated
from urllib.parse import urlencode

import typer
from rich.markup import escape

from pipelines.terminal import make_console
from warehouse.settings import Settings

PORT = 8050

console = make_console()


def dashboard(
    *,
    host: Annotated[
        str, typer.Option(help="Where it listens; beyond this machine only with a token, or behind a proxy.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = PORT,
    token: Annotated[
        str | None,
        typer.Option(
            help="What viewers have to know; better in SAGASCOPE_DASHBOARD_TOKEN, where `ps` does not show it."
        ),
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy in front asks who it is; nobody is asked here.")
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Serve what sagas do now: live numbers, running sagas, reports and metrics over HTTP. Ctrl-C ends it.

    It reads the tables, never the topic; where there are none yet, it waits for them.
    """
    from pipelines.dashboard.access import Access  # noqa: PLC0415 - so that --help is there at once
    from pipelines.dashboard.server import serve  # noqa: PLC0415

    settings = Settings.from_environment(os.environ)
    access = Access(host=host, token=settings.dashboard_token if token is None else token, behind_proxy=behind_proxy)

    if with_parent:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()

    def ready(address: str) -> None:
        console.print(f"Dashboard at [bold]{address}[/], API at {address}/docs   Ctrl-C ends it", highlight=False)
        if open_browser:
            webbrowser.open(f"{address}/?{urlencode({'token': access.token})}" if access.token else address)

    serve(settings, access, port, lambda line: console.print(escape(line), style="yellow", highlight=False), ready)
    sys.stdout.flush()
    # All is closed; to take the interpreter apart would take longer than all that, on a busy machine more than a second.
    os._exit(0)


def _stop_at_end_of_input() -> None:
    """Standard input ends when whoever started this process is gone."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
