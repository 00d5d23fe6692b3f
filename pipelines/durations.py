"""Durations as written on the command line."""

from __future__ import annotations

import re

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)(?P<unit>[smhd]?)")


class InvalidDurationError(ValueError):
    """A text that is no duration: names it, and what to write instead."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            f"no duration: {text!r}; write a number above 0 and s, m, h or d, like 60s, 2m, 1.5h or 7d; "
            "a number alone is seconds"
        )

    def __reduce__(self) -> tuple[type[InvalidDurationError], tuple[str]]:
        return type(self), (self.text,)


def parse_duration(text: str) -> float:
    """The duration in seconds: `60s`, `2m`, `1h`, `1.5h`, `7d`, or `90` for 90 s. Always more than 0.

    Raises:
        InvalidDurationError: the text is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match["number"]) * _SECONDS[match["unit"]] if match else 0.0
    if not seconds > 0.0:
        raise InvalidDurationError(text)
    return seconds
