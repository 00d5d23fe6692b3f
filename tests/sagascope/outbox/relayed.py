"""The laws of every outbox's storage that a relay relies on besides; a test class to inherit from."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run
from tests.sagascope.outbox.behaviour import OutboxBehaviour


class RelayedBehaviour(OutboxBehaviour):
    """What becomes of dead and of sent events, and what waits."""

    def test_what_follows_a_dead_event_waits_for_it_or_not(self, place: Any) -> None:
        """A claim that holds back gives nothing after a dead event of its saga, and all of every other saga."""
        broken, other = a_run("broken"), a_run("other")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append([event for pair in zip(broken, other, strict=True) for event in pair])
            claimed = await outbox.claim("relay")
            await outbox.mark_sent("relay", [broken[0].event_id])
            await outbox.mark_dead("relay", [broken[1].event_id], "too large")
            await outbox.release("relay", [each.event_id for each in claimed])
            held = await outbox.claim("relay", past_dead=False)
            assert [each.event_id for each in held] == [event.event_id for event in other]
            assert await outbox.claim("relay", past_dead=False) == []
            passed = await outbox.claim("relay")
            assert [each.event_id for each in passed] == [event.event_id for event in broken[2:]]
            await outbox.close()

        asyncio.run(main())

    def test_a_dead_event_is_shown_and_dealt_with(self, place: Any) -> None:
        """One that is retried comes again before what follows; one that is discarded is gone, and blocks nothing."""
        runs = [a_run("order-1"), a_run("order-2")]

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append([event for run in runs for event in run])
            ids = [each.event_id for each in await outbox.claim("relay")]
            for run in runs:
                await outbox.mark_dead("relay", [run[0].event_id], f"{run[0].saga_id} is too large")
            await outbox.release("relay", ids)
            backlog = await outbox.backlog()
            assert backlog._replace(lag_seconds=0) == (6, 0, 2, 6)
            assert 0 < backlog.lag_seconds < 60
            first, second = await outbox.parked()
            assert (first.event_id, first.saga_id, first.reason) == (
                runs[0][0].event_id,
                "order-1",
                "order-1 is too large",
            )
            assert first.attempts == 1
            assert first.created_at.startswith("20")
            assert await outbox.parked(saga_id="order-2") == [second]
            assert await outbox.retry_parked([first.event_id, runs[0][1].event_id]) == 1
            assert await outbox.discard_parked([second.event_id, runs[0][1].event_id]) == 1
            claimed = await outbox.claim("relay", past_dead=False)
            assert [each.event_id for each in claimed] == [event.event_id for event in runs[0] + runs[1][1:]]
            assert (await outbox.backlog())._replace(lag_seconds=0) == (7, 0, 0, 0)
            await outbox.mark_sent("relay", [each.event_id for each in claimed])
            assert await outbox.backlog() == (0, 0, 0, 0)
            await outbox.close()

        asyncio.run(main())

    def test_only_what_was_sent_long_ago_is_purged(self, place: Any) -> None:
        """As many as allowed at a time; what waits or is dead stays however old it is."""
        sent, kept = a_run("sent"), a_run("kept")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append(sent)
            await outbox.mark_sent("relay", [each.event_id for each in await outbox.claim("relay")])
            await outbox.append(kept)
            assert await outbox.purge(older_than_seconds=60) == 0
            assert await outbox.purge(older_than_seconds=0, limit=3) == 3
            assert await outbox.purge(older_than_seconds=0, limit=3) == 1
            assert [row.event_id for row in await self.rows(place)] == [event.event_id for event in kept]
            await outbox.close()

        asyncio.run(main())

    def test_a_row_that_cannot_be_read_is_dead(self, place: Any) -> None:
        """Somebody has written into the table: that row alone is given up, and says why."""
        events = a_run("order-1")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append(events)
            await self.query(
                place, f"UPDATE sagascope_outbox SET headers = '[]' WHERE event_id = '{events[1].event_id}'"
            )
            claimed = await outbox.claim("relay")
            assert [each.event_id for each in claimed] == [event.event_id for event in (events[0], *events[2:])]
            assert [(one.event_id, "headers" in one.reason) for one in await outbox.parked()] == [
                (events[1].event_id, True)
            ]
            await outbox.close()

        asyncio.run(main())

    def test_a_crowd_of_busy_sagas_hides_no_other(self, place: Any) -> None:
        """However many events of a saga that is being sent come first, another saga's are found."""
        busy = [make_event(saga_id="busy", sequence=n) for n in range(300)]
        other = a_run("other")

        async def main() -> None:
            outbox = self.outbox(place)
            await outbox.append(busy + other)
            assert len(await outbox.claim("one", limit=1)) == 1
            claimed = await outbox.claim("two", limit=10)
            assert [each.event_id for each in claimed] == [event.event_id for event in other]
            await outbox.close()

        asyncio.run(main())
