"""The pages' parts: each a NiceGUI element with a JavaScript file that draws it.

They get what they show from the one stream of the page (`browser/feed.js`), not from NiceGUI's updates, which are made for
each viewer apart. Nothing of an event is ever markup: Vue sets text.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from nicegui.element import Element
from nicegui.elements import echart  # noqa: F401 - registers the ECharts of the wheel, which browser/charts.js imports

if TYPE_CHECKING:
    from pipelines.dashboard.panels import Chart, Ranking, Tile
    from warehouse.reports import Report

COMPONENTS = Path(__file__).parent / "components"
BROWSER = Path(__file__).parent / "browser"


class TopBar(Element, component=COMPONENTS / "top_bar.js", esm={"sagascope": str(BROWSER)}):
    """Where one is, what is asked about, how fresh the numbers are."""

    def __init__(self, page: str) -> None:
        """The bar of a page.

        Args:
            page: Its name.
        """
        super().__init__()
        self._props["page"] = page


class Notice(Element, component=COMPONENTS / "notice.js"):
    """That numbers are old, or that there are none, or can't be read; else nothing."""


class Tiles(Element, component=COMPONENTS / "tiles.js"):
    """The row of key figures."""

    def __init__(self, panels: tuple[Tile, ...]) -> None:
        super().__init__()
        self._props["panels"] = _plain(panels)


class SeriesChart(Element, component=COMPONENTS / "series_chart.js"):
    """Series of the last hour."""

    def __init__(self, panel: Chart) -> None:
        super().__init__()
        self._props["panel"] = _plain(panel)


class StepRanking(Element, component=COMPONENTS / "ranking.js"):
    """Steps in order of a value."""

    def __init__(self, panel: Ranking) -> None:
        super().__init__()
        self._props["panel"] = _plain(panel)


class RunningTable(Element, component=COMPONENTS / "running_table.js"):
    """The sagas that run now."""


class SagaView(Element, component=COMPONENTS / "saga_view.js"):
    """One run of a saga, whole."""

    def __init__(self, identity: str, trace_pattern: str) -> None:
        """The run that has this id, or the newest of that saga.

        Args:
            identity: A saga's id, or a run's.
            trace_pattern: The address of a trace, with `{trace_id}` in it; empty: none.
        """
        super().__init__()
        self._props["identity"] = identity
        self._props["trace_pattern"] = trace_pattern


class RangeBar(Element, component=COMPONENTS / "range_bar.js"):
    """Over how long a page looks back."""


class ReportView(Element, component=COMPONENTS / "report_view.js"):
    """A named report: its chart and its rows."""

    def __init__(self, report: Report, heading: str = "") -> None:
        """Asked for over the range that the page's address says.

        Args:
            report: Which one.
            heading: What stands above it; else its name.
        """
        super().__init__()
        chart = report.chart
        self._props["report"] = {
            "name": report.name,
            "heading": heading or report.name.replace("_", " ").capitalize(),
            "title": report.title,
            "doc": report.doc,
            "takes": report.takes,
            "chart": {"kind": chart.kind, "x": chart.x, "y": chart.y, "color": chart.color, "z": chart.z},
        }


class FlowView(Element, component=COMPONENTS / "flow_view.js"):
    """A kind of saga as a graph."""


class SystemView(Element, component=COMPONENTS / "system_view.js"):
    """How Sagascope itself is."""


def _plain(panel: object) -> Any:
    return msgspec.to_builtins(panel)
