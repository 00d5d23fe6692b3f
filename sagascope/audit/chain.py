"""The chain of hashes of an audit log, and how it is verified.

An entry's canonical form is one JSON object in UTF-8 without spaces: sequence, recorded_at, previous, event, in this
order, `event` being the bytes that `encode` gave. Its hash is SHA-256 over these bytes, in 64 hex digits; `previous` is
the hash of the entry before, 64 zeros in the first. A line of a file is the canonical form with `hash` as its last field.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent

GENESIS = "0" * 64
"""What the first entry follows."""


class Entry(NamedTuple):
    """One event in the log."""

    sequence: int
    """From 1, without a gap."""
    recorded_at: int
    """When it was written, by the writer's clock: milliseconds since the epoch, UTC."""
    previous: str
    event: bytes
    hash: str


class Verification(NamedTuple):
    """What a verification found."""

    entries: int
    """How many are whole, from the first on."""
    head: str
    """The hash of the last of these. Kept elsewhere, it shows later whether entries were taken away at the end."""
    broken: str | None
    """The first entry that is not as it was written, and why; None: the log is whole."""


class AuditLog(ABC):
    """Where an AuditLogListener writes."""

    @abstractmethod
    async def open(self) -> None:
        """Get ready to append.

        Raises:
            TransientError: what it is kept in can't be reached, or is another's.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let what is under way end, and release it. Opens again when used."""

    @abstractmethod
    async def append(self, events: Sequence[SagaEvent]) -> None:
        """Add the events, in order, durably when this returns; those that it has already are left out.

        Raises:
            TransientError: none were added, as far as is known.
            PermanentError: they never can be.
        """

    @abstractmethod
    async def verify(self, head: str | None = None) -> Verification:
        """Go through the whole log, also while it is written to.

        An entry that was changed, removed, added, moved or cut short is found, but for entries removed at the very end,
        or a log that was written anew: these are found where `head`, the hash of an entry that was once the last, is
        given from a place that whoever did it could not write to.

        Raises:
            TransientError: it can't be read.
        """


def is_whole(entry: Entry) -> bool:
    """Whether its hash is that of its content."""
    return entry.hash == _hash(*entry[:4])


def chained(events: Sequence[bytes], after: Entry | None, recorded_at: int) -> list[Entry]:
    """These events as the entries that follow."""
    entries: list[Entry] = []
    for event in events:
        sequence, previous = (after.sequence + 1, after.hash) if after else (1, GENESIS)
        hashed = _hash(sequence, recorded_at, previous, event)
        after = Entry(sequence, recorded_at, previous, event, hashed)
        entries.append(after)
    return entries


def _canonical(sequence: int, recorded_at: int, previous: str, event: bytes) -> bytes:
    return b'{"sequence":%d,"recorded_at":%d,"previous":"%s","event":%s}' % (
        sequence,
        recorded_at,
        previous.encode("utf-8", "replace"),
        event,
    )


def _hash(sequence: int, recorded_at: int, previous: str, event: bytes) -> str:
    return hashlib.sha256(_canonical(sequence, recorded_at, previous, event)).hexdigest()


def as_line(entry: Entry) -> bytes:
    """The entry as a line of a file, with its end."""
    return b'%s,"hash":"%s"}\n' % (_canonical(*entry[:4])[:-1], entry.hash.encode("utf-8", "replace"))


def from_line(line: bytes) -> Entry | None:
    """The entry of a line, its end left off or not; None: it is not, byte for byte, one that `as_line` gives."""
    try:
        fields = _line_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    entry = Entry(fields.sequence, fields.recorded_at, fields.previous, bytes(fields.event), fields.hash)
    return entry if as_line(entry).removesuffix(b"\n") == line.removesuffix(b"\n") else None


def event_id_of(entry: Entry) -> str | None:
    """The id of its event; None where what it holds is no JSON of an event."""
    try:
        return _identity_decoder.decode(entry.event).event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class Verifier:
    """Checks entries one after the other."""

    def __init__(self, head: str | None) -> None:
        self._wanted = head
        self._found_head = head in (None, GENESIS)
        self._entries = 0
        self._last = GENESIS

    def objection(self, entry: Entry | None, place: str) -> Verification | None:
        """What is wrong with the next entry, found at this place; None where nothing is."""
        expected = self._entries + 1
        here = f"entry {expected} ({place})"
        if entry is None:
            return self.broken(f"{here} is no entry: it was changed or cut short")
        if not is_whole(entry):
            return self.broken(f"{here} was changed: its hash is not that of its content")
        if entry.sequence != expected:
            return self.broken(f"{here} is number {entry.sequence}: entries were removed, added or moved")
        if entry.previous != self._last:
            return self.broken(f"{here} does not follow from the one before: that was changed")
        self._entries, self._last = expected, entry.hash
        self._found_head = self._found_head or entry.hash == self._wanted
        return None

    def result(self) -> Verification:
        """When there are no more entries."""
        if not self._found_head:
            return self.broken(
                f"entry {self._entries + 1} is missing: no entry has the hash {self._wanted}; entries at the end were "
                "removed, or the log was written anew"
            )
        return Verification(self._entries, self._last, None)

    def broken(self, why: str) -> Verification:
        """The result, where something else is wrong with the entry."""
        return Verification(self._entries, self._last, why)


class _Line(msgspec.Struct):
    sequence: int
    recorded_at: int
    previous: str
    event: msgspec.Raw
    hash: str


class _Identity(msgspec.Struct):
    event_id: str


_line_decoder = msgspec.json.Decoder(_Line)
_identity_decoder = msgspec.json.Decoder(_Identity)
