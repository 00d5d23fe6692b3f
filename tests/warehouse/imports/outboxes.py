"""Real sagas of sagaz that write a real outbox, and what happened in them by what another listener of theirs was told."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import sagaz
from sagaz.core.hooks import publish_on_success

if TYPE_CHECKING:
    from pathlib import Path

Happened = dict[str, list[tuple[str, str | None]]]
"""Event type and step, by saga_id."""

PRIVATE = "visa-4111-for-ada@example.org"
"""A result's value: it leaves no service."""
UNCLASSIFIED = 3
"""Rows that `run_sagas` writes and that are none of the five shapes."""


class Witness(sagaz.SagaListener):  # type: ignore[misc] # sagaz has no types
    """Notes what the outbox is to tell."""

    def __init__(self) -> None:
        self.happened: Happened = {}

    def _note(self, ctx: Any, event_type: str, step: str | None = None) -> None:
        self.happened.setdefault(ctx["saga_id"], []).append((event_type, step))

    async def on_step_success(self, saga_name: str, step_name: str, ctx: Any, result: Any) -> None:
        self._note(ctx, "step_completed", step_name)

    async def on_step_failure(self, saga_name: str, step_name: str, ctx: Any, error: Exception) -> None:
        self._note(ctx, "step_failed", step_name)

    async def on_compensation_complete(self, saga_name: str, step_name: str, ctx: Any) -> None:
        self._note(ctx, "compensation_completed", step_name)

    async def on_saga_complete(self, saga_name: str, saga_id: str, ctx: Any) -> None:
        self._note(ctx, "saga_completed")

    async def on_saga_failed(self, saga_name: str, saga_id: str, ctx: Any, error: Exception) -> None:
        events = self.happened[saga_id]
        done = {step for kind, step in events if kind == "step_completed"}
        undone = {step for kind, step in events if kind == "compensation_completed"}
        self._note(ctx, "saga_failed" if done - undone else "saga_rolled_back")


async def run_sagas(storage: Any) -> Happened:
    """Run some: done, undone, partly undone, timed out, one that runs twice, names with dots, and a hook's own messages."""
    witness = Witness()
    both = [witness, sagaz.OutboxSagaListener(storage)]

    class Order(sagaz.Saga):  # type: ignore[misc]
        saga_name = "shop.pay"  # its own end reads like one of a step `pay` of saga `shop`
        listeners = both

        @sagaz.action("reserve", on_success=publish_on_success(storage, "stock.reserve.success"))  # type: ignore[untyped-decorator]
        async def reserve(self, ctx: Any) -> dict[str, Any]:
            return {"card": PRIVATE, "amount": 1234.5}

        @sagaz.compensate("reserve")  # type: ignore[untyped-decorator]
        async def release(self, ctx: Any) -> None:
            if ctx.get("stuck"):
                msg = "can't release"
                raise RuntimeError(msg)

        @sagaz.action("charge.v2", depends_on=["reserve"])  # type: ignore[untyped-decorator]
        async def charge(self, ctx: Any) -> None:
            if ctx.get("bad"):
                msg = f"no money on {PRIVATE}"
                raise ValueError(msg)

    class Check(sagaz.Saga):  # type: ignore[misc]
        saga_name = "shop"
        listeners = both

        @sagaz.action("pay")  # type: ignore[untyped-decorator]
        async def pay(self, ctx: Any) -> None:
            if ctx.get("bad"):
                raise TimeoutError  # without a word

    await Order().run({}, saga_id="o-done")
    for saga_id, context in (("o-undone", {"bad": 1}), ("o-stuck", {"bad": 1, "stuck": 1})):
        with suppress(ValueError):
            await Order().run(context, saga_id=saga_id)
    for context in ({"bad": 1}, {}):  # the same saga again
        await asyncio.sleep(0.002)  # events have milliseconds: two runs within one would have no order
        with suppress(TimeoutError):
            await Check().run(context, saga_id="c-again")
    return witness.happened


def move(file: Path, saga_id: str, moments: list[str]) -> None:
    """Set the times of a saga's rows in SQLite, in the order that they were written in."""
    with closing(sqlite3.connect(file)) as connection:
        ids = connection.execute(
            "SELECT event_id FROM outbox_events WHERE saga_id = ? ORDER BY rowid", (saga_id,)
        ).fetchall()
        for (event_id,), moment in zip(ids, moments, strict=True):
            connection.execute("UPDATE outbox_events SET created_at = ? WHERE event_id = ?", (moment, event_id))
        connection.commit()


def add_rows(file: Path, rows: list[tuple[str, str, str, str, str]]) -> None:
    """Add rows (event_id, saga_id, event_type, payload, created_at) to an outbox in SQLite, made if absent."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS outbox_events (event_id TEXT PRIMARY KEY, saga_id TEXT NOT NULL, event_type TEXT NOT NULL,"
            " payload TEXT NOT NULL, created_at TEXT NOT NULL)"
        )
        connection.executemany(
            "INSERT INTO outbox_events (event_id, saga_id, event_type, payload, created_at) VALUES (?, ?, ?, ?, ?)",
            rows,
        )
        connection.commit()


def saga_rows(number: int, day: str) -> list[tuple[str, str, str, str, str]]:
    """The three rows of a saga of two steps that succeeds at noon of a day."""
    saga_id = f"s{number}-{day}"
    rows = [
        ("order.reserve.success", '{"step": "reserve", "result": {"card": "1"}}'),
        ("order.charge.success", '{"step": "charge", "result": {}}'),
        ("order.completed", f'{{"saga_id": "{saga_id}", "status": "completed"}}'),
    ]
    return [
        (f"{saga_id}-{n}", saga_id, event_type, payload, f"{day}T12:00:0{n}.000000+00:00")
        for n, (event_type, payload) in enumerate(rows)
    ]
