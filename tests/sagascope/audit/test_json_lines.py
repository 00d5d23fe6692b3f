"""The audit log in a file."""

# ruff: noqa: ASYNC240 - a test may wait for its own small files

from __future__ import annotations

import asyncio
import os
import resource
from typing import TYPE_CHECKING

import pytest

from sagascope import JsonLinesAuditLog
from sagascope.audit import json_lines
from sagascope.audit.chain import Entry, as_line, event_id_of, from_line
from sagascope.errors import TransientError
from tests.sagascope.audit.behaviour import NOW, AuditLogBehaviour
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def entries_of(path: Path) -> list[Entry | None]:
    """The entries of a file; None for a line that is none."""
    return [from_line(line) for line in path.read_bytes().splitlines(keepends=True)]


class TestJsonLinesAuditLog(AuditLogBehaviour):
    """The laws of every audit log."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "audit.jsonl"

    def log(self, place: Path) -> JsonLinesAuditLog:
        return JsonLinesAuditLog(place, clock=lambda: NOW)

    async def entries(self, place: Path) -> list[Entry]:
        return [entry for entry in entries_of(place) if entry]

    async def rewrite(self, place: Path, entries: Sequence[Entry]) -> None:
        place.write_bytes(b"".join(map(as_line, entries)))

    def made_by_hand(self, place: Path) -> str:
        return f"JsonLinesAuditLog({str(place)!r})"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log may be."""
    return tmp_path / "audit.jsonl"


def test_one_sync_a_batch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write returns after its entries are on the disk, and a batch waits for that once."""
    synced: list[int] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        real(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr("os.fsync", sync)

    async def main() -> None:
        log = JsonLinesAuditLog(path)
        await log.open()
        synced.clear()
        await log.append([make_event() for _ in range(500)])
        assert synced == [path.stat().st_size]
        await log.close()

    asyncio.run(main())


def test_one_writer(path: Path) -> None:
    """A second one is told so, within the process as in another, until the first has closed."""

    async def main() -> None:
        first, second = JsonLinesAuditLog(path), JsonLinesAuditLog(path)
        await first.append(a_run("order-1"))
        for _ in range(2):
            with pytest.raises(TransientError, match="open for writing elsewhere"):
                await second.append(a_run("order-2"))
        assert (await second.verify()).entries == 4
        await first.close()
        await second.append(a_run("order-2"))
        assert (await second.verify()).entries == 8
        await second.close()

    asyncio.run(main())


def test_only_its_owner_may_read_it(path: Path) -> None:
    """The events of a business are nobody else's."""

    async def main() -> None:
        await written(path)
        assert path.stat().st_mode & 0o777 == 0o600

    asyncio.run(main())


async def written(path: Path, saga_id: str = "order-1") -> None:
    """Append a saga's four events, and close."""
    log = JsonLinesAuditLog(path)
    await log.append(a_run(saga_id))
    await log.close()


