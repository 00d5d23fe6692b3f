"""The dashboard's pages, on the same app as its API.

NiceGUI gives each page its frame and brings Vue and ECharts in its wheel: nothing is fetched from elsewhere.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from pipelines.dashboard import panels
from pipelines.dashboard.elements import (
    FlowView,
    Notice,
    RangeBar,
    ReportView,
    RunningTable,
    SagaView,
    SeriesChart,
    StepRanking,
    SystemView,
    Tiles,
    TopBar,
)
from warehouse import reports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from warehouse.settings import Settings

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


HISTORY = {
    "daily_trend": "Failure rate by day",
    "duration_percentiles": "How long sagas take",
    "failure_patterns": "Why sagas fail",
    "branches": "What becomes of failed sagas",
    "duration_heatmap": "When steps are slow",
    "before_after": "Two periods compared",
    "outliers": "Outliers",
    "variants": "The ways that sagas take",
    "compensations": "Compensations",
    "sla_compliance": "Targets",
}
"""The reports of the page, in order, and what stands above each."""
TRACE_PATTERN = re.compile(r"https?://[^\s{}]+\{trace_id\}[^\s{}]*")


class InvalidTracePatternError(ValueError):
    """Says what is wrong with the pattern of a trace's address."""


# What is seen until the scripts are there, in the place of the bar that follows.
FIRST = '<div id="first" aria-hidden="true"><b>Sagascope</b></div>'


def mount(app: FastAPI, settings: Settings) -> None:
    """Serve the pages from `/` on; what the app serves itself goes before. Once a process: NiceGUI has one app of its own.

    Args:
        app: Not started yet.
        settings: Where links to traces lead, and whether there are targets.

    Raises:
        InvalidTracePatternError: links to traces would lead nowhere.
    """
    if settings.trace_url and not TRACE_PATTERN.fullmatch(settings.trace_url):
        msg = f"SAGASCOPE_TRACE_URL is {settings.trace_url!r}; it takes an address with {{trace_id}} in it: https://traces.example/trace/{{trace_id}}"
        raise InvalidTracePatternError(msg)
    ui.add_head_html(f"{THEME}<style>{STYLE.read_text(encoding='utf-8')}</style>", shared=True)
    ui.add_body_html(FIRST, shared=True)
    ui.page("/", title="Live · Sagascope")(_live)
    ui.page("/history", title="History · Sagascope")(_history_page(has_targets=bool(settings.targets_file)))
    ui.page("/flow", title="Flow · Sagascope")(_flow)
    ui.page("/system", title="System · Sagascope")(_system)
    ui.page("/sagas/{identity:path}", title="Saga · Sagascope")(_saga_page(settings.trace_url))
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
    with _page("Live"):
        Notice()
        Tiles(panels.TILES)
        with ui.element("div").classes("charts"):
            SeriesChart(panels.ENDED)
            StepRanking(panels.SLOWEST)
            SeriesChart(panels.DURATIONS)
            StepRanking(panels.MOST_FAILING)
        RunningTable()


def _history_page(*, has_targets: bool) -> Callable[[], None]:
    shown = [(reports.load(name), heading) for name, heading in HISTORY.items()]
    shown = [(report, heading) for report, heading in shown if report.takes != "targets" or has_targets]

    def history() -> None:
        with _page("History"):
            with ui.element("div").classes("over"):
                RangeBar()
            with ui.element("div").classes("reports"):
                for report, heading in shown:
                    ReportView(report, heading)

    return history


def _flow() -> None:
    with _page("Flow"):
        FlowView()


def _system() -> None:
    with _page("System"):
        SystemView()


def _saga_page(trace_pattern: str) -> Callable[[str], None]:
    def saga(identity: str) -> None:
        with _page("Saga", is_titled=True):
            SagaView(identity, trace_pattern)

    return saga


@contextmanager
def _page(name: str, *, is_titled: bool = False) -> Iterator[None]:
    """The bar, and below it what is made within; with a title that is heard, where none is seen."""
    with ui.context.client.layout:
        TopBar(name).move(target_index=0)  # what NiceGUI makes of a page's own content is within <main>
    with ui.element("div").props('id="main" tabindex="-1"').classes("page"):
        if not is_titled:
            TextElement(tag="h1", text=name).classes("unseen")
        yield
