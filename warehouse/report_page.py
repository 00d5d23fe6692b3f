"""A report as one HTML file: a chart and the table. All that it needs is in it; it loads nothing from anywhere.

Names and messages come from services: none of them is markup, neither in the page nor to the chart, and the page's own
policy forbids every load, and every script but those in it.
"""

from __future__ import annotations

import html
import json
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from warehouse import charts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from warehouse.reports import Report

SITE = Path(__file__).parent / "site"
ROWS = 10_000
"""At most so many are in the table."""


def render(report: Report, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], about: Mapping[str, str]) -> str:
    """The page.

    Args:
        report: What was asked.
        columns: Of the rows.
        rows: What it told.
        about: What it was asked about, each with its name: the span, the sagas, when.
    """
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - takes its time

    figure, note = charts.draw(report.chart, [dict(zip(columns, row, strict=True)) for row in rows])
    drawn = any(len(trace["x"]) for trace in figure["data"])
    count = f"{len(rows):,} row{'' if len(rows) == 1 else 's'}"
    if len(rows) > ROWS:
        count = f"The first {ROWS:,} of {len(rows):,} rows; all of them: --format csv"
    numeric = [any(_is_number(row[at]) for row in rows[:ROWS]) for at in range(len(columns))]
    return Template((SITE / "report.html").read_text(encoding="utf-8")).substitute(
        name=_text(report.name),
        title=_text(report.name.replace("_", " ")),
        doc=re.sub(r"`(.+?)`", r"<code>\1</code>", _text(report.doc)),
        about="".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in about.items()),
        style=(SITE / "report.css").read_text(encoding="utf-8"),
        chart='<div id="chart"></div>' if drawn else '<p class="nothing">Nothing to draw.</p>',
        note=f"<p>{_text(note)}</p>" if note else "",
        head="".join(_cell("th", name, number=one) for name, one in zip(columns, numeric, strict=True)),
        rows="\n".join(
            f"<tr>{''.join(_cell('td', _shown(value), number=one) for value, one in zip(row, numeric, strict=True))}</tr>"
            for row in rows[:ROWS]
        ),
        count=_text(count),
        script=f"<script>{get_plotlyjs()}</script>\n<script>{_drawing(figure)}</script>" if drawn else "",
    )


def _drawing(figure: charts.Figure) -> str:
    """A script that draws it. `<` and `&` are written as escapes, so that nothing in it ends the script or begins a comment."""
    text = json.dumps(figure, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return f'const figure = {text}; Plotly.newPlot("chart", figure.data, figure.layout, figure.config);'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _cell(tag: str, text: str, *, number: bool) -> str:
    return f"<{tag}{' class=number' if number else ''}>{_text(text)}</{tag}>"


def _shown(value: object) -> str:
    """A value as the table has it; NULL is empty."""
    text = str(value)
    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = f"{value:%Y-%m-%d %H:%M:%S}"
        case int():
            text = f"{value:,}"
        case float():
            text = f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.4f}".rstrip("0").rstrip(".")
        case list():
            text = ", ".join(map(str, value))
    return text


def _text(text: str) -> str:
    return html.escape(text)
