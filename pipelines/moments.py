"""Moments as written on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import typer

from pipelines.durations import InvalidDurationError, parse_duration


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
