"""Charts of reports, as Plotly takes them: plain dictionaries, made from the `Chart:` line of a report's SQL file."""

from __future__ import annotations

import html
import math
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from warehouse.reports import Chart

NAMES = 30
"""At most so many bars are drawn, or lines of a heatmap."""
POINTS = 5_000
"""At most so many points of lines or dots."""
LONGEST_NAME = 60
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#6b6b6b")
"""Those of Okabe and Ito, which the colour-blind tell apart, but for the yellow one, which is pale on white."""
MEANINGS = {
    "completed": "#009e73",
    "failed": "#d55e00",
    "unfinished": "#6b6b6b",
    "met": "#009e73",
    "not met": "#d55e00",
    "rolled_back": "#56b4e9",
    "failed_nothing_to_undo": "#0072b2",
    "rolled_back_partial": "#e69f00",
    "compensation_failed": "#d55e00",
    "partially_committed": "#cc79a7",
}
"""What has the same colour wherever it is drawn."""
SHARES = ("rate", "share", "within", "rate_before", "rate_after")
"""How columns end that hold a share, which is written in per cent."""

Row = dict[str, Any]
Figure = dict[str, Any]


def draw(chart: Chart, rows: Sequence[Row]) -> tuple[Figure, str]:
    """The figure, and what is to be said about it: that it does not show all, if so; else nothing.

    No name in it is markup, whatever it is: Plotly would else take `<b>` for bold.
    """
    match chart.kind:
        case "heatmap":
            traces, axes, note = _heatmap(chart, rows)
        case "line" | "scatter":
            traces, axes, note = _points(chart, rows)
        case _:
            traces, axes, note = _bars(chart, rows)
    layout: Figure = {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1c2733"},
        "colorway": COLOURS,
        "margin": {"l": 70, "r": 20, "t": 70, "b": 60},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "showlegend": sum("name" in trace for trace in traces) > 1,
        "height": 460,
    }
    for axis in ("xaxis", "yaxis"):
        axes[axis] = {"gridcolor": "#e6eaef", "zeroline": False, "automargin": True} | axes[axis]
    return {"data": traces, "layout": layout | axes, "config": {"displaylogo": False, "responsive": True}}, note


def _bars(chart: Chart, rows: Sequence[Row]) -> tuple[list[Figure], Figure, str]:
    """In the order of the rows: bars beside one another, or lying and in line."""
    lying = chart.kind == "ranking"
    naming, measures = (chart.y, chart.x) if lying else (chart.x, chart.y)
    name_axis, value_axis = ("y", "x") if lying else ("x", "y")
    names = list(dict.fromkeys(_name(row, naming) for row in rows))
    kept = names[:NAMES]
    series: dict[str, dict[str, float]] = {}
    for row in rows:
        name = _name(row, naming)
        for measure in measures:
            if name in kept and row[measure] is not None:
                its = series.setdefault(_series(chart, row, measure), {})
                value, known = _number(row[measure]), its.get(name, 0)
                # Of rows that share a name and a colour: counts add up, and of other numbers the largest is drawn.
                its[name] = max(value, known) if measure.endswith(("_ms", *SHARES)) else value + known
    traces = [
        {
            "type": "bar",
            "name": _label(key),
            name_axis: list(map(_escaped, its)),
            value_axis: list(its.values()),
            "orientation": "h" if lying else "v",
            "marker": {"color": MEANINGS[key]} if key in MEANINGS else {},
        }
        for key, its in series.items()
    ]
    layout: Figure = {
        "barmode": "stack" if lying else "group",
        "bargap": 0.3,
        f"{value_axis}axis": _measured(measures, [value for its in series.values() for value in its.values()]),
        f"{name_axis}axis": _named(kept) | {"categoryorder": "array", "categoryarray": list(map(_escaped, kept))},
    }
    if lying:
        layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
        layout["height"] = 150 + 24 * max(len(kept), 4)
    return traces, layout, _first(len(kept), len(names))


