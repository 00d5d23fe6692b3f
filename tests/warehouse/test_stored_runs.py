"""Runs that are stored, and those that are computed beside them, make the same whole as all of them computed."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.warehouse.planted import NOON, append, events_of
from warehouse import coverage, history, saga_runs, stored_runs
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS, SAGA_RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = NOON.replace(hour=0)
HOURS = st.integers(0, 12).map(lambda hour: MIDNIGHT + hour * HOUR)
SPANS = st.tuples(HOURS, HOURS).filter(lambda span: span[0] < span[1])


@pytest.fixture
def catalog(lake: Settings) -> Iterator[Catalog]:
    """A lake of five sagas, a day apart from one another."""
    append(lake, EVENTS, [row for run in range(5) for row in events_of(run, NOON + (run - 2) * DAY)])
    with closing(open_catalog(lake)) as opened:
        yield opened


def rows(lake: Settings, since: datetime | None = None, until: datetime | None = None) -> list[dict[str, Any]]:
    """All runs that ended, by their ids."""
    with history.open(lake, since, until) as tables:
        found: list[dict[str, Any]] = tables.sql("FROM saga_runs ORDER BY run_id").to_arrow_table().to_pylist()
        return found


@pytest.mark.parametrize("spans", [[(-2, 3)], [(0, 1)], [(-2, -1), (1, 2)], [(-9, -1), (0, 9)]])
def test_stored_and_computed_runs_make_a_whole(lake: Settings, catalog: Catalog, spans: list[tuple[int, int]]) -> None:
    """Whatever is covered, of any span the same rows are told."""
    bounds = [(None, None), (MIDNIGHT, None), (None, NOON), (MIDNIGHT - DAY, MIDNIGHT + 2 * DAY)]
    before = [rows(lake, *bound) for bound in bounds]
    assert [len(found) for found in before] == [5, 3, 2, 3]
    for first, last in spans:
        stored_runs.store(lake, catalog, MIDNIGHT + first * DAY, MIDNIGHT + last * DAY)
    assert [rows(lake, *bound) for bound in bounds] == before


def test_what_is_covered_is_read_not_computed(lake: Settings, catalog: Catalog) -> None:
    """Late events of a covered day are told after the next recompute, and a span that is forgotten is computed."""
    assert stored_runs.store(lake, catalog, MIDNIGHT, MIDNIGHT + DAY) == 1
    append(lake, EVENTS, events_of(7, NOON))
    assert len(rows(lake, MIDNIGHT, MIDNIGHT + DAY)) == 1
    assert stored_runs.differences(lake, catalog, MIDNIGHT, MIDNIGHT + DAY) == (1, [("r7", "no row")])
    stored_runs.forget(lake, catalog, MIDNIGHT, MIDNIGHT + DAY)
    assert len(rows(lake, MIDNIGHT, MIDNIGHT + DAY)) == 2
    assert stored_runs.store(lake, catalog, MIDNIGHT, MIDNIGHT + DAY) == 2
    assert stored_runs.differences(lake, catalog, MIDNIGHT, MIDNIGHT + DAY) == (0, [])


def test_a_second_end_does_not_make_a_second_run(lake: Settings, catalog: Catalog) -> None:
    """A run that is stored and tells another end since is told once, as its events have it."""
    stored_runs.store(lake, catalog, MIDNIGHT, MIDNIGHT + DAY)
    [end] = [row for row in events_of(2, NOON) if row["event_type"].startswith("saga_") and row["sequence"] > 0]
    append(lake, EVENTS, [end | {"event_id": "again", "sequence": 99, "timestamp": NOON + 2 * DAY}])
    [told] = [row for row in rows(lake) if row["run_id"] == "r2"]
    assert told["ended_at"] == NOON + 2 * DAY


def test_the_same_hours_again_change_nothing(lake: Settings, catalog: Catalog) -> None:
    """Stored twice, and in parts, is stored once; a day without runs is covered, too."""
    for _ in range(2):
        for hour in (0, 12):
            begin = MIDNIGHT + hour * HOUR
            stored_runs.store(lake, catalog, begin, begin + 12 * HOUR)
    assert stored_runs.store(lake, catalog, MIDNIGHT + 20 * DAY, MIDNIGHT + 21 * DAY) == 0
    table = catalog.load_table(SAGA_RUNS.identifier)
    assert table.scan().to_arrow().num_rows == 1
    assert coverage.covered(table.properties) == [
        (MIDNIGHT, MIDNIGHT + DAY),
        (MIDNIGHT + 20 * DAY, MIDNIGHT + 21 * DAY),
    ]


@given(spans=st.lists(SPANS, max_size=5), gone=SPANS, asked=SPANS)
def test_spans(spans: list[coverage.Span], gone: coverage.Span, asked: coverage.Span) -> None:
    """By the hour: what was added and not taken away is covered, and gaps are the rest; spans are in order and apart."""
    covered: list[coverage.Span] = []
    for span in spans:
        covered = coverage.with_span(covered, span)
    covered = coverage.without_span(covered, gone)
    assert all(one[1] < other[0] for one, other in pairwise(covered))
    left = coverage.gaps(covered, *asked)
    for hour in (MIDNIGHT + number * HOUR for number in range(13)):
        expected = any(first <= hour < last for first, last in spans) and not gone[0] <= hour < gone[1]
        assert any(first <= hour < last for first, last in covered) is expected
        is_left = any((first or hour) <= hour < (last or hour + HOUR) for first, last in left)
        assert is_left is (asked[0] <= hour < asked[1] and not expected)


def test_gaps_without_bounds() -> None:
    """Unbounded is what no span bounds."""
    span = (MIDNIGHT, NOON)
    assert coverage.gaps([], None, None) == [(None, None)]
    assert coverage.gaps([span], None, None) == [(None, MIDNIGHT), (NOON, None)]
    assert coverage.gaps([span], NOON, None) == [(NOON, None)]
    assert coverage.gaps([span], None, NOON) == [(None, MIDNIGHT)]
    assert coverage.gaps([span], MIDNIGHT, NOON) == []


def test_only_events_of_such_runs_are_judged(lake: Settings, catalog: Catalog) -> None:
    """A span without ends needs none of the events; spans that are none are no rows."""
    with history.open(lake) as tables:
        for spans in ([], [(MIDNIGHT + 20 * DAY, MIDNIGHT + 21 * DAY)]):
            assert tables.sql(saga_runs.ended_query("run_events", "known_definitions", spans)).fetchall() == []
