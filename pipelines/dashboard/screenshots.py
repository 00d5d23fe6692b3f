"""All pictures of the dashboard, made anew: `python -m pipelines.dashboard.screenshots docs/images`.

A week of real sagas and an hour that ends now go into tables of their own; the real server shows them to Debian's Chromium.
Takes about two minutes. Needs the group `dev`, and `apt install chromium`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.request import urlopen

import typer
from rich.console import Console

from pipelines import seed
from pipelines.dashboard.replay import Replay
from pipelines.ports import free_port
from warehouse import history
from warehouse.settings import CHECKOUT, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

CHROMIUM = "/usr/bin/chromium"
DESKTOP, PHONE = (1440, 960), (390, 844)
AHEAD = timedelta(minutes=10)
PATIENCE_MS = 60_000

console = Console()


class Picture(NamedTuple):
    """A page as it is to be seen."""

    name: str
    path: str
    size: tuple[int, int] = DESKTOP
    theme: str = "light"
    is_whole: bool = False
    """Down to its end, not just what fits."""


def pictures(saga: str, undone: str) -> list[Picture]:
    """Each page, on a desktop and on a phone; the live one in the dark, too.

    Args:
        saga: The id of a saga to draw.
        undone: A kind of saga with a graph to draw.
    """
    pages = {
        "live": "/",
        "history": "/history",
        "saga": f"/sagas/{saga}",
        "flow": f"/flow?window=1h&saga={undone}",
        "system": "/system",
    }
    return [
        *(Picture(name, path, is_whole=name == "history") for name, path in pages.items()),
        *(Picture(f"{name}-dark", pages[name], theme="dark") for name in ("live", "flow", "saga")),
        *(Picture(f"{name}-phone", path, PHONE) for name, path in pages.items()),
    ]


def main(
    folder: Annotated[Path, typer.Argument(help="Where the pictures go.")],
    only: Annotated[str, typer.Option(help="Only pictures whose name has it.")] = "",
    chromium: Annotated[str, typer.Option(help="The browser.")] = CHROMIUM,
) -> None:
    """Make the pictures."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sagascope-") as home:
        settings = Settings(home=f"{home}/tables")
        seed.seed(settings, datetime.now(UTC))
        replay = Replay(settings, datetime.now(UTC), rate=2, ahead=AHEAD)
        replay.go_on(datetime.now(UTC))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            with _served(Settings(home=f"{home}/none")) as address:
                _take(browser, address, Picture("empty", "/"), folder, only)
            with _going_on(replay), _served(settings) as address:
                for picture in pictures(_saga_to_draw(settings), "order-processing"):
                    _take(browser, address, picture, folder, only)
            browser.close()


def _take(browser: Browser, address: str, picture: Picture, folder: Path, only: str) -> None:
    if only not in picture.name:
        return
    width, height = picture.size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if picture.theme == "dark" else "light",
        device_scale_factor=2 if picture.size == PHONE else 1,
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(address + picture.path)
    _await_numbers(page)
    page.wait_for_timeout(1_500)  # charts are drawn once a second
    page.screenshot(path=str(folder / f"dashboard-{picture.name}.png"), full_page=picture.is_whole)
    context.close()
    console.print(f"dashboard-{picture.name}.png", highlight=False)


def _await_numbers(page: Page) -> None:
    page.locator(".pill:not([data-state=connecting])").wait_for(timeout=PATIENCE_MS)
    page.wait_for_function("!document.querySelector('[aria-busy=true]')", timeout=PATIENCE_MS)


@contextmanager
def _served(settings: Settings) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "pipelines", "dashboard", "--port", str(port)]
    environment = os.environ | {"SAGASCOPE_HOME": settings.home}
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            _await(f"{address}/healthz")
            yield address
        finally:
            server.terminate()


def _await(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urlopen(url, timeout=5).close()  # noqa: S310 - ours
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


@contextmanager
def _going_on(replay: Replay) -> Iterator[None]:
    """Meanwhile the sagas go on, a commit a second."""
    ending = threading.Event()

    def go_on() -> None:
        while not ending.wait(1.0):
            replay.go_on(datetime.now(UTC))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _saga_to_draw(settings: Settings) -> str:
    """One that was undone, with something left: it has most to show."""
    query: Any = """
        SELECT saga_id FROM saga_runs WHERE outcome = 'compensation_failed'
        ORDER BY len(steps_done) DESC, ended_at DESC, saga_id LIMIT 1
    """
    with history.open(settings, datetime.now(UTC) - timedelta(hours=1)) as tables:
        found = tables.sql(query).fetchall()
        return str(found[0][0]) if found else ""


if __name__ == "__main__":
    typer.run(main)
