"""The page of a report: drawn in a real browser, loading nothing, whatever names and messages are in it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.chromium import load
from tests.warehouse.test_reports import duck as duck  # noqa: PLC0414 - a fixture
from tests.warehouse.test_reports import rows_of
from warehouse import charts, report_page, reports

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

HOSTILE = """</script><script>document.title='owned'</script><img src="http://127.0.0.1:9/x.png" onerror="alert(1)">&lt;<!--"""
COLUMNS = ("error_type", "pattern", "sagas", "share", "saga_names")


def page(tmp_path: Path, name: str, columns: Any, rows: list[tuple[Any, ...]], **about: str) -> Path:
    """The report's page as a file."""
    file = tmp_path / f"{name}.html"
    file.write_text(report_page.render(reports.load(name), columns, rows, about), encoding="utf-8")
    return file


def text_of(dom: str) -> str:
    """What a reader of the page sees, without its scripts."""
    return re.sub(r"<script>.*?</script>", "", dom, flags=re.DOTALL)


def test_the_browser_tells_of_what_a_page_loads(tmp_path: Path) -> None:
    """Else a test that finds no request would prove nothing."""
    file = tmp_path / "loads.html"
    file.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing()</script>', encoding="utf-8")
    loaded = load(file.as_uri(), tmp_path)
    assert loaded.requests == ["http://127.0.0.1:9/x.png"]
    assert any("nothing is not defined" in line for line in loaded.console)


def test_a_page_is_drawn_and_loads_nothing(tmp_path: Path, duck: duckdb.DuckDBPyConnection) -> None:
    """Each kind of chart, one page of all: as many marks as there are rows to be drawn, no request, no complaint."""
    drawn = {"failure_rate": "bars", "variants": "bars", "daily_trend": "scatter", "outliers": "scatter"}
    for name, trace in {**drawn, "duration_heatmap": "hm"}.items():
        rows = rows_of(duck, name)
        file = page(tmp_path, name, list(rows[0]), [tuple(row.values()) for row in rows], sagas="*")
        loaded = load(file.as_uri(), tmp_path)
        assert (loaded.requests, loaded.console) == ([], []), name
        shown = text_of(loaded.dom)
        assert 'class="main-svg"' in shown, name
        assert f'class="{trace}"' in shown or f"trace {trace}" in shown, name
        if trace == "bars":
            assert shown.count('class="point"') == len(rows), name
        assert shown.count("<tr>") == len(rows) + 1, name


def test_names_and_messages_are_no_markup(tmp_path: Path) -> None:
    """A service that calls its saga a script gets its name shown, in the chart and in the table; nothing runs or loads."""
    rows = [(HOSTILE, HOSTILE, 3, 0.5, [HOSTILE]), ("<b>bold</b>", "a" * 9_000, 2, 0.5, ["<i>"])]
    loaded = load(page(tmp_path, "failure_patterns", COLUMNS, rows, **{HOSTILE: HOSTILE}).as_uri(), tmp_path)
    assert (loaded.requests, loaded.console) == ([], [])
    assert "<title>Sagascope: failure_patterns</title>" in loaded.dom
    shown = text_of(loaded.dom)
    assert "owned" in shown
    assert "<img" not in shown
    assert not re.search(r"<(b|i)>", shown)
    assert shown.count('class="point"') == 2
    assert "&lt;b&gt;bold" in shown


def test_a_page_without_rows_says_so(tmp_path: Path) -> None:
    """No chart, no script, and no broken one either."""
    loaded = load(page(tmp_path, "failure_patterns", COLUMNS, []).as_uri(), tmp_path)
    assert "Nothing to draw" in loaded.dom
    assert "0 rows" in loaded.dom
    assert "<script" not in loaded.dom
    assert loaded.console == []


def test_a_page_of_many_rows_is_bounded(tmp_path: Path) -> None:
    """10,000 rows are in the table; more are counted, and the chart says that it shows the first of them."""
    rows: list[tuple[Any, ...]] = [(f"Error{number}", "x", 20_000 - number, 0.1, []) for number in range(10_001)]
    loaded = load(page(tmp_path, "failure_patterns", COLUMNS, rows).as_uri(), tmp_path)
    shown = text_of(loaded.dom)
    assert shown.count("<tr>") == 10_001
    assert "The first 10,000 of 10,001 rows" in shown
    assert "The chart shows the first 30 of 10,001." in shown
    assert shown.count('class="point"') == charts.NAMES


@pytest.mark.parametrize("name", reports.NAMES)
def test_each_report_can_be_drawn(duck: duckdb.DuckDBPyConnection, name: str) -> None:
    """Every mark is a number that JSON can hold, and every bar is in the order of the rows."""
    rows = rows_of(duck, name)
    figure, _ = charts.draw(reports.load(name).chart, rows)
    assert figure["data"]
    assert all(len(trace["x"]) for trace in figure["data"])
    json.dumps(figure, allow_nan=False)


def test_what_a_chart_shows() -> None:
    """Counts of one name and colour add up, of other numbers the largest is drawn; NULL is no mark."""
    ranking = reports.Chart("ranking", ("sagas",), ("variant",), "saga_name")
    rows: list[charts.Row] = [
        {"variant": "b", "saga_name": "order", "sagas": 2},
        {"variant": "a", "saga_name": "order", "sagas": 3},
        {"variant": "b", "saga_name": "order", "sagas": 5},
        {"variant": "b", "saga_name": "refund", "sagas": None},
    ]
    figure, note = charts.draw(ranking, rows)
    [trace] = figure["data"]
    assert (trace["y"], trace["x"], note) == (["b", "a"], [7, 3], "")
    assert figure["layout"]["yaxis"]["categoryarray"] == ["b", "a"]
    long = [{"variant": "x" * 100 + end, "saga_name": "order", "sagas": 1} for end in "ab"]
    figure, _ = charts.draw(ranking, long)
    assert len(set(figure["data"][0]["y"])) == 2  # cut to the eye, not to the count
    assert max(map(len, figure["layout"]["yaxis"]["ticktext"])) == charts.LONGEST_NAME
    line = reports.Chart("line", ("day",), ("failure_rate",), "saga_name")
    begin = datetime(2026, 11, 20, tzinfo=UTC)
    many = [{"day": begin + timedelta(days=n), "failure_rate": 0.1, "saga_name": "order"} for n in range(6_000)]
    figure, note = charts.draw(line, many)
    assert len(figure["data"][0]["x"]) == charts.POINTS
    assert note == "The chart shows the first 5,000 of 6,000."
