"""What an error's message may say once it leaves the service: neither a value of the saga's context nor a credential.

Two rules, both of which replace what they find by `[redacted]`: every value that the run's context and results hold,
keys of mappings within them included that are no plain names, in the spellings in which messages quote values and in any case; and what looks
like a credential (`password=…`, `Authorization: …`, a URL's user and password, a token, a payment card's number),
whatever it comes from. Values of one or two characters are left: they would blot out the message. Where there are too
many values to be searched, the whole message is withheld.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus
from uuid import UUID

from sagascope.events import CUT_MARK, ERROR_MESSAGE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

REDACTED = "[redacted]"
WITHHELD = "[withheld: the context holds too many values to search the message for]"
LONGEST_MESSAGE = ERROR_MESSAGE_LIMIT
"""Characters that are looked at, and no more leave."""
_SHORTEST = 3
_WHOLE_WORD_BELOW = 6
"""A shorter value is replaced only where it stands by itself: `cat` is no part of `category`."""
_LONGEST_VALUE = 1024
"""Of a longer value the beginning is looked for."""
_DEEPEST = 32
_MOST_VALUES = 50_000
_PLAIN = (str, int, float, complex, Decimal, UUID, date, time, timedelta, bytes, bytearray, memoryview)

# Each is linear in the message: no two parts beside each other that could share out the same characters.
_KEYS = (
    r"(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|"
    r"authorization|cookie|session[_-]?id|signature|ssn|cvv|cvc|iban|card[_-]?(?:number|no)|\bpin)"
)
_CREDENTIALS = (
    (re.compile(r"(?<=://)[^/\s?#]{0,256}:[^\s@]{0,1024}@(?:[^/\s@]{0,256}@)?"), f"{REDACTED}@"),
    (re.compile(r"(?<=://)[^/\s@]{1,256}(?=@)"), REDACTED),
    (re.compile(r"(?i)(authorization|cookie)(['\"]?\s{0,8}(?:=>|[:=])\s{0,8}['\"]?)[^\r\n'\"]{1,4096}"), rf"\1\2{REDACTED}"),
    (
        re.compile(
            rf"(?i)({_KEYS}['\"]?\s{{0,8}}(?:=>|[:=])\s{{0,8}})(?!['\"]?\[redacted)"
            r"(\"(?:[^\"\\]|\\.){0,4096}\"?|'(?:[^'\\]|\\.){0,4096}'?|[^\s,;&)}\]]{1,4096})"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"(?i)\b(bearer|basic|token)\s{1,8}[\w.~+/=-]{6,4096}"), rf"\1 {REDACTED}"),
    (re.compile(r"\beyJ[\w-]{8,2048}\.[\w-]{1,4096}\.[\w-]{0,1024}"), REDACTED),
    (re.compile(r"\b(?:gh[pousr]_\w{20,255}|github_pat_\w{20,255}|(?:AKIA|ASIA)[A-Z0-9]{16}|xox[abprs]-[\w-]{10,255}|sk_(?:live|test)_\w{10,255})"), REDACTED),
    (re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]{0,16384}(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"), REDACTED),
)  # fmt: skip
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")


class _TooManyError(Exception):
    """More values than are searched for, or nested too deeply."""


def redact(text: str, private: Iterable[object] = (), *, allowed: Collection[str] = ()) -> str:
    """The text without credentials, and without the values in `private`; of a long one the beginning, with a mark.

    Args:
        text: An error's message.
        private: The run's context and results: mappings, iterables, dataclasses and plain objects are searched. The keys
            of a mapping at the top are names, and no values.
        allowed: Values that may be said all the same: the saga's id, its attributes.
    """
    cut = text[: LONGEST_MESSAGE + _LONGEST_VALUE]
    folded = cut.casefold()
    try:
        found = {each for each in _spellings(private, allowed, len(cut)) if each.casefold() in folded}
    except _TooManyError:
        return WITHHELD
    cut = _without(found, cut)
    for pattern, replacement in _CREDENTIALS:
        cut = pattern.sub(replacement, cut)
    cut = _CARD.sub(lambda match: REDACTED if _is_card(match[0]) else match[0], cut)
    return cut if len(text) <= LONGEST_MESSAGE else cut[:LONGEST_MESSAGE] + CUT_MARK


def _without(words: Collection[str], text: str) -> str:
    """The beginning of the text, in which these stand for themselves no more; one across its end goes as a whole."""
    if not words:
        return text[:LONGEST_MESSAGE]
    longest_first = sorted(words, key=len, reverse=True)  # one may hold another
    said, at = [], 0
    for match in re.finditer("|".join(map(_pattern, longest_first)), text, re.IGNORECASE):
        if match.start() >= LONGEST_MESSAGE:
            break
        said += [text[at : match.start()], REDACTED]
        at = match.end()
    return "".join([*said, text[at:LONGEST_MESSAGE]])


def _pattern(word: str) -> str:
    if len(word) >= _LONGEST_VALUE:  # its beginning: all that follows may be the rest of it
        return rf"{re.escape(word)}(?s:.*)"
    return rf"(?<!\w){re.escape(word)}(?!\w)" if len(word) < _WHOLE_WORD_BELOW else re.escape(word)


def _spellings(private: Iterable[object], allowed: Collection[str], longest: int) -> Iterator[str]:
    """Each value as messages quote it: plain, as Python's repr, as JSON, in a URL."""
    for whole in _values(private):
        value = whole[:_LONGEST_VALUE]
        if len(value) > longest or whole in allowed or len(value.strip()) < _SHORTEST:
            continue
        yield value
        if not value.isalnum() or not value.isascii():
            quoted = (repr(value)[1:-1], ascii(value)[1:-1], json.dumps(value)[1:-1], quote(value), quote_plus(value))
            yield from {*quoted} - {value}


def _values(roots: Iterable[object]) -> Iterator[str]:
    """The texts of all that is neither a container nor None, True or False; each object once.

    Raises:
        _TooManyError: it is too much to search.
    """
    seen: set[int] = set()
    waiting = [(inner, 1) for root in roots for inner in (_top(root) if isinstance(root, Mapping) else [root])]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        if value is None or isinstance(value, bool | BaseException) or id(value) in seen:
            continue  # an exception in the context is likely the very one that is told of
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise _TooManyError
        if isinstance(value, _PLAIN) and not isinstance(value, Enum):
            yield from _texts(value)
        else:
            seen.add(id(value))
            waiting += [(each, depth + 1) for each in _within(value)]


def _top(context: Mapping[object, object]) -> list[object]:
    """The values of a context: its keys are told anyway, and under `__…` sagaz keeps its own."""
    return [value for key, value in context.items() if not str(key).startswith("__")]


def _within(value: object) -> list[object]:
    """What a container or an object holds; of one that shows nothing, its text."""
    if isinstance(value, Enum):
        return [value.value]
    if isinstance(value, Mapping):
        return [*(key for key in value if not (isinstance(key, str) and key.isidentifier())), *value.values()]
    if hasattr(value, "tolist"):  # an array
        return [value.tolist()]
    if isinstance(value, Iterable) and hasattr(value, "__len__"):  # iterating over a generator would use it up
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    held = [*getattr(value, "__dict__", {}).values(), *_slots(value)]
    return held or [_text(value)]


def _slots(value: object) -> Iterator[object]:
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") else name
            yield getattr(value, mangled, None)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        yield from (raw.decode("utf-8", "replace"), repr(raw)[2:-1], raw.hex())
        return
    yield _text(value)
    if isinstance(value, date | time):
        yield value.isoformat()
    elif isinstance(value, UUID):
        yield value.hex


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
