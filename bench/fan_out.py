"""The fan-out: what sinks that misbehave cost the saga and the others, and what telling a listener costs.

    python bench/fan_out.py isolation [--seconds 60] [--pairs 5]     gates: changes of at most 5 %
    python bench/fan_out.py idle      [--events 1000000]             gates: at least 8 times asyncio.gather with wait_for
    python bench/fan_out.py span      [--events 300000]              beside opentelemetry-sdk's BatchSpanProcessor
    python bench/fan_out.py publish   [--events 200000]              what a saga waits for one event
    python bench/fan_out.py keyed     [--events 4000]                workers that keep each saga's order, against one

Each prints what it measured as a median of `--pairs` runs, baseline and contender in turn, with CPU seconds, and the
ratio. Exit code 1 where a gate is missed, or where a healthy sink got an event twice or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from sagascope import FanOut, Queued, saga_scope
from sagascope.events import EventType, SagaEvent, new_id
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

SAGAS_PER_SECOND = 150
STEPS = 3
HEALTHY_SECONDS = 0.002
"""What a healthy sink takes for a batch."""
STEP_SECONDS = 0.005
MOST_CHANGE = 0.05
LEAST_SPEED_UP = 8.0


class Sink(EventListener):
    """Takes `seconds` for each batch; notes the ids it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.taken: list[str] = []

    async def write(self, events: Sequence[SagaEvent]) -> None:
        await asyncio.sleep(self.seconds)
        self.taken += [event.event_id for event in events]


class Hung(EventListener):
    """Never answers."""

    async def write(self, events: Sequence[SagaEvent]) -> None:
        await asyncio.sleep(3600)


class Raising(EventListener):
    """Fails at once."""

    async def write(self, events: Sequence[SagaEvent]) -> None:
        msg = "planted"
        raise ConnectionError(msg)


class Counting(EventListener):
    """Takes everything, does nothing."""

    def __init__(self) -> None:
        self.count = 0

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.count += len(events)


class Isolation(NamedTuple):
    """One run of sagas."""

    latencies: list[float]
    """Seconds of each saga, its steps' own work included."""
    healthy: float
    """Events a second that each of the three healthy sinks took."""
    mebibytes: float
    cpu: float
    wrong: int
    """Events that a healthy sink has twice, or not at all."""
    counts: str


def isolation(arguments: argparse.Namespace) -> bool:
    """Six sinks: three healthy ones, and beside them three more healthy ones, or one hung, one raising, one 10x slow."""
    runs: dict[str, list[Isolation]] = {"healthy": [], "harmed": []}
    for pair in range(arguments.pairs):
        for name, sinks in (
            ("healthy", [Sink(HEALTHY_SECONDS) for _ in range(3)]),
            ("harmed", [Hung(), Raising(), Sink(10 * HEALTHY_SECONDS)]),
        ):
            run = asyncio.run(_sagas(sinks, arguments.seconds, random.Random(pair)))
            runs[name].append(run)
            print(
                f"  {name:8} saga p50 {_percentile(run.latencies, 50) * 1e3:7.2f} ms, p99 "
                f"{_percentile(run.latencies, 99) * 1e3:7.2f} ms; each healthy sink {run.healthy:8,.0f} events/s; "
                f"{run.mebibytes:6.1f} MiB more; CPU {run.cpu:5.1f} s; wrong {run.wrong}  {run.counts}",
                flush=True,
            )
    pairs = list(zip(runs["healthy"], runs["harmed"], strict=True))  # each pair ran one after the other
    latency = statistics.median(_percentile(h.latencies, 99) / _percentile(b.latencies, 99) for b, h in pairs) - 1
    throughput = statistics.median(h.healthy / b.healthy for b, h in pairs) - 1
    wrong = sum(run.wrong for each in runs.values() for run in each)
    print(
        f"saga p99 {latency:+.1%}, throughput of the healthy {throughput:+.1%}; at most ±{MOST_CHANGE:.0%}; wrong {wrong}"
    )
    return latency <= MOST_CHANGE and throughput >= -MOST_CHANGE and not wrong


