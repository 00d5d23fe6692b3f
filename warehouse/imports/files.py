"""Files of events as a source: JSON lines as `sagascope.encode` writes them, Parquet with the columns of `events`."""

from __future__ import annotations

import glob
import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sagascope.events import InvalidEventError, SagaEvent, decode, encode
from warehouse.imports import FILES
from warehouse.imports.source import BATCH_ROWS, DAY, EPOCH, MICROSECOND, Loaded, Refused, SourceError, Span, begin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import date

    import duckdb

LONGEST_LINE = 16 << 20
"""Bytes. What has a longer one is no file of events."""
FIELDS = SagaEvent.__struct_fields__
REQUIRED = ("event_id", "event_type", "saga_id", "saga_name", "run_id", "sequence", "timestamp")
"""Columns that a Parquet file must have; the others of `events` it may have, and any more are not looked at."""
_LATEST = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
_SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "saga_id": pa.string(),
        "moment": pa.int64(),
        "record": pa.binary(),
        "reason": pa.string(),
    }
)


class FileFormat(StrEnum):
    """How events are written in a file."""

    PARQUET = "parquet"
    JSONL = "jsonl"


SUFFIXES = {
    ".parquet": FileFormat.PARQUET,
    ".pq": FileFormat.PARQUET,
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
}


class _Spooled(NamedTuple):
    """An event, or a record that is none; `at` is NULL for that."""

    event_id: str | None
    saga_id: str | None
    at: int | None
    record: bytes
    reason: str | None = None


class _DamagedError(Exception):
    """A file that can't be read to its end; says why."""


class EventFiles:
    """Files that match some patterns, each once, in the order of their names.

    Args:
        patterns: As a shell has them, `**` too.
        file_format: Of all of them; None: each by its suffix.

    Raises:
        SourceError: a pattern that no file matches, or a file whose suffix says nothing.
    """

    topic = FILES

    def __init__(self, patterns: Sequence[str], file_format: FileFormat | None = None) -> None:
        self._files: dict[Path, FileFormat] = {}
        for pattern in patterns:
            found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]  # noqa: PTH207 - may be absolute
            if not found:
                msg = f"no file matches {pattern!r}: give the path of a file, or a pattern like 'exports/**/*.parquet'"
                raise SourceError(msg)
            for path in found:
                self._files[path.resolve()] = file_format or _format_of(path)

    def __str__(self) -> str:
        """How many."""
        return f"{len(self._files):,} file{'' if len(self._files) == 1 else 's'}"

    def load(self, spool: duckdb.DuckDBPyConnection, span: Span) -> Loaded:
        """Read each file once. Of one that is damaged nothing is taken, and it is named; the others go on."""
        spool.execute(
            "CREATE TABLE rows (event_id VARCHAR, saga_id VARCHAR, moment BIGINT, record BLOB, reason VARCHAR)"
        )
        loaded = Loaded()
        for path, kind in self._files.items():
            outside = [0, 0]
            spool.execute("BEGIN")
            try:
                records = _of_parquet(path) if kind is FileFormat.PARQUET else _of_lines(path)
                for batch in _batches(_within(records, span, outside)):
                    spool.register("batch", batch)
                    spool.execute("INSERT INTO rows SELECT * FROM batch")
                    spool.unregister("batch")
            except (_DamagedError, OSError, UnicodeDecodeError, pa.ArrowException) as error:
                spool.execute("ROLLBACK")
                reason = (
                    error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
                )
                loaded.damaged.append(f"{path}: {reason}")
            else:
                spool.execute("COMMIT")
                loaded.before += outside[0]
                loaded.after += outside[1]
        return loaded

    def records(self, spool: duckdb.DuckDBPyConnection, day: date | None) -> Iterator[SagaEvent | Refused]:
        """The events of a day; None: the records that are no event."""
        if day is None:
            yield from self._refused(spool)
            return
        answer = spool.cursor().execute(
            "SELECT record FROM rows WHERE moment >= ? AND moment < ?", [begin_of(day), begin_of(day + DAY)]
        )
        while batch := answer.fetchmany(BATCH_ROWS):
            yield from (decode(record) for (record,) in batch)

    def _refused(self, spool: duckdb.DuckDBPyConnection) -> Iterator[Refused]:
        """Known again by their bytes, and by which of its like each is: wherever a file is moved."""
        answer = spool.cursor().execute(
            "SELECT record, reason, row_number() OVER (PARTITION BY record ORDER BY rowid) FROM rows WHERE moment IS NULL ORDER BY rowid"
        )
        while batch := answer.fetchmany(BATCH_ROWS):
            for record, reason, number in batch:
                yield Refused(f"{number} {record.hex()}", None, record, reason, is_unclassified=False)


