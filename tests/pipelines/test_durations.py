"""What `pipelines.durations` promises."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.durations import InvalidDurationError, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("90", 90.0),
        ("1.5h", 5400.0),
        ("7d", 604_800.0),
        ("0.25s", 0.25),
        (" 10s ", 10.0),
        ("007", 7.0),
    ],
)
def test_a_number_and_its_unit_are_seconds(text: str, seconds: float) -> None:
    """A number with s, m, h or d is that many seconds, and a number alone is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "0", "0s", "0.0h", "-5s", "+5s", "5w", "5 s", "1h30m", "1e3", "inf", "nan", ".5s", "5.", "٣s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The error names the text and what to write instead, and survives pickling."""
    with pytest.raises(InvalidDurationError) as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)
    assert "60s, 2m, 1.5h or 7d" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - pickled on this line


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    """No text gives anything but a finite positive number or `InvalidDurationError`."""
    try:
        seconds = parse_duration(text)
    except InvalidDurationError:
        return
    assert 0.0 < seconds < float("inf")
