"""What a viewer of the live dashboard sees at one moment."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import Annotated

import msgspec
from msgspec import Meta

from warehouse.freshness import Freshness
from warehouse.live_figures import SPANS, Series, SlidingWindow, series_of, sliding_window, window_of


class Active(msgspec.Struct, frozen=True, kw_only=False):
    """Sagas of one kind that run now."""

    saga_name: str
    active: int
    silent: Annotated[int, Meta(description="Of these, nothing was heard for an hour: most likely they are abandoned.")]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of one moment, from one snapshot of `events`."""

    made_at: datetime
    snapshot_id: Annotated[
        str | None,
        Meta(
            description="Of `events`; as text, for it has more digits than a number in JavaScript. Null: no commit yet."
        ),
    ]
    problem: Annotated[
        str | None, Meta(description="Why there is nothing newer to see, and what to do; null: all is well.")
    ] = None
    active: Annotated[int, Meta(description="Sagas that started and have not ended.")]
    active_sagas: list[Active]
    windows: Annotated[list[SlidingWindow], Meta(description="1m, 5m, 15m, 1h.")]
    series: Series
    freshness: Freshness


def empty_frame(now: datetime, problem: str | None) -> Frame:
    """A frame of nothing, where there are no tables to read; says why."""
    nobody = Freshness(
        newest_event_at=None,
        newest_event_age_seconds=None,
        newest_commit_at=None,
        newest_commit_age_seconds=None,
        stale=problem,
    )
    return Frame(
        made_at=now,
        snapshot_id=None,
        problem=problem,
        active=0,
        active_sagas=[],
        windows=[sliding_window(name, window_of(now - span), now, [], []) for name, span in SPANS.items()],
        series=series_of({}, now, None),
        freshness=nobody,
    )