def _points(chart: Chart, rows: Sequence[Row]) -> tuple[list[Figure], Figure, str]:
    """Lines over days, or a dot a row."""
    [x], [y] = chart.x, chart.y
    series: dict[str, tuple[list[object], list[float]]] = {}
    for row in rows[:POINTS]:
        if row[y] is not None:
            moments, values = series.setdefault(_series(chart, row, y), ([], []))
            moments.append(_moment(row[x]))
            values.append(_number(row[y]))
    traces = [
        {"type": "scatter", "mode": "lines+markers" if chart.kind == "line" else "markers", "name": _label(key)}
        | {"x": moments, "y": values}
        for key, (moments, values) in series.items()
    ]
    time: Figure = {"type": "date"}
    if chart.kind == "line":
        days = sorted({str(moment) for moments, _ in series.values() for moment in moments})
        if len(days) <= 14:  # else Plotly puts marks between the days
            time |= {"tickvals": days}
        time |= {"tickformat": "%d %b", "hoverformat": "%d %b %Y"}
    values = [value for _, its in series.values() for value in its]
    return traces, {"xaxis": time, "yaxis": _measured(chart.y, values)}, _first(len(rows[:POINTS]), len(rows))


def _heatmap(chart: Chart, rows: Sequence[Row]) -> tuple[list[Figure], Figure, str]:
    [x], z = chart.x, str(chart.z)
    names = list(dict.fromkeys(_name(row, chart.y) for row in rows))
    kept = names[:NAMES]
    columns = sorted({row[x] for row in rows})
    cells = {(_name(row, chart.y), row[x]): row[z] for row in rows}
    values = [[_number_or_none(cells.get((name, column))) for column in columns] for name in kept]
    known = [value for line in values for value in line if value is not None]
    farthest = max((abs(math.log2(value)) for value in known if value > 0), default=1.0) or 1.0
    trace = {
        "type": "heatmap",
        "x": columns,
        "y": list(map(_escaped, kept)),
        # By its logarithm: half is as far from usual as double.
        "z": [[math.log2(value) if value else None for value in line] for line in values],
        "text": [["" if value is None else f"{value:.2f}" for value in line] for line in values],
        "hovertemplate": "%{y}, " + _words(x) + " %{x}: %{text}<extra></extra>",
        "zmid": 0,
        "zmin": -farthest,
        "zmax": farthest,
        "colorscale": [[0, "#0072b2"], [0.5, "#f7f7f7"], [1, "#d55e00"]],
        "colorbar": {
            "title": {"text": _words(z), "side": "right"},
            "tickvals": [-farthest, 0, farthest],
            "ticktext": [f"{2**-farthest:.2f}", "1", f"{2**farthest:.2f}"],
            "thickness": 14,
        },
        "xgap": 1,
        "ygap": 1,
    }
    axes: Figure = {
        "xaxis": {"title": {"text": _words(x)}, "dtick": 1, "showgrid": False},
        "yaxis": _named(kept) | {"autorange": "reversed", "showgrid": False},
        "height": 160 + 22 * max(len(kept), 4),
    }
    return [trace], axes, _first(len(kept), len(names))


def _series(chart: Chart, row: Row, measure: str) -> str:
    """What a value has a colour with."""
    value = row[chart.color] if chart.color else measure
    if isinstance(value, bool) and chart.color:
        noun = chart.color.removeprefix("is_")
        return noun if value else f"not {noun}"
    return _words(measure) if not chart.color and measure not in MEANINGS else str(value)


def _named(names: list[str]) -> Figure:
    """An axis of names: long ones are cut where they are shown, and whole where they are pointed at."""
    return {"type": "category", "tickvals": list(map(_escaped, names)), "ticktext": list(map(_label, names))}


def _measured(measures: Iterable[str], values: list[float]) -> Figure:
    """An axis of numbers."""
    names = list(measures)
    axis: Figure = {
        "title": {"text": _words(names[0]) if len(names) == 1 else "", "standoff": 12},
        "rangemode": "tozero",
    }
    if all(name.endswith(SHARES) for name in names):
        axis["tickformat"] = ".0%" if max(values, default=1.0) > 0.05 else ".1%"
    elif all(name.endswith("_ms") for name in names):
        axis["title"]["text"] = axis["title"]["text"] or "ms"
    return axis


def _first(shown: int, of: int) -> str:
    return f"The chart shows the first {shown:,} of {of:,}." if shown < of else ""


def _name(row: Row, columns: Iterable[str]) -> str:
    return " · ".join(str(row[column]) for column in columns if row[column] is not None) or "-"


def _label(text: str) -> str:
    """The text to be shown as it is, cut where it is long."""
    return _escaped(text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…")


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _words(column: str) -> str:
    return column.removesuffix("_ms").replace("_", " ") + (", ms" if column.endswith("_ms") else "")


def _moment(value: object) -> object:
    return value.isoformat() if isinstance(value, date | datetime) else value


def _number(value: float | Decimal) -> float:
    return float(value) if isinstance(value, Decimal) else value


def _number_or_none(value: float | Decimal | None) -> float | None:
    return None if value is None else float(value)
