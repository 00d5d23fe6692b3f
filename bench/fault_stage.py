"""Where `bench/faults.py` tries one kind of fault: a load, a job under it, and the count of what it leaves."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import psutil
from kafka import KafkaProducer

from pipelines import stack
from pipelines.analytics_process import AnalyticsProcess
from sagascope.events import EventType, SagaEvent, encode
from tests import oracle
from warehouse import history, parity
from warehouse.catalog import open_catalog, row_count
from warehouse.progress import read_progress
from warehouse.settings import Settings
from warehouse.tables import EVENTS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECOVER_SECONDS = 180.0
CLOSING_AHEAD_MS = 70_000
"""What the last events are ahead: more than a window of a minute and the watermark's delay, less than what is rejected."""
STEPS = (EventType.STEP_COMPLETED,) * 6 + (EventType.STEP_FAILED, EventType.COMPENSATION_COMPLETED)
SAGAS = (EventType.SAGA_STARTED, EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.STEP_STARTED)
SAID = frozenset({"restarting", "failing", "damaged", "waiting", "stalled", "gap"})
"""Statuses by which the job tells that something is wrong."""
MALFORMED = (
    *(b"not json", b"", None, b"\xff\xfe{}", b"[1]", b'{"event_id":7}', b'{"event_id":"x","event_type":"saga_paused"}'),
    *(b'{"event_id":', b"{" * 1_000_000),
)


class FaultsError(RuntimeError):
    """A kind could not be tried to its end; says what did not happen, and what the job said."""


class Verdict(NamedTuple):
    """What was counted after a kind."""

    events: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    examples: tuple[str, ...] = ()

    def plus(self, other: Verdict) -> Verdict:
        """Both together."""
        return Verdict(
            self.events + other.events,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.wrong + other.wrong,
            self.examples + other.examples,
        )


def judge(settings: Settings, topic: oracle.Topic, *, closed_only: bool, acknowledged: int = 0) -> Verdict:
    """Count what the tables hold against the topic; of statistics all windows, or those that are closed."""
    account = parity.audit(settings)
    until = min(read_progress(settings).closed.values(), default=None) if closed_only else None
    with history.open(settings) as tables:
        found = oracle.differences(tables, topic, settings.window_seconds, until)
    few = sum(int(line.split()[0]) for line in found if " too few: " in line)
    many = sum(int(line.split()[0]) for line in found if " too many: " in line)
    records = len(topic.events) + topic.duplicates + len(topic.rejected)
    return Verdict(
        events=len(topic.events),
        lost=max(few, sum(one.missing + one.lag for one in account.partitions)) + max(0, acknowledged - records),
        doubled=max(many, sum(one.doubled for one in account.partitions) + account.repeated_ids),
        wrong=sum(" too few: " not in line and " too many: " not in line for line in found)
        + sum(one.altered for one in account.partitions),
        examples=tuple(line[:300] for line in found[:5]),
    )


class Load(threading.Thread):
    """Writes `rate` events a second, with twins and malformed records among them, until it is stopped."""

    def __init__(self, settings: Settings, rate: float, seed: str) -> None:
        super().__init__(name="load", daemon=True)
        self._settings, self._rate, self._rng = settings, rate, random.Random(seed)
        self._producer: Any = KafkaProducer(
            bootstrap_servers=settings.bootstrap_servers, linger_ms=20, reconnect_backoff_max_ms=500
        )
        self._sent: list[Any] = []
        self.recent: deque[bytes] = deque(maxlen=500)
        self.paused, self._stopped = threading.Event(), threading.Event()

    @property
    def is_finished(self) -> bool:
        """It was told to stop."""
        return self._stopped.is_set()

    def run(self) -> None:
        """Until `finish`; a pause makes no backlog."""
        while not self._stopped.wait(1 / self._rate):
            if not self.paused.is_set():
                self.write(now_ms())

    def write(self, timestamp: int) -> None:
        """The next event, now and then with its twin or a malformed record after it."""
        value = self.event(timestamp)
        self.put(value)
        self.recent.append(value)
        if self._rng.random() < 0.1:
            self.put(self._rng.choice(self.recent))
        if self._rng.random() < 0.01:
            self.put(self._rng.choice(MALFORMED))

    def put(self, value: bytes | None, partition: int | None = None) -> None:
        """One record to a partition, else to one by chance."""
        partition = self._rng.randrange(self._settings.partitions) if partition is None else partition
        self._sent.append(self._producer.send(self._settings.topic, value, b"saga", partition=partition))

    def event(self, timestamp: int, kind: EventType | None = None) -> bytes:
        """One event at a moment, else all from the seed."""
        rng = self._rng
        kind = kind or rng.choice(STEPS + SAGAS)
        of_step, failed = kind not in SAGAS[:3], kind is EventType.STEP_FAILED
        return encode(
            SagaEvent(
                event_id=str(uuid.UUID(int=rng.getrandbits(128))),
                event_type=kind,
                saga_id=f"saga-{rng.randrange(1_000)}",
                saga_name=f"kind-{rng.randrange(3)}",
                run_id=f"run-{rng.randrange(10_000)}",
                sequence=rng.randrange(20),
                timestamp=timestamp,
                step_name=f"step-{rng.randrange(5)}" if of_step else None,
                duration_ms=int(rng.lognormvariate(4, 1)) if of_step and kind is not EventType.STEP_STARTED else None,
                total_duration_ms=rng.randrange(5_000) if not of_step else None,
                error_type="Planned" if failed else None,
                attributes={"region": rng.choice(("eu", "us"))},
            )
        )

    def finish(self) -> int:
        """Stop, and return how many records the broker has acknowledged."""
        self._stopped.set()
        if self.ident:
            self.join()
        self._producer.flush()
        self._producer.close()
        return sum(future.succeeded() for future in self._sent)


