"""What an error's message may say once it leaves the service: neither a value of the saga's context nor a credential.

Two rules, both of which replace what they find by `[redacted]`: every value that the run's context and results hold, in
the spellings in which messages quote it; and what looks like a credential (`password=…`, `Authorization: …`, a URL's
user and password, a token, a payment card's number), whatever it comes from. Values of one or two characters are left:
they would blot out the message.
"""

from __future__ import annotations

import json
import re
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

REDACTED = "[redacted]"
_SHORTEST = 3
_WHOLE_WORD_BELOW = 6
"""A shorter value is replaced only where it stands by itself: `cat` is no part of `category`."""
_DEEPEST = 8
_MOST_VALUES = 10_000
_PLAIN = (str, int, float, complex, Decimal, UUID, date, time, timedelta, Enum)

_KEYS = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|"
    r"authorization|cookie|session[_-]?id|ssn|cvv|cvc|iban|card[_-]?(?:number|no)|\bpin)"
)
_CREDENTIALS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), REDACTED),
    (
        re.compile(
            rf"(?i)({_KEYS}['\"]?\s*(?:=>|[:=])\s*)(?:(?:bearer|basic|digest)\s+)?(\"[^\"]*\"|'[^']*'|[^\s,;&)}}\]]+)"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[\w.~+/=-]{6,}"), rf"\1{REDACTED}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), REDACTED),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
)
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.])")


def redact(text: str, private: Iterable[object] = (), *, allowed: Collection[str] = ()) -> str:
    """The text without credentials, and without the values in `private`.

    Args:
        text: An error's message.
        private: The run's context and results: mappings, sequences, dataclasses and plain objects are searched.
        allowed: Values that may be said all the same: the saga's id, its attributes.
    """
    for spelling in sorted(
        _spellings(private, allowed), key=len, reverse=True
    ):  # the longest first: one may hold another
        if spelling in text:
            edge = r"\b" if len(spelling) < _WHOLE_WORD_BELOW else ""
            text = re.sub(f"{edge}{re.escape(spelling)}{edge}", REDACTED, text)
    for pattern, replacement in _CREDENTIALS:
        text = pattern.sub(replacement, text)
    return _CARD.sub(lambda found: REDACTED if _is_card(found[0]) else found[0], text)


def _spellings(private: Iterable[object], allowed: Collection[str]) -> set[str]:
    """Each value as messages quote it: plain, as Python's repr, as JSON."""
    found: set[str] = set()
    for count, value in enumerate(_values(private)):
        if count == _MOST_VALUES:
            break
        if value not in allowed:
            found |= {value, repr(value)[1:-1], json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    return {spelling for spelling in found if len(spelling.strip()) >= _SHORTEST}


def _values(roots: Iterable[object]) -> Iterator[str]:
    """The texts of all that is neither a container nor None, True or False; each object once."""
    seen: set[int] = set()
    waiting = [(root, 0) for root in roots]
    while waiting:
        value, depth = waiting.pop()
        if value is None or isinstance(value, bool | BaseException) or id(value) in seen or depth > _DEEPEST:
            continue  # an exception in the context is likely the very one that is told of
        if isinstance(value, bytes):
            yield value.decode("utf-8", "replace")
        elif isinstance(value, _PLAIN):
            yield _text(value)
        else:
            seen.add(id(value))
            waiting += [(each, depth + 1) for each in _within(value)]


def _within(value: object) -> list[object]:
    """What a container or an object holds; of one that shows nothing, its text."""
    if isinstance(value, dict):
        return [each for key, each in value.items() if not str(key).startswith("__")]  # sagaz keeps its own there
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ()) if isinstance(name, str)]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)] or [_text(value)]


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - what a class of the service can't say, no message can hold
        return ""


def _is_card(found: str) -> bool:
    """By the Luhn checksum (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in found if digit.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
