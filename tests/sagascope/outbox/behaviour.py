"""The laws of every outbox's storage, as a test class to inherit from."""

from __future__ import annotations

import asyncio
import json
import random
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from sagascope.cloudevents import headers
from sagascope.errors import DeliveryError, PartialError, PermanentError
from sagascope.events import EventType, encode
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from sagascope.events import SagaEvent
    from sagascope.outbox.storage import OutboxStorage

ODD_IDS = [
    "o'rder; --",
    "bestellung-ö/☃/\N{ROCKET}",
    "nul-\0-within",
    "lone-\ud800-surrogate",
    "long-" + "x" * 5_000,
    " ",
]


class Stored(NamedTuple):
    """A row, read past the storage."""

    event_id: str
    payload: bytes
    headers: str
    status: str
    last_error: str | None


class Transaction(ABC):
    """A connection of the caller's with an open transaction, and a table `orders` of the service's own."""

    connection: Any

    @abstractmethod
    async def order(self, order_id: str) -> None:
        """Insert a row into `orders`."""

    @abstractmethod
    async def commit(self) -> None:
        """End it well."""

    @abstractmethod
    async def roll_back(self) -> None:
        """Undo it."""


class OutboxBehaviour(ABC):
    """Laws that hold for PostgreSQL as for SQLite."""

    @pytest.fixture(autouse=True)
    @abstractmethod
    def place(self) -> Any:
        """An empty database."""

    @abstractmethod
    def outbox(self, place: Any) -> OutboxStorage:
        """A storage there, not open yet."""

    @abstractmethod
    def transaction(self, place: Any) -> AbstractAsyncContextManager[Transaction]:
        """A connection there, with a transaction begun; closed at the end."""

    @abstractmethod
    async def query(self, place: Any, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a statement, carried out and committed past the storage."""

    @abstractmethod
    async def refuse(self, place: Any, saga_id: str) -> None:
        """Have the table refuse events of this saga."""

    async def rows(self, place: Any) -> list[Stored]:
        """All rows, by position."""
        statement = "SELECT event_id, payload, headers, status, last_error FROM sagascope_outbox ORDER BY position"
        return [Stored(str(row[0]), *row[1:]) for row in await self.query(place, statement)]

    async def orders(self, place: Any) -> list[str]:
        """The service's own rows."""
        return [row[0] for row in await self.query(place, "SELECT id FROM orders ORDER BY id")]

    def test_a_row_holds_the_record_byte_for_byte(self, place: Any) -> None:
        """Whatever a saga is called, the payload is what `encode` gives, the key and the headers those of the record."""
        events = [make_event(saga_id=saga_id) for saga_id in ODD_IDS]
        events.append(make_event(event_type=EventType.SAGA_FAILED, error_type="E", error_message="\0 in \ud800 text"))
        events.append(make_event(attributes={"big": "ö" * 500_000}))

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append(events)
            stored = await self.rows(place)
            assert [row.payload for row in stored] == [encode(event) for event in events]
            assert {row.status for row in stored} == {"pending"}
            claimed = await outbox.claim("relay")
            assert [each.payload for each in claimed] == [encode(event) for event in events]
            assert [each.key for each in claimed] == [event.saga_id.encode("utf-8", "replace") for event in events]
            assert [each.headers for each in claimed] == [headers(event) for event in events]
            assert all(json.loads(row.headers)["ce_id"] == row.event_id for row in stored)
            await outbox.close()

        asyncio.run(main())

    def test_the_first_of_an_id_stays(self, place: Any) -> None:
        """An event that is stored already is left as it is, also within one batch and in another spelling of its id."""
        first = make_event(saga_name="first")
        again = make_event(event_id=first.event_id.upper(), saga_name="again")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append([first, again])
            await outbox.mark_sent("relay", [each.event_id for each in await outbox.claim("relay")])
            await outbox.append([again, first])
            assert [(row.payload, row.status) for row in await self.rows(place)] == [(encode(first), "sent")]
            await outbox.close()

        asyncio.run(main())

    def test_what_is_no_event_to_send_is_named_and_the_others_are_stored(self, place: Any) -> None:
        """An event without a UUID, or whose time has no RFC 3339 form, is rejected, and only that one."""
        good, no_id, no_time = make_event(), make_event(event_id="17"), make_event(timestamp=2**62)

        async def main() -> None:
            outbox = self.outbox(place)
            with pytest.raises(PartialError) as caught:
                await outbox.append([no_id, good, no_time])
            assert [event for event, _ in caught.value.rejected] == [no_id, no_time]
            with pytest.raises(PermanentError):
                await outbox.append([no_id])
            assert [row.event_id for row in await self.rows(place)] == [good.event_id]
            await outbox.close()

        asyncio.run(main())

    @pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
    def test_events_share_the_fate_of_the_callers_transaction(self, place: Any, commits: bool) -> None:  # noqa: FBT001
        """Events and the service's own rows are there together or not at all, and nobody sees them before the commit."""
        events = a_run("order-1")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.open()
            async with self.transaction(place) as transaction:
                async with outbox.using(transaction.connection):
                    for event in events:
                        await transaction.order(event.event_id)
                        await asyncio.create_task(outbox.append([event]))
                assert await self.rows(place) == []
                await (transaction.commit() if commits else transaction.roll_back())
            expected = [event.event_id for event in events] if commits else []
            assert [row.event_id for row in await self.rows(place)] == expected
            assert await self.orders(place) == sorted(expected)
            await outbox.close()

        asyncio.run(main())

    def test_a_refused_event_leaves_the_transaction_usable(self, place: Any) -> None:
        """A write that fails undoes itself alone: what was done before stays, what comes after works."""
        before, after = a_run("order-1"), a_run("order-2")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.open()
            await self.refuse(place, "refused")
            async with self.transaction(place) as transaction:
                async with outbox.using(transaction.connection):
                    await transaction.order("1")
                    await outbox.append(before)
                    with pytest.raises(PermanentError):
                        await outbox.append([*a_run("order-3"), make_event(saga_id="refused")])
                    await transaction.order("2")
                    await outbox.append(after)
                await transaction.commit()
            assert [row.event_id for row in await self.rows(place)] == [event.event_id for event in before + after]
            assert await self.orders(place) == ["1", "2"]
            await outbox.close()

        asyncio.run(main())

    def test_parallel_steps_take_turns(self, place: Any) -> None:
        """Many tasks may write within one transaction, and the service's own statements, under the lock, between them."""
        sagas = [a_run(f"order-{n:02}") for n in range(20)]

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.open()
            async with self.transaction(place) as transaction:
                async with outbox.using(transaction.connection) as turn:

                    async def step(events: Sequence[SagaEvent]) -> None:
                        for event in events:
                            await outbox.append([event])
                            async with turn:
                                await transaction.order(event.event_id)

                    await asyncio.gather(*map(step, sagas))
                await transaction.commit()
            ids = [row.event_id for row in await self.rows(place)]
            assert await self.orders(place) == sorted(ids)
            for events in sagas:
                assert [each for each in ids if each in {event.event_id for event in events}] == [
                    event.event_id for event in events
                ]
            assert len(ids) == sum(map(len, sagas))
            await outbox.close()

        asyncio.run(main())

    def test_only_a_connection_in_a_transaction_can_be_handed_over(self, place: Any) -> None:
        """What is no connection, or has no transaction open, is refused where it is handed over."""

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.open()
            with pytest.raises(TypeError, match="got a str; allowed: one of a"):
                async with outbox.using("connection"):
                    pass
            async with self.transaction(place) as transaction:
                await transaction.commit()
                with pytest.raises(ValueError, match="no transaction is open"):
                    async with outbox.using(transaction.connection):
                        pass
            await outbox.close()

        asyncio.run(main())

    def test_after_the_transaction_events_are_committed_by_themselves(self, place: Any) -> None:
        """A write that comes after the commit, or from a task that outlives the block, touches no connection of others."""
        events = a_run("order-1")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.open()
            over = asyncio.Event()

            async def late() -> None:
                await over.wait()
                await outbox.append([events[2]])

            async with self.transaction(place) as transaction:
                async with outbox.using(transaction.connection):
                    await outbox.append([events[0]])
                    task = asyncio.create_task(late())
                    await transaction.commit()
                    await outbox.append([events[1]])
                over.set()
                await task
                await outbox.append([events[3]])
                assert [row.event_id for row in await self.rows(place)] == [event.event_id for event in events]
            await outbox.close()

        asyncio.run(main())

    def test_transactions_side_by_side_do_not_mix(self, place: Any) -> None:
        """Each task's events go through the connection that was handed over around it, an inner one before an outer."""
        one, two = a_run("order-1"), a_run("order-2")

        async def main() -> None:
            outbox, other = self.outbox(place), self.outbox(place)
            await outbox.open()
            async with self.transaction(place) as transaction:
                async with outbox.using(transaction.connection), outbox.using(transaction.connection):
                    await outbox.append(one)
                await transaction.roll_back()
                async with asyncio.timeout(10):
                    await other.append(two)
            assert [row.event_id for row in await self.rows(place)] == [event.event_id for event in two]
            await asyncio.gather(outbox.close(), other.close())

        asyncio.run(main())

    def test_services_that_start_at_once_make_one_table(self, place: Any) -> None:
        """Each opens, whoever makes the table; and each closes twice, and writes again after that."""

        async def main() -> None:
            services = [self.outbox(place) for _ in range(6)]
            await asyncio.gather(*(service.open() for service in services))
            events = [make_event() for _ in services]
            await asyncio.gather(*(s.append([event]) for s, event in zip(services, events, strict=True)))
            for service in services:
                await service.close()
                await service.close()
            await services[0].append([make_event()])
            assert len(await self.rows(place)) == len(services) + 1
            await services[0].close()

        asyncio.run(main())

    def test_without_its_table_a_write_may_succeed_later(self, place: Any) -> None:
        """A migration that has still to run is no fault of the events."""

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.open()
            await self.query(place, "ALTER TABLE sagascope_outbox RENAME TO away")
            with pytest.raises(DeliveryError) as caught:
                await outbox.append([make_event()])
            assert not isinstance(caught.value, PermanentError)
            await self.query(place, "ALTER TABLE away RENAME TO sagascope_outbox")
            await outbox.append([make_event()])
            assert len(await self.rows(place)) == 1
            await outbox.close()

        asyncio.run(main())

    @pytest.mark.parametrize("seed", range(4))
    def test_relays_side_by_side_keep_each_sagas_order(self, place: Any, seed: int) -> None:
        """However relays claim, fail and release at once: every event is sent, and each saga's in order."""
        chance = random.Random(seed)
        sagas = [a_run(f"order-{n}") for n in range(12)]
        written = [event for step in zip(*sagas, strict=True) for event in step]
        order = {event.event_id: n for n, event in enumerate(written)}
        sent: defaultdict[bytes, list[int]] = defaultdict(list)

        async def relay(outbox: OutboxStorage, worker: str) -> None:
            while sum(map(len, sent.values())) < len(written):
                claimed = await outbox.claim(worker, limit=chance.randint(1, 9))
                keep = chance.randint(0, len(claimed))
                broken: set[bytes] = {each.key for each in claimed[keep:]}  # nothing of a saga after one that failed
                done = [each for each in claimed[:keep] if each.key not in broken]
                for each in done:
                    sent[each.key].append(order[each.event_id])
                await outbox.mark_sent(worker, [each.event_id for each in done])
                await outbox.release(worker, [each.event_id for each in claimed if each not in done], "broker away")

        async def main() -> None:
            outboxes = [self.outbox(place) for _ in range(3)]
            await outboxes[0].append(written)
            async with asyncio.timeout(60):
                await asyncio.gather(*(relay(outbox, f"relay-{n}") for n, outbox in enumerate(outboxes)))
            assert all(positions == sorted(positions) for positions in sent.values())
            assert sorted(n for positions in sent.values() for n in positions) == list(range(len(written)))
            assert {row.status for row in await self.rows(place)} == {"sent"}
            await asyncio.gather(*(outbox.close() for outbox in outboxes))

        asyncio.run(main())

    def test_a_claim_holds_until_its_lease_ends(self, place: Any) -> None:
        """Nobody gets what another has claimed, or later events of its saga; after the lease anybody, and the late one learns it."""
        one, two = a_run("order-1"), a_run("order-2")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append(one + two)
            ids = [event.event_id for event in one]
            assert [each.event_id for each in await outbox.claim("a", limit=2)] == ids[:2]
            assert {each.event_id for each in await outbox.claim("b")} == {event.event_id for event in two}
            again = await outbox.claim("c", lease_seconds=0.0)
            assert [each.event_id for each in again if each.event_id in ids] == ids
            assert again[0].attempts == 2
            assert await outbox.mark_sent("a", ids[:2]) == 0
            assert await outbox.mark_sent("c", ids) == len(ids)
            assert await outbox.mark_sent("c", ids) == 0
            await outbox.close()

        asyncio.run(main())

    def test_a_dead_event_holds_up_no_other(self, place: Any) -> None:
        """What is given up is kept with its reason and never claimed; later events of its saga are."""
        events = a_run("order-1")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append(events)
            (first,) = await outbox.claim("relay", limit=1)
            assert await outbox.mark_dead("relay", [first.event_id], "too large") == 1
            assert [each.event_id for each in await outbox.claim("relay")] == [event.event_id for event in events[1:]]
            buried = (await self.rows(place))[0]
            assert (buried.status, buried.last_error) == ("dead", "too large")
            await outbox.close()

        asyncio.run(main())
