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

COMPONENTS = Path(__file__).parent / "components"
BROWSER = Path(__file__).parent / "browser"


class TopBar(Element, component=COMPONENTS / "top_bar.js", esm={"sagascope": str(BROWSER)}):
    """Where one is, what is asked about, how fresh the numbers are."""

    def __init__(self, page: str) -> None:
        """Args:
        page: The name of the page that it stands on.
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


def _plain(panel: object) -> Any:
    return msgspec.to_builtins(panel)
