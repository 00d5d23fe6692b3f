"""Files of events: what is read, what is refused, and how it is told."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sagascope.events import EventType, SagaEvent, encode
from warehouse import history
from warehouse.imports.days import open_import
from warehouse.imports.files import EventFiles, FileFormat
from warehouse.imports.source import SourceError, Span

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.imports.days import DayImport
    from warehouse.settings import Settings

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)


def event(number: int, days: int = 0, **fields: Any) -> SagaEvent:
    """A start at noon of the day, or so many days after it."""
    usual: dict[str, Any] = {
        "event_id": f"e{number}",
        "event_type": EventType.SAGA_STARTED,
        "saga_id": f"s{number}",
        "saga_name": "order",
        "run_id": f"r{number}",
        "sequence": 0,
        "timestamp": NOON_MS + days * 86_400_000,
    }
    return SagaEvent(**usual | fields)


WHOLE = event(
    7,
    event_type=EventType.STEP_FAILED,
    step_name="pay",
    attempt=2,
    compensable=True,
    pivot=False,
    duration_ms=12,
    duration_derived=True,
    total_duration_ms=13,
    error_type="ValueError",
    error_message="no",
    context_keys=("a", "b"),
    attributes={"tenant": "acme", "region": "eu"},
    definition_id="d",
    parent_saga_id="p",
    trace_id="t",
    service="shop",
)
"""Every field has a value."""


def lines(path: Path, *events: SagaEvent | bytes) -> Path:
    """A file of JSON lines."""
    path.write_bytes(b"".join((one if isinstance(one, bytes) else encode(one)) + b"\n" for one in events))
    return path


def parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """A file of Parquet."""
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def load(lake: Settings, *patterns: object, kind: FileFormat | None = None) -> tuple[list[DayImport], list[str]]:
    """Import all of the files; returns also what was damaged."""
    with open_import(lake, EventFiles([str(one) for one in patterns], kind), Span(), now=datetime.now(UTC)) as opened:
        return [opened.store(day) for day in opened.days()], opened.loaded.damaged


def stored(lake: Settings) -> list[SagaEvent]:
    """The events as they are in the table, by id."""
    names = ", ".join(f'"{name}"' for name in SagaEvent.__struct_fields__)
    with history.open(lake) as tables:
        rows = tables.sql(f"SELECT {names} FROM events ORDER BY event_id").fetchall()
    events = []
    for row in rows:
        fields = dict(zip(SagaEvent.__struct_fields__, row, strict=True))
        fields["timestamp"] = int(fields["timestamp"].timestamp() * 1000)
        fields["event_type"] = EventType(fields["event_type"])
        fields["context_keys"] = tuple(fields["context_keys"] or ())
        events.append(SagaEvent(**fields))
    return events


def test_json_lines_are_stored_field_by_field(lake: Settings, tmp_path: Path) -> None:
    """As the topic would have brought them; empty lines are none, and CRLF ends one, too."""
    path = lines(tmp_path / "a.jsonl", WHOLE, b"", encode(event(1)) + b"\r")
    told, damaged = load(lake, path)
    assert (damaged, [(one.day, one.imported, one.rows) for one in told]) == ([], [(NOON.date(), 2, 2)])
    assert stored(lake) == [event(1), WHOLE]


def test_parquet_is_stored_field_by_field(lake: Settings, tmp_path: Path) -> None:
    """With all columns of `events`, as `sagascope` itself would export them; and with only those that are required."""
    load(lake, lines(tmp_path / "a.jsonl", WHOLE, event(1)))
    with history.open(lake) as tables:
        exported = tables.sql("SELECT * FROM events").to_arrow_table()
    pq.write_table(exported, tmp_path / "all.parquet")
    bare = [{**msgspec.structs.asdict(event(2)), "timestamp": NOON, "event_type": "saga_started", "more": 1}]
    required = ("event_id", "event_type", "saga_id", "saga_name", "run_id", "sequence", "timestamp", "more")
    parquet(tmp_path / "bare.parquet", [{name: row[name] for name in required} for row in bare])
    other = lake.__class__(home=f"{lake.home}-other", topic="t")
    told, damaged = load(other, tmp_path / "*.parquet")
    assert (damaged, sum(one.imported for one in told)) == ([], 3)
    assert stored(other) == [event(1), event(2), WHOLE]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", None])
def test_times_of_parquet(lake: Settings, tmp_path: Path, unit: str | None) -> None:
    """Timestamps of any unit, with a zone or without (then UTC), and plain milliseconds."""
    fields = {name: value for name, value in msgspec.structs.asdict(event(1)).items() if isinstance(value, str | int)}
    fields["event_type"] = "saga_started"
    naive = (
        pa.array([NOON_MS], pa.int64()) if unit is None else pa.array([NOON.replace(tzinfo=None)], pa.timestamp(unit))
    )
    columns = {name: [value] for name, value in fields.items()} | {"timestamp": naive}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", version="2.6")
    load(lake, tmp_path / "a.parquet")
    assert stored(lake) == [event(1)]


def test_a_line_that_is_no_event_is_kept(lake: Settings, tmp_path: Path) -> None:
    """With its bytes, the file, the number of its line and the reason; once, also where the file is moved; its neighbours are stored."""
    bad = [b"{", b'{"event_id":"x"}', b"{", encode(event(9))[:-1] + b',"attempt":0}', b"\xff"]
    path = lines(tmp_path / "a.jsonl", event(1), *bad, event(2))
    for _ in range(2):
        told, _ = load(lake, path)
        assert [(one.day, one.imported + one.already_there, one.invalid) for one in told] == [
            (None, 0, 5),
            (NOON.date(), 2, 0),
        ]
        path = path.rename(tmp_path / "moved.jsonl")
    assert told[0].reasons[1].startswith("moved.jsonl, line 3: ")
    with history.open(lake) as tables:
        rows = tables.sql("SELECT value, reason, source_topic FROM rejected_events").fetchall()
    assert sorted(value for value, *_ in rows) == sorted(bad)
    assert {topic for *_, topic in rows} == {"import:files"}
    assert all(reason.startswith("a.jsonl, line ") for _, reason, _ in rows)


def test_a_row_of_parquet_that_is_no_event_is_kept(lake: Settings, tmp_path: Path) -> None:
    """With its number and its values as JSON."""
    rows = [msgspec.to_builtins(one) for one in (event(1), event(2))]
    rows[1]["event_type"] = "saga_vanished"
    told, _ = load(lake, parquet(tmp_path / "a.parquet", rows))
    assert (told[0].invalid, told[1].imported) == (1, 1)
    assert "a.parquet, row 2: event_type: got 'saga_vanished'" in told[0].reasons[0]


def test_an_id_that_comes_again_counts_once(lake: Settings, tmp_path: Path) -> None:
    """Within a file, in another one, and in a later import."""
    lines(tmp_path / "a.jsonl", event(1), event(1), event(2))
    lines(tmp_path / "b.jsonl", event(2), event(3))
    told, _ = load(lake, tmp_path / "*.jsonl", tmp_path / "a.jsonl")
    assert (told[0].imported, told[0].already_there) == (3, 2)
    told, _ = load(lake, tmp_path / "b.jsonl")
    assert (told[0].imported, told[0].already_there) == (0, 2)
    assert stored(lake) == [event(1), event(2), event(3)]


def corrupted(path: Path) -> None:
    """A file of Parquet whose footer is whole and whose data is not."""
    rows = [msgspec.to_builtins(event(number, error_message="x" * number)) for number in range(2_000)]
    parquet(path, rows)
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = b"\0" * (len(content) // 2 - 200)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.parquet", lambda path: path.write_bytes(b"no Parquet at all"), "Parquet magic bytes not found in footer"),
        ("b.parquet", lambda path: path.touch(), "Parquet file size is 0 bytes"),
        ("c.parquet", corrupted, ""),
        ("d.parquet", lambda path: parquet(path, [{"event_id": "e", "x": 1}]), "no column event_type, saga_id"),
        (
            "e.parquet",
            lambda path: parquet(path, [msgspec.to_builtins(event(1)) | {"sequence": "one"}]),
            "column sequence is string; allowed: an integer",
        ),
        (
            "f.parquet",
            lambda path: parquet(path, [msgspec.to_builtins(event(1)) | {"timestamp": "today"}]),
            "column timestamp is string; allowed: a timestamp, or milliseconds",
        ),
        ("g.jsonl", lambda path: path.write_bytes(b"0" * ((16 << 20) + 1)), "line 1 is longer than 16 MiB"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_go_on(
    lake: Settings, tmp_path: Path, name: str, make: Any, reason: str
) -> None:
    """Nothing of it is imported."""
    make(tmp_path / name)
    lines(tmp_path / "0.jsonl", event(1))
    lines(tmp_path / "z.jsonl", event(2))
    told, damaged = load(lake, tmp_path / "*")
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{tmp_path / name}: {reason}")
    assert [(one.day, one.imported) for one in told] == [(NOON.date(), 2)]
    assert stored(lake) == [event(1), event(2)]


def test_days_are_those_of_the_events(lake: Settings, tmp_path: Path) -> None:
    """A day each, UTC; those of the future are left out, and counted."""
    path = lines(tmp_path / "a.jsonl", *(event(n, days=n - 2) for n in range(4)), event(9, days=3_650))
    with open_import(lake, EventFiles([str(path)]), Span(date(2026, 11, 19)), now=datetime.now(UTC)) as opened:
        assert opened.days() == [date(2026, 11, 19), date(2026, 11, 20), date(2026, 11, 21)]
        assert (opened.loaded.before, opened.loaded.after) == (1, 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    """A pattern without a file, and a suffix that says nothing; a format that is given says it."""
    with pytest.raises(SourceError, match="no file matches"):
        EventFiles([str(tmp_path / "*.jsonl")])
    path = lines(tmp_path / "events.txt", event(1))
    with pytest.raises(SourceError, match="its suffix tells no format; known are"):
        EventFiles([str(path)])
    assert str(EventFiles([str(path)], FileFormat.JSONL)) == "1 file"
