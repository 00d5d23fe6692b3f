"""What the live tables cost: reading an hour, then a commit a second at 1,000 events/s, a frame twice a second.

    python bench/live.py [--rate 1000] [--seconds 120] [--kinds 6]

Tables of their own, written through PyIceberg at an even pace of event time by a clock of their own, as fast as it goes: an
hour at once, then a commit for each second. Sagas of ten events last 0.5 to 30 s, one in a thousand never ends.

Prints how long the first reading took; then of each second the CPU ms of `refresh` (which reads that commit) and of a
frame, and what a frame's JSON weighs; the memory before and after; and, as the baseline in the same run, the CPU ms of the
same numbers out of the whole history (`history.open` and three queries), with the ratio.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse import history
from warehouse.arrivals import IcebergSource
from warehouse.catalog import open_catalog
from warehouse.live import LiveTables
from warehouse.settings import Settings
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 4
EVENTS_A_SAGA = 2 + 2 * STEPS
BEGIN = datetime(2026, 11, 20, 12, tzinfo=UTC)
SCHEMA = schema_to_pyarrow(EVENTS.schema, include_field_ids=False)


def sagas(  # noqa: PLR0917 - a bench
    first: int, count: int, begin: datetime, seconds: float, kinds: int, rng: np.random.Generator
) -> pa.Table:
    """That many sagas which start within so many seconds; each of ten events, in order."""
    number = np.repeat(np.arange(first, first + count), EVENTS_A_SAGA)
    place = np.tile(np.arange(EVENTS_A_SAGA), count)
    total = np.repeat(rng.uniform(500, 30_000, count), EVENTS_A_SAGA)
    start = np.repeat(rng.uniform(0, seconds * 1000, count), EVENTS_A_SAGA)
    at = (begin.timestamp() * 1000 + start + total * place / (EVENTS_A_SAGA - 1)).astype(np.int64)
    failed = rng.random(len(number)) < 0.02
    kind = np.where(place % 2 == 1, 0, 1)
    types = np.array(["step_started", "step_completed", "step_failed", "saga_started", "saga_completed"], dtype=object)
    which = np.where(kind == 0, 0, np.where(failed, 2, 1))
    which = np.where(place == 0, 3, np.where(place == EVENTS_A_SAGA - 1, 4, which))
    step = np.where((place == 0) | (place == EVENTS_A_SAGA - 1), -1, (place - 1) // 2)
    names = np.array([f"step-{n}" for n in range(STEPS)] + [None], dtype=object)
    durations = rng.lognormal(5, 1, len(number)).astype(np.int64)
    ended = (which == 1) | (which == 2)
    columns: dict[str, Any] = {
        "event_id": [f"e-{n}-{p}" for n, p in zip(number, place, strict=True)],
        "event_type": types[which],
        "saga_id": [f"saga-{n}" for n in number],
        "saga_name": [f"kind-of-saga-{n % kinds}" for n in number],
        "run_id": [f"run-{n}" for n in number],
        "sequence": place,
        "timestamp": pa.array(at * 1000).cast(pa.timestamp("us", "UTC")),
        "step_name": names[step],
        "attempt": np.ones(len(number), np.int32),
        "duration_ms": pa.array(durations, mask=~ended),
        "duration_derived": np.zeros(len(number), bool),
        "total_duration_ms": pa.array(total.astype(np.int64), mask=which != 4),
        "schema_version": np.ones(len(number), np.int32),
        "source_topic": ["t"] * len(number),
        "source_partition": np.zeros(len(number), np.int32),
        "source_offset": number * EVENTS_A_SAGA + place,
    }
    kept = ~((place == EVENTS_A_SAGA - 1) & (number % 1000 == 0))  # those never end
    arrays = [
        pa.array(columns[field.name], type=field.type, from_pandas=True)
        if field.name in columns
        else pa.nulls(len(number), field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA).filter(pa.array(kept))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU ms of this process, and what the action returned."""
    began = time.process_time()
    result = action()
    return (time.process_time() - began) * 1000, result