def _format_of(path: Path) -> FileFormat:
    if (kind := SUFFIXES.get(path.suffix.lower())) is None:
        msg = f"{path}: its suffix tells no format; known are {', '.join(SUFFIXES)}. Give --format parquet or --format jsonl"
        raise SourceError(msg)
    return kind


def _of_lines(path: Path) -> Iterator[_Spooled]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                msg = f"line {number:,} is longer than {LONGEST_LINE >> 20} MiB: this is no file of JSON lines"
                raise _DamagedError(msg)
            line = line.rstrip(b"\r\n")
            if line.strip():
                yield _judged(line, f"{path.name}, line {number}")


def _judged(record: bytes, where: str) -> _Spooled:
    try:
        return _spooled(decode(record), record)
    except InvalidEventError as error:
        return _Spooled(None, None, None, record, f"{where}: {error}")


def _spooled(event: SagaEvent, record: bytes) -> _Spooled:
    at = event.timestamp * 1000
    if at > _LATEST:
        field, allowed = "timestamp", "milliseconds since 1970, before the year 10000"
        raise InvalidEventError(field, event.timestamp, allowed)
    return _Spooled(event.event_id, event.saga_id, at, record)


def _of_parquet(path: Path) -> Iterator[_Spooled]:
    number = 0
    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        if missing := [name for name in REQUIRED if name not in names]:
            msg = f"no column {', '.join(missing)}; needed are {', '.join(REQUIRED)}"
            raise _DamagedError(msg)
        _check_types(file.schema_arrow)
        for batch in file.iter_batches(BATCH_ROWS, columns=[name for name in FIELDS if name in names]):
            for row in batch.to_pylist():
                number += 1
                yield _of_row(row, f"{path.name}, row {number}")


def _check_types(schema: pa.Schema) -> None:
    """Refuse a file whose columns are of other types: each of its rows would be wrong in the same way."""
    numbers = {"sequence", "attempt", "duration_ms", "total_duration_ms", "schema_version"}
    flags = {"compensable", "pivot", "duration_derived"}
    for field in schema:
        kind = field.type
        if field.name not in FIELDS or pa.types.is_null(kind):
            continue
        if field.name == "timestamp":
            fits, allowed = pa.types.is_timestamp(kind) or pa.types.is_integer(kind), "a timestamp, or milliseconds"
        elif field.name in numbers:
            fits, allowed = pa.types.is_integer(kind), "an integer"
        elif field.name in flags:
            fits, allowed = pa.types.is_boolean(kind), "a boolean"
        elif field.name == "context_keys":
            fits, allowed = pa.types.is_list(kind) or pa.types.is_large_list(kind), "a list of strings"
        elif field.name == "attributes":
            fits, allowed = pa.types.is_map(kind), "a map of strings"
        else:
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            fits, allowed = pa.types.is_string(plain) or pa.types.is_large_string(plain), "a string"
        if not fits:
            msg = f"column {field.name} is {kind}; allowed: {allowed}"
            raise _DamagedError(msg)


def _of_row(row: dict[str, Any], where: str) -> _Spooled:
    given = {name: value for name, value in row.items() if value is not None}
    moment = given.get("timestamp")
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        given["timestamp"] = (aware - EPOCH) // MICROSECOND // 1000
    if "attributes" in given:
        given["attributes"] = {key: value for key, value in given["attributes"] if value is not None}
    record = msgspec.json.encode(given)
    judged = _judged(record, where)
    return judged if judged.reason else judged._replace(record=encode(decode(record)))


def _within(records: Iterable[_Spooled], span: Span, outside: list[int]) -> Iterator[_Spooled]:
    """Those of the span and those of no time; counts the rest, before and after it."""
    begin, end = span.microseconds
    for one in records:
        if one.at is not None and begin is not None and one.at < begin:
            outside[0] += 1
        elif one.at is not None and end is not None and one.at >= end:
            outside[1] += 1
        else:
            yield one


def _batches(records: Iterator[_Spooled]) -> Iterator[pa.Table]:
    held: list[_Spooled] = []
    for one in records:
        held.append(one)
        if len(held) == BATCH_ROWS:
            yield _table(held)
            held = []
    if held:
        yield _table(held)


def _table(records: list[_Spooled]) -> pa.Table:
    columns = zip(*records, strict=True)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


def patterns_in(setting: str) -> list[str]:
    """The patterns of SAGASCOPE_IMPORT_FILES: parted like the folders of PATH, by a colon."""
    return [pattern for pattern in setting.split(os.pathsep) if pattern]