async def _sagas(others: Sequence[EventListener], seconds: float, rng: random.Random) -> Isolation:
    healthy = [Sink(HEALTHY_SECONDS) for _ in range(3)]
    fan_out = FanOut([*healthy, *others])
    latencies: list[float] = []
    running: set[asyncio.Task[None]] = set()
    before, cpu, began = _resident(), time.process_time(), time.perf_counter()
    due, number = began, 0
    while due < began + seconds:  # open loop: a saga starts when it is due
        due += rng.expovariate(SAGAS_PER_SECOND)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(_saga(fan_out, f"saga-{number}", latencies))
        running.add(task)
        task.add_done_callback(running.discard)
        number += 1
    if running:
        await asyncio.wait(running)
    took = time.perf_counter() - began
    grown, spent = _resident() - before, time.process_time() - cpu
    while any(fan_out.counts[name].under_way for name in ("Sink", "Sink-2", "Sink-3")):  # noqa: ASYNC110 - at the end
        await asyncio.sleep(0.01)
    told = number * (2 + 2 * STEPS)
    wrong = sum(len(sink.taken) - len(set(sink.taken)) + abs(told - len(sink.taken)) for sink in healthy)
    counts = {name: each.dead_lettered + each.dropped for name, each in fan_out.counts.items()}
    await fan_out.aclose(timeout=0.0)
    return Isolation(latencies, told / took, grown, spent, wrong, f"given up: {counts}" if any(counts.values()) else "")


async def _saga(fan_out: FanOut, saga_id: str, latencies: list[float]) -> None:
    began = time.perf_counter()
    async with saga_scope(saga_id, "order", listeners=[fan_out]) as saga:
        await saga.started({"order_id": saga_id})
        for step in range(STEPS):
            await saga.step_started(f"step-{step}")
            await asyncio.sleep(STEP_SECONDS)
            await saga.step_completed(f"step-{step}")
        await saga.completed()
    latencies.append(time.perf_counter() - began)


class Speed(NamedTuple):
    """Deliveries, and what they took."""

    deliveries: int
    seconds: float
    cpu: float

    @property
    def per_core(self) -> float:
        """Deliveries a CPU second."""
        return self.deliveries / self.cpu


