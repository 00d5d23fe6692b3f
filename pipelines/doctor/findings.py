"""What the doctor finds."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Works, but not for ever, or not as meant."""
    FAULT = "fault"
    """Something does not work, or loses data, until it is cured."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. Whatever is not `ok` has a cure."""

    area: str
    level: Level
    what: str
    cure: str = ""


def ok(area: str, what: str, cure: str = "") -> Finding:
    """All is well there; `cure` is what to do where one wants it otherwise."""
    return Finding(area, Level.OK, what, cure)


def warning(area: str, what: str, cure: str) -> Finding:
    """It works for now."""
    return Finding(area, Level.WARNING, what, cure)


def fault(area: str, what: str, cure: str) -> Finding:
    """It does not work, or loses data."""
    return Finding(area, Level.FAULT, what, cure)


def counted(number: int, thing: str) -> str:
    """A number of things: 1 broker, 2,000 records."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def size(number: float) -> str:
    """Bytes as people read them: 512 B, 3.4 MiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while number >= 1024 and power < len(units) - 1:
        number, power = number / 1024, power + 1
    return f"{number:,.1f} {units[power]}" if power else f"{number:,.0f} B"