def test_a_line_torn_anywhere_is_mended(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever a crash cut the last line: what is whole stays, the rest is set aside, the chain goes on, and it is said."""

    async def main() -> None:
        await written(path)
        whole = path.read_bytes()
        last = whole.rindex(b"\n", 0, -1) + 1
        aside = path.with_name("audit.jsonl.torn")
        for cut in range(last, len(whole)):
            path.write_bytes(whole[:cut])
            aside.unlink(missing_ok=True)
            caplog.clear()
            await written(path, "order-2")
            complete = cut == len(whole) - 1
            ids = [event_id_of(entry) if entry else None for entry in entries_of(path)]
            assert len(ids) == (8 if complete else 7)
            assert (await JsonLinesAuditLog(path).verify()).broken is None
            assert aside.exists() == (last < cut and not complete)
            if aside.exists():
                assert aside.read_bytes() == whole[last:cut] + b"\n"
            assert bool(caplog.messages) == (cut > last)

    asyncio.run(main())


def test_damage_near_the_end_refuses_writers(path: Path) -> None:
    """Nothing is appended to a chain that is broken already, and nothing of it is mended in silence."""

    async def main() -> None:
        await written(path)
        damaged = path.read_bytes().replace(b'"sequence":3', b'"sequence":4')
        path.write_bytes(damaged)
        with pytest.raises(TransientError, match="damaged near its end"):
            await JsonLinesAuditLog(path).append(a_run("order-2"))
        assert path.read_bytes() == damaged

    asyncio.run(main())


def test_no_room_leaves_no_half_line(path: Path) -> None:
    """A batch that does not fit is taken back whole; once there is room it is written."""

    async def main() -> None:
        log = JsonLinesAuditLog(path)
        await log.append(a_run("order-1"))
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 700, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(TransientError, match=r"audit\.jsonl: File too large"):
                    await log.append(a_run("order-2"))
                assert path.read_bytes() == before
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await log.append(a_run("order-2"))
        assert (await log.verify())[::2] == (8, None)
        await log.close()

    asyncio.run(main())


def test_a_failed_sync_is_no_success(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be made durable is taken back, so that the same events are written when they come again."""
    real = os.fsync

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async def main() -> None:
        log = JsonLinesAuditLog(path)
        await log.append(a_run("order-1"))
        before, events = path.read_bytes(), a_run("order-2")
        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(TransientError, match="Input/output error"):
            await log.append(events)
        assert path.read_bytes() == before
        monkeypatch.setattr("os.fsync", real)
        await log.append(events)
        assert (await log.verify())[::2] == (8, None)
        await log.close()

    asyncio.run(main())


def test_a_file_moved_away_is_noticed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is written where nobody looks: the next event begins a new file, and the old one is whole."""

    async def main() -> None:
        log, moved = JsonLinesAuditLog(path), path.with_name("old.jsonl")
        await log.append(a_run("order-1"))
        path.rename(moved)
        await log.append(a_run("order-2"))
        await log.close()
        for each in (path, moved):
            assert (await JsonLinesAuditLog(each).verify())[::2] == (4, None)
        assert "was moved or removed" in caplog.text

    asyncio.run(main())


def test_a_line_that_is_being_written_is_no_fault(path: Path) -> None:
    """While a writer has the file open its last line may be unfinished; once nobody has, that is a fault."""

    async def main() -> None:
        log = JsonLinesAuditLog(path)
        await log.append(a_run("order-1"))
        with path.open("ab") as file:
            file.write(b'{"sequence":5,')
        assert (await JsonLinesAuditLog(path).verify())[::2] == (4, None)
        await log.close()
        found = await JsonLinesAuditLog(path).verify()
        assert (found.entries, "entry 5 (line 5) is no entry" in str(found.broken)) == (4, True)

    asyncio.run(main())


def test_ids_are_remembered_so_far_and_no_further(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that comes again later than that is there twice, as the docstring says; also after opening anew."""
    monkeypatch.setattr(json_lines, "REMEMBERED", 10)
    events = [make_event() for _ in range(11)]

    async def main() -> None:
        log = JsonLinesAuditLog(path)
        await log.append(events)
        await log.append(events[1:])
        await log.close()
        await log.append(events[1:])
        assert (await log.verify()).entries == 11
        await log.append(events[:1])
        assert (await log.verify())[::2] == (12, None)
        await log.close()

    asyncio.run(main())


@pytest.mark.parametrize("block", [7, 1_000, 10**6])
def test_the_end_is_found_whatever_its_blocks(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Lines longer and shorter than what is read at once."""
    monkeypatch.setattr(json_lines, "_BLOCK", block)
    monkeypatch.setattr(json_lines, "_LONGEST_END", 3_000)

    async def main() -> None:
        for n in range(6):
            log = JsonLinesAuditLog(path)
            await log.append([make_event(attributes={"n": "ö" * (n * 700)}), make_event()])
            await log.close()
        assert (await log.verify())[::2] == (12, None)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["a missing folder", "a folder"])
def test_what_cannot_be_opened_is_transient(tmp_path: Path, what: str) -> None:
    """It can be mended while the service runs; verifying says so, too, and creates nothing."""
    path = tmp_path / "missing" / "audit.jsonl" if what == "a missing folder" else tmp_path

    async def main() -> None:
        log = JsonLinesAuditLog(path)
        for attempt in (log.append(a_run("order-1")), log.verify()):
            with pytest.raises(TransientError, match=r"the audit log .*: (No such|Is a)"):
                await attempt
        await log.close()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []
