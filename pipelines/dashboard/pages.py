"""The dashboard's pages, on the same app as its API.

NiceGUI gives each page its frame and brings Vue and ECharts in its wheel: nothing is fetched from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from pipelines.dashboard import panels
from pipelines.dashboard.elements import Notice, RunningTable, SeriesChart, StepRanking, Tiles, TopBar

if TYPE_CHECKING:
    from fastapi import FastAPI

STYLE = Path(__file__).parent / "browser" / "sagascope.css"
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20"><path d="M3 14.5 8 10l3.5 3L17 5.5" fill="none"'
    ' stroke="#0072b2" stroke-width="2.5"/><circle cx="17" cy="5.5" r="2.5" fill="#009e73"/></svg>'
)
# Before anything is drawn: a page that is dark must not flash.
THEME = """
<script>{
  const chosen = localStorage.getItem("sagascope-theme") ?? "auto";
  document.documentElement.dataset.theme =
    chosen === "auto" ? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light") : chosen;
}</script>
"""


def mount(app: FastAPI) -> None:
    """Serve the pages from `/` on; what the app serves itself goes before. Once a process: NiceGUI has one app of its own.

    Args:
        app: Not started yet.
    """
    ui.add_head_html(f"{THEME}<style>{STYLE.read_text(encoding='utf-8')}</style>", shared=True)
    ui.page("/", title="Live · Sagascope")(_live)
    ui.run_with(
        app,
        title="Sagascope",
        favicon=ICON,
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )


def _live() -> None:
    TopBar("Live")
    with _main("live"):
        TextElement(tag="h1", text="Live").classes("unseen")
        Notice()
        Tiles(panels.TILES)
        with ui.element("div").classes("charts"):
            SeriesChart(panels.ENDED)
            StepRanking(panels.SLOWEST)
            SeriesChart(panels.DURATIONS)
            StepRanking(panels.MOST_FAILING)
        RunningTable()


def _main(page: str) -> ui.element:
    return ui.element("div").classes(f"page {page}").props('id="main" tabindex="-1"')
