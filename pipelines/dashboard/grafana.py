"""The Grafana dashboard, made of the same panels as the pages: `python -m pipelines.dashboard.grafana > dashboard.json`.

It asks Prometheus, which scrapes `/metrics` of `sagascope dashboard`. Its variables are the data source, the window and the
kind of saga; an empty kind is all of them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from pipelines.dashboard.panels import DURATIONS, ENDED, MOST_FAILING, SLOWEST, TILES, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.dashboard.panels import Chart, Query, Ranking, Tile

UNITS = {Unit.COUNT: "short", Unit.PER_MINUTE: "opm", Unit.RATIO: "percentunit", Unit.MILLISECONDS: "s"}
"""As Grafana names them; metrics of durations are in seconds."""
COLORS = {
    "started": "#0072b2",
    "completed": "#009e73",
    "completed-soft": "#009e73",
    "failed": "#d55e00",
    "p50": "#56b4e9",
    "p95": "#0072b2",
    "p99": "#cc79a7",
    "plain": "#6b6b6b",
}
"""Those of Okabe and Ito, by the names of the style sheet."""
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH = 24
"""Of Grafana's grid."""


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    tiles = [_tile(tile, {"x": n * 4, "y": 0, "w": 4, "h": 4}) for n, tile in enumerate(TILES)]
    charts = [_chart(chart, {"x": 0, "y": 4 + n * 8, "w": 16, "h": 8}) for n, chart in enumerate((ENDED, DURATIONS))]
    rankings = [
        _ranking(ranking, {"x": 16, "y": 4 + n * 8, "w": 8, "h": 8})
        for n, ranking in enumerate((SLOWEST, MOST_FAILING))
    ]
    panels = [panel | {"id": n} for n, panel in enumerate([*tiles, *charts, *rankings], 1)]
    return {
        "uid": "sagascope",
        "title": "Sagascope",
        "description": "What sagas do, while they do it",
        "tags": ["sagascope"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source(), _window(), _saga()]},
        "panels": panels,
    }


def _tile(tile: Tile, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = (
        [{"color": COLORS["completed"], "value": None}] if tile.thresholds else [{"color": "text", "value": None}]
    )
    steps += [
        {"color": color, "value": value} for color, value in zip(("#e69f00", "#d55e00"), tile.thresholds, strict=False)
    ]
    return _panel("stat", tile, tile.queries, place) | {
        "fieldConfig": {
            "defaults": {"unit": UNITS[tile.unit], "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"graphMode": "area", "colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}},
    }


def _chart(chart: Chart, place: dict[str, int]) -> dict[str, Any]:
    overrides = [
        {
            "matcher": {"id": "byName", "options": line.label},
            "properties": [
                {"id": "color", "value": {"mode": "fixed", "fixedColor": COLORS[line.color]}},
                {
                    "id": "custom.lineStyle",
                    "value": {"fill": "dash", "dash": list(line.dash)} if line.dash else {"fill": "solid"},
                },
            ],
        }
        for line in chart.lines
    ]
    queries = [query for line in chart.lines for query in line.queries]
    return _panel("timeseries", chart, queries, place) | {
        "fieldConfig": {
            # A rate of a window is per minute, whatever is counted in it on the page
            "defaults": {"unit": UNITS[Unit.PER_MINUTE if chart.unit is Unit.COUNT else chart.unit], "min": 0},
            "overrides": overrides,
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
    }


def _ranking(ranking: Ranking, place: dict[str, int]) -> dict[str, Any]:
    return _panel("bargauge", ranking, ranking.queries, place, instant=True) | {
        "fieldConfig": {
            "defaults": {
                "unit": UNITS[ranking.unit],
                "min": 0,
                "color": {"mode": "fixed", "fixedColor": COLORS[ranking.tone]},
            },
            "overrides": [],
        },
        "options": {"orientation": "horizontal", "displayMode": "basic", "reduceOptions": {"calcs": ["lastNotNull"]}},
    }


def _panel(
    kind: str,
    shown: Tile | Chart | Ranking,
    queries: Sequence[Query],
    place: dict[str, int],
    *,
    instant: bool = False,
) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + n),
            "datasource": SOURCE,
            "expr": query.expression,
            "legendFormat": query.legend or shown.title,
            "instant": instant,
            "range": not instant,
        }
        for n, query in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": shown.title,
        "description": shown.help,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
    }


def _source() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _window() -> dict[str, Any]:
    names = ["1m", "5m", "15m", "1h"]
    options = [{"text": name, "value": name, "selected": name == "5m"} for name in names]
    return {
        "name": "window",
        "label": "Window",
        "type": "custom",
        "query": ",".join(names),
        "options": options,
        "current": {"text": "5m", "value": "5m"},
    }


def _saga() -> dict[str, Any]:
    query = "label_values(sagascope_live_sagas_started_per_minute, saga)"
    return {
        "name": "saga",
        "label": "Saga (empty: all)",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "saga"},
        "refresh": 2,
        "sort": 1,
        "current": {"text": "", "value": ""},
    }


def main() -> None:
    """Print it."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(dashboard()), indent=2).decode() + "\n")


if __name__ == "__main__":
    main()
