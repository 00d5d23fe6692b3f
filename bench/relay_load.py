"""The load of `bench/relay.py`: sagas whose events are committed to an outbox. As a script, at a rate: DSN RATE SECONDS."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid

import asyncpg

from sagascope import EventType, PostgresOutbox, SagaEvent

STEPS = 4
SAGAS_AT_ONCE = 50
KINDS = (
    EventType.SAGA_STARTED,
    *(kind for _ in range(STEPS) for kind in (EventType.STEP_STARTED, EventType.STEP_COMPLETED)),
    EventType.SAGA_COMPLETED,
)
CONNECTIONS, SERVICES = 8, 64


def events_of(number: int) -> list[SagaEvent]:
    """A saga of four steps: ten events, 350 bytes each as JSON."""
    run_id, saga_id = str(uuid.uuid4()), f"order-{number}-{uuid.uuid4().hex[:8]}"
    events = []
    for sequence, kind in enumerate(KINDS):
        step = f"step-{(sequence - 1) // 2}" if kind.value.startswith("step") else None
        events.append(
            SagaEvent(
                event_id=str(uuid.uuid4()),
                event_type=kind,
                saga_id=saga_id,
                saga_name="order-processing",
                run_id=run_id,
                sequence=sequence,
                step_name=step,
                duration_ms=17 if kind is EventType.STEP_COMPLETED else None,
                timestamp=time.time_ns() // 1_000_000,
                service="bench",
            )
        )
    return events


async def fill(dsn: str, count: int) -> None:
    """So many events, of fifty sagas at a time, side by side as services write them."""
    outbox = PostgresOutbox(dsn)
    for first in range(0, count // len(KINDS), SAGAS_AT_ONCE):
        sagas = [events_of(first + number) for number in range(SAGAS_AT_ONCE)]
        await outbox.append([event for step in zip(*sagas, strict=True) for event in step])
    await outbox.close()
    connection = await asyncpg.connect(dsn)
    await connection.execute("VACUUM ANALYZE sagascope_outbox")
    await connection.close()


async def write(dsn: str, rate: int, seconds: float) -> None:
    """Commit events at a rate, one step of a saga a transaction; print when each was committed."""
    outbox = PostgresOutbox(dsn, pool_size=CONNECTIONS)
    await outbox.open()
    committed: dict[str, float] = {}
    began = time.perf_counter()

    async def service(number: int) -> None:
        done = 0
        while (due := done * SERVICES / rate) < seconds:
            saga = events_of(number)
            for step in (saga[:2], *(saga[place : place + 2] for place in range(2, len(saga), 2))):
                due = done * SERVICES / rate
                await asyncio.sleep(max(0.0, due - (time.perf_counter() - began)))
                await outbox.append(step)
                now = time.time()
                committed.update((event.event_id, now) for event in step)
                done += len(step)

    await asyncio.gather(*(service(number) for number in range(SERVICES)))
    took = time.perf_counter() - began
    await outbox.close()
    print(json.dumps({"rate": len(committed) / took, "committed": committed}))


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
