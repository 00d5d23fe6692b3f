"""The laws of every audit log, as a test class to inherit from."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import pytest

from sagascope.audit.chain import GENESIS, Entry, event_id_of
from sagascope.events import encode
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run
from tests.sagascope.outbox.behaviour import ODD_IDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagascope.audit.chain import AuditLog

NOW = 1_780_000_000.5

TAMPERING: dict[str, tuple[Callable[[list[Entry]], list[Entry]], int]] = {
    "changed": (lambda e: [*e[:3], e[3]._replace(event=e[3].event.replace(b"order", b"order2")), *e[4:]], 4),
    "removed": (lambda e: [*e[:3], *e[4:]], 4),
    "the first removed": (lambda e: e[1:], 1),
    "moved": (lambda e: [*e[:3], e[3]._replace(sequence=5), e[4]._replace(sequence=4), *e[5:]], 4),
    "another's hash": (lambda e: [*e[:3], e[3]._replace(hash=e[4].hash), *e[4:]], 4),
    "recorded at another time": (lambda e: [*e[:3], e[3]._replace(recorded_at=1), *e[4:]], 4),
}


class AuditLogBehaviour(ABC):
    """Laws that hold for a file as for a table."""

    @pytest.fixture(autouse=True)
    @abstractmethod
    def place(self) -> Any:
        """An empty place."""

    @abstractmethod
    def log(self, place: Any) -> AuditLog:
        """A log there, not open yet, by a clock that stands at NOW."""

    @abstractmethod
    async def entries(self, place: Any) -> list[Entry]:
        """All entries, read past the log."""

    @abstractmethod
    async def rewrite(self, place: Any, entries: Sequence[Entry]) -> None:
        """Have these entries there in place of the others, as somebody who may do anything."""

    @abstractmethod
    def made_by_hand(self, place: Any) -> str:
        """An expression that makes a log there."""

    def test_each_event_is_one_entry(self, place: Any) -> None:
        """In order, byte for byte as `encode` has it, with the time of writing; the chain is whole and ends in its head."""
        events = [make_event(saga_id=saga_id) for saga_id in ODD_IDS]
        events.append(make_event(attributes={"big": "ö" * 500_000}))

        async def main() -> None:
            log = self.log(place)
            await log.append(events[:2])
            await log.append(events[2:])
            entries = await self.entries(place)
            assert [entry.event for entry in entries] == [encode(event) for event in events]
            assert [entry.sequence for entry in entries] == list(range(1, len(events) + 1))
            assert {entry.recorded_at for entry in entries} == {1_780_000_000_500}
            assert await log.verify() == (len(events), entries[-1].hash, None)
            await log.close()

        asyncio.run(main())

    def test_an_event_that_comes_again_is_left_out(self, place: Any) -> None:
        """Within a batch, in a later one, and after the log was closed and opened again."""
        events = a_run("order-1")

        async def main() -> None:
            log = self.log(place)
            await log.append([events[0], events[1], events[0], events[2]])
            await log.append(events)
            await log.close()
            await log.append(events)
            assert [event_id_of(entry) for entry in await self.entries(place)] == [event.event_id for event in events]
            assert (await log.verify()).broken is None
            await log.close()

        asyncio.run(main())

    def test_an_empty_log_is_whole(self, place: Any) -> None:
        """Its head is what the first entry will follow."""

        async def main() -> None:
            log = self.log(place)
            await log.open()
            assert await log.verify() == (0, GENESIS, None)
            assert await log.verify(GENESIS) == (0, GENESIS, None)
            await log.close()

        asyncio.run(main())

    @pytest.mark.parametrize("how", TAMPERING)
    def test_tampering_is_found_and_the_entry_named(self, place: Any, how: str) -> None:
        """The first entry that is not as it was written."""
        tamper, first = TAMPERING[how]

        async def main() -> None:
            log = self.log(place)
            await log.append(a_run("order-1") + a_run("order-2"))
            await log.close()
            await self.rewrite(place, tamper(await self.entries(place)))
            found = await log.verify()
            assert found.entries == first - 1
            assert f"entry {first}" in str(found.broken)
            await log.close()

        asyncio.run(main())

    def test_what_was_removed_at_the_end_is_found_by_the_head(self, place: Any) -> None:
        """A head that was kept stays good while the log grows, and shows when the log ends before it."""

        async def main() -> None:
            log = self.log(place)
            await log.append(a_run("order-1"))
            head = (await log.verify()).head
            await log.append(a_run("order-2"))
            assert (await log.verify(head)).broken is None
            await log.close()
            await self.rewrite(place, (await self.entries(place))[:3])
            assert await log.verify() == (3, (await self.entries(place))[2].hash, None)
            found = await log.verify(head)
            assert (found.entries, "entry 4 is missing" in str(found.broken)) == (3, True)
            await log.close()

        asyncio.run(main())

    def test_many_tasks_make_one_chain(self, place: Any) -> None:
        """Each task's events in its order, none lost, none twice."""
        sagas = [a_run(f"order-{n}") for n in range(25)]

        async def main() -> None:
            log = self.log(place)

            async def run(events: list[Any]) -> None:
                for event in events:
                    await log.append([event])

            await asyncio.gather(*map(run, sagas))
            ids = [event_id_of(entry) for entry in await self.entries(place)]
            assert len(ids) == 100
            for events in sagas:
                mine = [event.event_id for event in events]
                assert [each for each in ids if each in mine] == mine
            assert (await log.verify()).broken is None
            await log.close()

        asyncio.run(main())

    def test_a_cancelled_append_leaves_a_whole_chain(self, place: Any) -> None:
        """Cancelled at any moment it is done or not done; tried again, each event is there once."""
        chance = random.Random(11)
        batches = [a_run(f"order-{n}") for n in range(30)]

        async def main() -> None:
            log = self.log(place)
            await log.open()
            for events in batches:
                appending = asyncio.create_task(log.append(events))
                await asyncio.sleep(chance.uniform(0, 0.002))
                appending.cancel()
                await asyncio.wait([appending])
                await log.append(events)
            assert [event_id_of(entry) for entry in await self.entries(place)] == [
                event.event_id for events in batches for event in events
            ]
            assert (await log.verify()).broken is None
            await log.close()

        asyncio.run(main())

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_after_a_kill_what_was_acknowledged_is_there(self, place: Any, seed: int) -> None:
        """A process that is killed at any moment leaves a whole chain, to which the next one appends."""
        code = f"""
import asyncio
from sagascope import JsonLinesAuditLog, SQLAuditLog
from tests.sagascope.conftest import make_event

async def main():
    log = {self.made_by_hand(place)}
    for _ in range(1_000):
        batch = [make_event(attributes={{"text": "x" * 5_000}}) for _ in range(5)]
        await log.append(batch)
        print(*(event.event_id for event in batch), flush=True)

asyncio.run(main())
"""
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        acknowledged: list[bytes] = []
        for _ in range(random.Random(seed).randint(1, 40)):
            acknowledged += process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
        process.stdout.close()

        async def main() -> None:
            log, event = self.log(place), make_event()
            await log.append([event])
            ids = [event_id_of(entry) for entry in await self.entries(place)]
            assert {each.decode() for each in acknowledged} <= set(ids)
            assert ids[-1] == event.event_id
            assert len(set(ids)) == len(ids)
            assert (await log.verify()).broken is None
            await log.close()

        asyncio.run(main())
