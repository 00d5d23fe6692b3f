"""Which runs the table `saga_runs` holds: those that ended in the spans that recomputes have covered.

The spans stand in a property of the table, which is written by the very commit that writes the rows. What ended elsewhere
is computed from the events when it is asked for (`warehouse.saga_runs.views`), so that the two always make a whole.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COVERED = "sagascope.covered"
"""The property: a JSON list of [since, until], in order and apart."""

Span = tuple[datetime, datetime]
"""[since, until), aware."""
Gap = tuple[datetime | None, datetime | None]
"""The same, unbounded where it is None."""


def covered(properties: Mapping[str, str]) -> list[Span]:
    """The spans whose ended runs are stored, in order and apart, by the table's properties."""
    return msgspec.json.decode(properties.get(COVERED, "[]"), type=list[tuple[datetime, datetime]])


def with_span(spans: Iterable[Span], span: Span) -> list[Span]:
    """The spans and this one, those that touch made one."""
    merged: list[Span] = []
    for since, until in sorted([*spans, span]):
        if merged and since <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], until)
        else:
            merged.append((since, until))
    return merged


def without_span(spans: Iterable[Span], span: Span) -> list[Span]:
    """The spans, less this one."""
    left = []
    for since, until in spans:
        left += [(since, min(until, span[0])), (max(since, span[1]), until)]
    return [(since, until) for since, until in left if since < until]


def gaps(spans: Iterable[Span], since: datetime | None, until: datetime | None) -> list[Gap]:
    """What of [since, until) the spans, in order and apart, do not cover; None is unbounded."""
    found: list[Gap] = []
    begin = since
    for first, last in spans:
        if until is not None and first >= until:
            break
        if begin is None or begin < first:
            found.append((begin, first))
        begin = last if begin is None else max(begin, last)
    if until is None or begin is None or begin < until:
        found.append((begin, until))
    return found


def properties_of(spans: Iterable[Span]) -> dict[str, str]:
    """The table's property that says that the spans are covered."""
    return {COVERED: msgspec.json.encode(list(spans)).decode()}
