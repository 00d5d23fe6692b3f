"""Moments as written on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import typer

from pipelines.durations import InvalidDurationError, parse_duration
from sagascope.events import FARTHEST_AHEAD_MS
from warehouse.errors import WarehouseError


class FutureMomentError(WarehouseError):
    """Asked for what happens from a moment that has not come: names it, and the time."""


def parse_since(text: str) -> datetime:
    """A moment to begin from; not in the future.

    Raises:
        typer.BadParameter: the text is no moment.
        FutureMomentError: it has not come, not even by a clock that is ahead.
    """
    moment, now = parse_moment(text), datetime.now(UTC)
    if moment > now + timedelta(milliseconds=FARTHEST_AHEAD_MS):
        msg = f"--since {text} is in the future: it is {now:%Y-%m-%d %H:%M} UTC; no event is of a later time"
        raise FutureMomentError(msg)
    return moment


def parse_moment(text: str) -> datetime:
    """An ISO moment (UTC unless it says otherwise), or how long ago: 90s, 15m, 2h, 7d.

    Raises:
        typer.BadParameter: the text is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
        except InvalidDurationError as error:
            msg = f"{text!r} is neither a moment (2026-11-23T10:00) nor a time ago (15m, 2h, 7d)"
            raise typer.BadParameter(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
