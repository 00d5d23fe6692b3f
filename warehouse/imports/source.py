"""What an import reads from: its interface, and how rows get an identity that a second import gives them, too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol

from warehouse.errors import WarehouseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

    from sagascope.events import SagaEvent

DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BATCH_ROWS = 20_000
"""So many rows are held in memory at a time while a source is read."""


class SourceError(WarehouseError):
    """A source can't be read as it is; names it, what is wrong, and the cure. Never holds a password."""


class Refused(NamedTuple):
    """A row that is no event: kept in `rejected_events`."""

    identity: str
    """Of the row; the same in every import."""
    at: datetime | None
    """When it was written; None where it does not say."""
    value: bytes
    """What is kept of it."""
    reason: str
    is_unclassified: bool
    """Whole, but of a shape that nobody knows: a custom hook's, say. Else it is invalid."""


class Span(NamedTuple):
    """Whole days, UTC; None is unbounded."""

    first: date | None = None
    until: date | None = None
    """Exclusive."""

    @property
    def microseconds(self) -> tuple[int | None, int | None]:
        """The same since the epoch, as the spool and the databases are asked."""
        begin = None if self.first is None else begin_of(self.first)
        return begin, None if self.until is None else begin_of(self.until)

    def has(self, day: date) -> bool:
        """Whether the day is among them."""
        return (self.first is None or day >= self.first) and (self.until is None or day < self.until)


@dataclass
class Loaded:
    """What was found beside the rows that were asked for."""

    before: int = 0
    """Rows of days before the span."""
    after: int = 0
    """Rows of days after it."""
    damaged: list[str] = field(default_factory=list)
    """What could not be read, and why; nothing of it is imported."""


class Source(Protocol):
    """Something with rows of a past.

    It is read once, into table `rows` of a spool, a DuckDB file on the disk: a database in production is asked nothing
    twice, and a million rows need no memory. The table has the columns `saga_id` and `moment`, microseconds since the
    epoch, NULL where a row tells no time, and whatever else the source wants to know again.
    """

    topic: str
    """What stands in `source_topic` of its rows."""

    def load(self, spool: duckdb.DuckDBPyConnection, span: Span) -> Loaded:
        """Make and fill `rows`: the rows of the span, those without a time, and what else it takes to judge them.

        Raises:
            SourceError: it can't be read.
        """

    def records(self, spool: duckdb.DuckDBPyConnection, day: date | None) -> Iterator[SagaEvent | Refused]:
        """What the rows of a day tell; None: those without a time. The same rows tell the same, whatever was loaded beside."""


def begin_of(day: date) -> int:
    """The first microsecond of a day, UTC, since the epoch."""
    return (datetime.combine(day, time(), UTC) - EPOCH) // MICROSECOND


def moment_of(microseconds: int) -> datetime:
    """The moment so long after the epoch."""
    return EPOCH + microseconds * MICROSECOND


def id_of(milliseconds: int, *names: str) -> str:
    """A UUIDv7 of that time whose random bits are a hash of the names: the same for the same ones."""
    bits = int.from_bytes(_digest(names)[:10], "big")
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (bits >> 68) << 64 | 0b10 << 62
    digits = f"{value | bits & 0x3FFF_FFFF_FFFF_FFFF:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def offset_of(*names: str) -> int:
    """What stands for an offset: 63 bits of a hash. Two of a million rows share one with a probability of 10⁻⁷."""
    return int.from_bytes(_digest(names)[:8], "big") >> 1


def _digest(names: tuple[str, ...]) -> bytes:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).digest()