class Stage:
    """A topic, a home, a load and a job for one kind of fault.

    Args:
        broker: The settings that the broker was started with.
        home: Of the tables and the job.
        name: Of the kind.
        seed: Of the events and of the moments.
        rate: Events a second.
        changes: Of the settings.
    """

    def __init__(
        self, broker: Settings, home: Path, name: str, *, seed: int, rate: float, changes: dict[str, Any]
    ) -> None:
        self.broker, self.name = broker, name
        self.settings = msgspec.structs.replace(
            Settings(home=str(home), bootstrap_servers=stack.bootstrap_servers(broker), topic=f"faults-{name}"),
            **({"checkpoint_interval_ms": 1_000, "idle_timeout_ms": 60_000} | changes),
        )
        stack.make_topic(self.settings)
        self.catalog = open_catalog(self.settings)
        self.rng = random.Random(f"{seed}:{name}")
        self.load = Load(self.settings, rate, f"{seed}:{name}:load")
        self.job = AnalyticsProcess(self.settings)
        self.recovered: list[float] = []
        self.said: dict[str, int] = {}

    def begin(self) -> None:
        """Start load and job, and await its first commit."""
        self.load.start()
        self.job.start()
        self.recover(time.monotonic(), count=False)

    def start(self) -> None:
        """Start the job anew; what the one before said is noted."""
        self._listen()
        self.job = AnalyticsProcess(self.settings)
        self.job.start()

    def recover(self, began: float, *, count: bool = True) -> None:
        """Await a commit of events newer than this call; notes the seconds since `began`."""
        rows = self.rows()
        self.wait(lambda: self.rows() > rows, RECOVER_SECONDS, "no commit of new events")
        if count:
            self.recovered.append(time.monotonic() - began)

    def wait(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        """Await a condition; a job that ends meanwhile is started again, as whoever supervises it would.

        Raises:
            FaultsError: it did not come true in time.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                msg = f"{self.name}: {otherwise} within {seconds:.0f} s; the job: {self.job.failure()}"
                raise FaultsError(msg)
            if self.load.ident and not (self.load.is_alive() or self.load.is_finished):
                msg = f"{self.name}: the load has ended by itself, see its trace"
                raise FaultsError(msg)
            if self.job.exit_code() is not None:
                self.note(f"ended: {self.job.status().reason}")
                self.start()
            time.sleep(0.1)

    def jvm(self) -> psutil.Process:
        """The job's."""
        [jvm] = [child for child in psutil.Process(self.job.pid).children(recursive=True) if "java" in child.name()]
        return jvm

    def moment(self, seconds: float = 3.0) -> None:
        """Let some time go by, by chance."""
        time.sleep(self.rng.uniform(0, seconds))

    def settle(self) -> Verdict:
        """End the load, close all its windows, stop the job, and count."""
        for partition in range(self.settings.partitions):
            for kind in (EventType.STEP_COMPLETED, EventType.SAGA_COMPLETED):
                self.load.put(self.load.event(now_ms() + CLOSING_AHEAD_MS, kind), partition)
        acknowledged, last = self.load.finish(), datetime.now(UTC)
        self.wait(lambda: self._closed() > last, RECOVER_SECONDS, "the last windows were not stored")
        if (code := self.job.stop()) != 0:
            msg = f"{self.name}: the job's last stop ended with {code}: {self.job.failure()}"
            raise FaultsError(msg)
        self._listen()
        return judge(self.settings, oracle.read_topic(self.settings), closed_only=True, acknowledged=acknowledged)

    def close(self) -> None:
        """Whatever happened: end the job and its JVM."""
        with suppress(Exception):
            self.load.finish()
        self.job.stop()
        self.catalog.close()

    def rows(self) -> int:
        """Of `events`, by its newest snapshot."""
        return row_count(self.catalog, EVENTS)

    def _closed(self) -> datetime:
        closed = read_progress(self.settings, self.catalog).closed
        return min(closed.get(table.name, datetime.min.replace(tzinfo=UTC)) for table in STATISTICS)

    def _listen(self) -> None:
        """Note each stall that the job told of."""
        for line in self.job.log.read_bytes().splitlines() if self.job.log.exists() else ():
            with suppress(msgspec.DecodeError):
                said = msgspec.json.decode(line)
                if isinstance(said, dict) and said.get("status") in SAID:
                    self.note(f"{said['status']}: {said.get('reason')}")

    def note(self, what: str) -> None:
        """Something that was said, to be told with how often."""
        self.said[what[:160]] = self.said.get(what[:160], 0) + 1


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