def idle(arguments: argparse.Namespace) -> bool:
    """Eight listeners that do nothing: the fan-out against asyncio.gather with a wait_for for each event."""

    async def gathered(number: int) -> int:
        sinks, event = [Counting() for _ in range(8)], _event()
        for _ in range(number):
            await asyncio.gather(*(asyncio.wait_for(sink.write((event,)), 1.0) for sink in sinks))
        return sum(sink.count for sink in sinks)

    async def fanned_out(number: int) -> int:
        sinks, event = [Counting() for _ in range(8)], _event()
        async with FanOut(sinks) as fan_out:
            for _ in range(number):
                await fan_out.write((event,))
        return sum(sink.count for sink in sinks)

    # the baseline is told a tenth: its cost an event does not depend on how many there are
    ratio = _compare(arguments, ("gather", gathered, arguments.events // 10), ("fan-out", fanned_out, arguments.events))
    print(f"{ratio:.1f} times the throughput; at least {LEAST_SPEED_UP:g}")
    return ratio >= LEAST_SPEED_UP


def span(arguments: argparse.Namespace) -> bool:
    """One listener that does nothing, beside a BatchSpanProcessor whose exporter does nothing: deliveries a CPU second."""
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: PLC0415 - of this bench alone
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult  # noqa: PLC0415

    class Null(SpanExporter):
        def __init__(self) -> None:
            self.count = 0

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.count += len(spans)
            return SpanExportResult.SUCCESS

    async def processed(number: int) -> int:
        exporter = Null()
        processor = BatchSpanProcessor(exporter)
        ended: Any = TracerProvider().get_tracer("bench").start_span("step")
        ended.end()
        for _ in range(number):
            processor.on_end(ended)
        processor.shutdown()  # type: ignore[no-untyped-call] # the SDK leaves it without types
        return exporter.count

    async def fanned_out(number: int) -> int:
        sink, event = Counting(), _event()
        async with FanOut([sink]) as fan_out:
            for _ in range(number):
                await fan_out.write((event,))
        return sink.count

    _compare(
        arguments,
        ("BatchSpanProcessor", processed, arguments.events),
        ("fan-out", fanned_out, arguments.events),
        by=lambda speed: speed.per_core,
        unit="deliveries a CPU second",
    )
    return True


def publish(arguments: argparse.Namespace) -> bool:
    """What a saga waits for one event to be told to eight queued listeners that take it all."""

    async def told(number: int) -> list[float]:
        event, waits = _event(), []
        async with FanOut([Queued(Counting()) for _ in range(8)]) as fan_out:
            for n in range(number):
                began = time.perf_counter()
                await fan_out.write((event,))
                waits.append(time.perf_counter() - began)
                if not n % 100:
                    await asyncio.sleep(0)  # the sagas have work of their own
        return waits

    runs = [asyncio.run(told(arguments.events)) for _ in range(arguments.pairs)]
    for percent in (50, 99, 99.9):
        values = sorted(_percentile(run, percent) * 1e6 for run in runs)
        print(f"  p{percent:<5} {statistics.median(values):8.1f} µs ({values[0]:.1f}-{values[-1]:.1f})")
    return True


def keyed(arguments: argparse.Namespace) -> bool:
    """A sink of 0-5 ms a message, 1,000 sagas: a hundred workers that keep each saga's order, against one."""

    async def with_workers(number: int, workers: int) -> int:
        rng, taken = random.Random(7), dict[str, list[int]]()

        class Slow(EventListener):
            async def write(self, events: Sequence[SagaEvent]) -> None:
                for event in events:
                    await asyncio.sleep(rng.random() * 0.005)
                    taken.setdefault(event.saga_id, []).append(event.sequence)

        async with FanOut([Queued(Slow(), workers=workers, batch_size=1)]) as fan_out:
            for n in range(number):
                await fan_out.write([_event(f"saga-{n % 1000}", n // 1000)])
            await fan_out.aclose(timeout=600)
        if any(order != sorted(order) for order in taken.values()):
            sys.exit("a saga's order was lost")
        return sum(map(len, taken.values()))

    ratio = _compare(
        arguments,
        ("one worker", lambda number: with_workers(number, 1), arguments.events),
        ("100 workers", lambda number: with_workers(number, 100), arguments.events),
    )
    print(f"{ratio:.1f} times serial")
    return True


Contender = tuple[str, "Callable[[int], Coroutine[Any, Any, int]]", int]


def _compare(
    arguments: argparse.Namespace,
    baseline: Contender,
    contender: Contender,
    *,
    by: Callable[[Speed], float] = lambda speed: speed.deliveries / speed.seconds,
    unit: str = "deliveries/s",
) -> float:
    """Run both in turn; print medians and spreads; contender / baseline, median of the pairs' ratios."""
    speeds: dict[str, list[Speed]] = {baseline[0]: [], contender[0]: []}
    for _ in range(arguments.pairs):
        for name, run, number in (baseline, contender):
            began, cpu = time.perf_counter(), time.process_time()
            deliveries = asyncio.run(run(number))
            speeds[name].append(Speed(deliveries, time.perf_counter() - began, time.process_time() - cpu))
    for name, each in speeds.items():
        values = sorted(map(by, each))
        cpu = statistics.median(speed.cpu / speed.deliveries * 1e6 for speed in each)
        print(
            f"  {name:20} {statistics.median(values):12,.0f} {unit} ({values[0]:,.0f}-{values[-1]:,.0f}), "
            f"CPU {cpu:.2f} s per M deliveries, delivered {each[0].deliveries:,}"
        )
    ratio = statistics.median(by(c) / by(b) for b, c in zip(*speeds.values(), strict=True))
    print(f"  ratio {ratio:.2f}")
    return ratio


def _event(saga_id: str = "saga-1", sequence: int = 1) -> SagaEvent:
    return SagaEvent(
        event_id=new_id(),
        event_type=EventType.STEP_COMPLETED,
        saga_id=saga_id,
        saga_name="order",
        run_id=new_id(),
        sequence=sequence,
        timestamp=1_780_000_000_000,
        step_name="pay",
        duration_ms=12,
    )


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _resident() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


BENCHES: dict[str, tuple[Callable[[argparse.Namespace], bool], int]] = {
    "isolation": (isolation, 0),
    "idle": (idle, 1_000_000),
    "span": (span, 300_000),
    "publish": (publish, 200_000),
    "keyed": (keyed, 4_000),
}


def main() -> None:
    """Run one bench; exit code 1 where its gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--events", type=int)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    run, events = BENCHES[arguments.bench]
    arguments.events = arguments.events or events
    logging.disable(logging.ERROR)  # what the planted faults say is not what is measured
    print(arguments.bench, "-", (run.__doc__ or "").splitlines()[0])
    passed = run(arguments)
    print(f"peak resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