def by_history(settings: Settings, now: datetime) -> None:
    """About the same numbers of the last hour, out of the history."""
    with history.open(settings, since=now - timedelta(hours=1)) as tables:
        tables.sql("FROM step_statistics(span := NULL)").fetchall()
        tables.sql("FROM failure_rate(span := NULL)").fetchall()
        tables.sql("SELECT count(*) FROM open_runs").fetchall()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/live.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1_000, help="events a second; default 1,000")
    parser.add_argument("--seconds", type=int, default=120, help="commits, one a second of event time; default 120")
    parser.add_argument("--kinds", type=int, default=6, help="kinds of saga, of 4 steps each; default 6")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sagascope-live-"))
    try:
        measure(Settings(home=str(folder), topic="t"), given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(settings: Settings, given: argparse.Namespace) -> None:
    """Fill, follow, tell."""
    rng, a_second = np.random.default_rng(7), round(given.rate / EVENTS_A_SAGA)
    clock = [BEGIN]
    with closing(open_catalog(settings)) as catalog:
        table = catalog.load_table(EVENTS.identifier)
        later = SCHEMA.empty_table()

        def up_to(moment: datetime, rows: pa.Table) -> pa.Table:
            """The rows before the moment; the others are for later."""
            nonlocal later
            rows = pa.concat_tables([later, rows])
            due = pa.compute.less(rows["timestamp"], pa.scalar(moment, pa.timestamp("us", "UTC")))
            later = rows.filter(pa.compute.invert(due))
            return rows.filter(due)

        number = 0
        for minute in range(-60, 0):
            begin = BEGIN + timedelta(minutes=minute)
            table.append(up_to(begin + timedelta(minutes=1), sagas(number, a_second * 60, begin, 60, given.kinds, rng)))
            number += a_second * 60
        with closing(IcebergSource(settings, catalog)) as source:
            live = LiveTables(settings, source, lambda: clock[0])
            began = time.monotonic()
            cpu, _ = timed(live.refresh)
            print(
                f"first reading: {number * EVENTS_A_SAGA:,} events, {time.monotonic() - began:.1f} s, {cpu / 1000:.1f} s of CPU"
            )
            follow(
                live,
                clock,
                given,
                lambda moment, count: _commit(table, up_to, moment, count, given, rng),
                a_second,
                number,
            )
            live.close()
        cpu, _ = timed(lambda: by_history(settings, clock[0]))
        print(f"the same by the history: {cpu:,.0f} ms of CPU")


def _commit(  # noqa: PLR0917 - as above
    table: Any, up_to: Callable[..., pa.Table], moment: datetime, first: int, given: argparse.Namespace, rng: Any
) -> None:
    count = round(given.rate / EVENTS_A_SAGA)
    table.append(up_to(moment, sagas(first, count, moment - timedelta(seconds=1), 1, given.kinds, rng)))


def follow(  # noqa: PLR0917 - as above
    live: LiveTables,
    clock: list[datetime],
    given: argparse.Namespace,
    commit: Callable[[datetime, int], None],
    a_second: int,
    number: int,
) -> None:
    """A commit a second of event time, each read, with two frames and a page of running sagas."""
    spent: dict[str, list[float]] = {"refresh": [], "nothing new": [], "frame": [], "JSON": [], "running": []}
    weight = 0
    memory = psutil.Process().memory_info().rss
    for second in range(given.seconds):
        clock[0] = BEGIN + timedelta(seconds=second + 1)
        commit(clock[0], number)
        number += a_second
        spent["refresh"].append(timed(live.refresh)[0])
        spent["nothing new"].append(timed(live.refresh)[0])
        for _ in range(2):
            cpu, frame = timed(lambda: live.frame(clock[0]))
            spent["frame"].append(cpu)
            cpu, text = timed(partial(msgspec.json.encode, frame))
            spent["JSON"].append(cpu)
            weight = len(text)
        spent["running"].append(timed(lambda: live.running(limit=50))[0])
    print(f"{frame.active:,} sagas run; a frame is {weight / 1024:.0f} KB")
    for name, values in spent.items():
        p50, p95 = np.quantile(values, (0.5, 0.95))
        print(f"  {name}: CPU {p50:.1f} ms, p95 {p95:.1f} ms, worst {max(values):.1f} ms")
    a_second_of = np.mean(spent["refresh"]) + 2 * np.mean(spent["frame"]) + 2 * np.mean(spent["JSON"])
    print(f"  a second (a commit read, two frames): {a_second_of:.0f} ms of CPU, {a_second_of / 10:.1f} % of one core")
    print(f"memory: {memory >> 20} MB at first, {psutil.Process().memory_info().rss >> 20} MB after {given.seconds} s")


if __name__ == "__main__":
    main()
