"""How fast the analytics job drains a topic, against reading the same topic and throwing it away, in the same run.

    python bench/drain.py [--events 3000000] [--repeat 5] [--cold | --warm | --both] [--contenders a,b | --parts]
        [--keep] [--json FILE]

What is compared, on a broker of its own with synthetic events (`bench/synthesise.py`); by default baseline, job, dedup:

- baseline: Flink's own Kafka connector and JSON format, every column, into a blackhole: fetch, parse all fields,
  compute event time and watermarks, throw away;
- source: the job's own connector, every column, without deduplication, into a blackhole;
- events: the same connector, and of the job's statements only those that write `events` and `rejected_events`;
- job: all statements of the job, without deduplication, committed every 5 s;
- dedup: the job as it is by default: each event id once within an hour of event time;
- dedup-rocksdb: the same with its state in RocksDB, checkpoints incremental; there each event rewrites the ids of its
  key, ever more of them, so that it takes a small load: `--events 300000`;
- sql-dedup, sql-dedup-rocksdb: Flink SQL's own Deduplicate in the place of ours, forgetting after an hour of processing
  time, that is nothing; on the heap it needs `--heap 6g` for 10 million events;
- variant, where asked for: dedup with `--option KEY=VALUE` of Flink or `--table-property KEY=VALUE` of Iceberg.

Each run reads the whole topic, bounded, in a home of its own: an empty catalog, no checkpoint to resume from.
Cold: a new process and a new JVM each run. Warm: one process and one JVM, one warm-up of each, then in turns; the mini
cluster is new each run, because PyFlink makes one a job.

What is measured of a run: wall time from the moment the job is accepted, planned and initialised until it is FINISHED,
its last commit included ("run"); CPU seconds of the Python process and its JVM while it runs, those of the broker apart,
and those of everything else on the machine, which should be none; the largest checkpoint ("state"); the highest resident
size that the JVM ever had, in a warm series by any contender. A ratio is that of neighbouring runs.

What is checked: into a blackhole: each partition was read to its end; else: every record is in `events` once, none in
`rejected_events`, and each statistic holds as many steps, sagas and milliseconds as were synthesised. Anything else:
exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.flink_runs import CONTENDERS, Contender, Run, Task
from bench.synthesise import Load, Truth, fill_topic
from pipelines import processes, stack
from warehouse.settings import CHECKOUT, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

HOME = CHECKOUT / ".sagascope" / "bench"
FLINK_RUNS = Path(__file__).with_name("flink_runs.py")
BYTES_PER_EVENT = 1_000
"""On the disk, with room to spare: the record, its row, state, and what is written before the last run's is deleted."""
QUIET_SECONDS = 600.0

DEFAULT = "baseline,job,dedup"

Mode = Literal["cold", "warm"]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one mode, in order, warm-ups left out."""

    mode: Mode
    load_before: float
    """The machine's 1-minute load."""
    runs: list[Run] = []

    def of(self, contender: str, value: Callable[[Run], float]) -> list[float]:
        """The values of a contender's runs."""
        return [value(run) for run in self.runs if run.contender == contender]


class DrainFailedError(RuntimeError):
    """A child process ended without its measurements."""


def measure(
    mode: Mode, turn: Sequence[Contender], repeat: int, task: Task, on_run: Callable[[Run], None]
) -> Iterator[Run]:
    """The contenders in turns, `repeat` times; warm-ups are told to `on_run` but not returned."""
    if mode == "cold":
        for contender in list(turn) * repeat:
            for run in _in_child(msgspec.structs.replace(task, contenders=(contender,))):
                on_run(run)
                yield run
    else:
        warm_ups = len(turn)
        for number, run in enumerate(_in_child(msgspec.structs.replace(task, contenders=tuple(turn) * (1 + repeat)))):
            on_run(run)
            if number >= warm_ups:
                yield run


def _in_child(task: Task) -> Iterator[Run]:
    """Run the task in a process of its own, which brings its JVM; its home is deleted at the end.

    Raises:
        DrainFailedError: it ended without a measurement for each of the contenders.
    """
    home = Path(task.home)
    log = home / "child.log"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    task = msgspec.structs.replace(task, spawned=time.monotonic())
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, FLINK_RUNS, msgspec.json.encode(task).decode()],
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C reaches us, and we stop it
        )
    process, runs = psutil.Process(child.pid), 0
    try:
        assert child.stdout  # noqa: S101 - a pipe was asked for
        for line in child.stdout:
            if line.startswith(b'{"contender"'):  # PyFlink may say something too
                runs += 1
                yield msgspec.json.decode(line, type=Run)
        if child.wait() or runs != len(task.contenders):
            names = ", ".join(contender.name for contender in task.contenders)
            msg = f"a run of {names} failed; {log} ends:\n{processes.last_lines(log, 20)}"
            raise DrainFailedError(msg)
    finally:
        with suppress(psutil.NoSuchProcess):
            processes.stop(process, 10.0)
        child.wait()
    shutil.rmtree(home)


def _topic(settings: Settings, load: Load, console: Console) -> Truth:
    """Fill the topic, unless an earlier run with `--keep` did; returns what is in it."""
    known = _truth_file(settings)
    if known.exists():
        return msgspec.json.decode(known.read_bytes(), type=Truth)
    began = time.monotonic()
    truth = fill_topic(settings.bootstrap_servers, settings.topic, load)
    console.print(f"synthesised in {time.monotonic() - began:.0f} s", style="dim")
    known.write_bytes(msgspec.json.encode(truth))
    return truth


def _truth_file(settings: Settings) -> Path:
    """Written when the topic is full: without it, what is in the home is of no use."""
    return settings.root / "truth.json"


def _await_quiet(below: float | None, deadline: float, console: Console) -> float:
    """Wait for the machine's 1-minute load to fall, or for the deadline; returns the load."""
    while below and os.getloadavg()[0] >= below and time.monotonic() < deadline:
        time.sleep(5.0)
    load = os.getloadavg()[0]
    console.print(f"load {load:.2f}", style="dim" if not below or load < below else "yellow")
    return load


def _told(console: Console, mode: Mode, checked: list[Run]) -> Callable[[Run], None]:
    def tell(run: Run) -> None:
        checked.append(run)
        console.print(
            f"{mode} {run.contender:17} {run.run_seconds:6.1f} s  {run.events / run.run_seconds / 1000:4.0f} K/s  "
            f"{run.cpu_seconds / run.events * 1e6:5.1f} CPU s/M  others {run.other_cpu_seconds / run.run_seconds:4.0%}  "
            + ("; ".join(run.faults) if run.faults else "counts right"),
            style="bold red" if run.faults else "dim",
            highlight=False,
        )

    return tell


def table(events: int, contenders: Sequence[Contender], all_series: Iterable[Series]) -> Table:
    """The medians, each with least and most, and below them the ratios; at most 100 columns wide."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("", no_wrap=True)
    for heading in ("run s", "K events/s", "CPU s per M", "broker", "state MiB", "JVM MiB", "others"):
        shown.add_column(heading, justify="right", no_wrap=True)
    million = events / 1e6
    for series in all_series:
        measured = {run.contender for run in series.runs}  # none, where the first run failed
        for contender in (contender for contender in contenders if contender.name in measured):
            name = contender.name
            shown.add_row(
                f"{series.mode} {name}",
                f"{statistics.median(series.of(name, lambda run: run.run_seconds)):.1f}",
                _spread(series.of(name, lambda run: events / run.run_seconds / 1000), ".0f"),
                _spread(series.of(name, lambda run: run.cpu_seconds / million)),
                f"{statistics.median(series.of(name, lambda run: run.broker_cpu_seconds / million)):.2f}",
                f"{max(series.of(name, lambda run: run.state_bytes)) / 2**20:,.1f}",
                f"{max(series.of(name, lambda run: run.jvm_peak_bytes)) / 2**20:,.0f}",
                f"{statistics.median(series.of(name, lambda run: run.other_cpu_seconds / run.run_seconds)):.0%}",
            )
            for of in contender.against:
                if of in measured:
                    shown.add_row(
                        f"  of {of}",
                        "",
                        _spread(_ratios(series, name, of, lambda run: 1 / run.run_seconds), ".2f"),
                        _spread(_ratios(series, name, of, lambda run: run.cpu_seconds), ".2f"),
                        style="bold",
                    )
        shown.add_section()
    return shown


def _ratios(series: Series, contender: str, of: str, value: Callable[[Run], float]) -> list[float]:
    """Each run's against that of its neighbour, which met the same machine."""
    pairs = zip(series.of(contender, value), series.of(of, value), strict=False)  # a series may have been cut short
    return [mine / its for mine, its in pairs]


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        msg = f"{text!r} is not KEY=VALUE"
        raise argparse.ArgumentTypeError(msg)
    return key, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench/drain.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=3_000_000, help="default 3,000,000")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each contender and mode; default 5")
    parser.add_argument("--seed", type=int, default=7)
    modes = parser.add_mutually_exclusive_group()
    for name, chosen in {"cold": ["cold"], "warm": ["warm"], "both": ["cold", "warm"]}.items():
        modes.add_argument(f"--{name}", dest="modes", action="store_const", const=chosen)
    parser.set_defaults(modes=["cold", "warm"])
    chosen_by = parser.add_mutually_exclusive_group()
    chosen_by.add_argument("--contenders", default=DEFAULT, metavar="A,B", help=f"default {DEFAULT}")
    chosen_by.add_argument(
        "--parts", dest="contenders", action="store_const", const=",".join(CONTENDERS), help="all contenders"
    )
    parser.add_argument("--keep", action="store_true", help="keep the topic for another run of as many events and seed")
    parser.add_argument("--heap", default="1g", help="of Flink's JVM; default 1g, as the job's")
    parser.add_argument("--option", type=_pair, action="append", default=[], help="of Flink, for the variant")
    parser.add_argument("--table-property", type=_pair, action="append", default=[], help="of Iceberg, for the variant")
    parser.add_argument("--quiet", type=float, metavar="LOAD", help="before each series wait for such a 1-minute load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's measurements there")
    given = parser.parse_args()
    if given.events < 1 or given.repeat < 1:
        parser.error("--events and --repeat: 1 or more")
    if unknown := set(given.contenders.split(",")) - set(CONTENDERS):
        parser.error(f"--contenders: got {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    return given


def _turn(given: argparse.Namespace) -> list[Contender]:
    """Who takes turns."""
    turn = [contender for name, contender in CONTENDERS.items() if name in given.contenders.split(",")]
    if given.option or given.table_property:
        turn.append(
            msgspec.structs.replace(
                CONTENDERS["dedup"],
                name="variant",
                options=dict(given.option),
                table_properties=dict(given.table_property),
                against=("dedup",),
            )
        )
    return turn


def _task(settings: Settings, truth: Truth, broker_pid: int, given: argparse.Namespace) -> Task:
    """What is the same for all children."""
    return Task(
        home=str(settings.root / "flink"),
        bootstrap_servers=settings.bootstrap_servers,
        topic=settings.topic,
        events=truth.events,
        expected={
            "rows": truth.events,
            "distinct records": truth.events,
            "rejected": 0,
            "completed": truth.completed,
            "failed": truth.failed,
            "milliseconds": truth.duration_ms,
            "sagas started": truth.sagas_started,
            "sagas ended": truth.sagas_ended,
            "sagas' milliseconds": truth.total_duration_ms,
            "durations": truth.completed + truth.failed,
        },
        broker_pid=broker_pid,
        heap=given.heap,
        contenders=(),
        spawned=0.0,
    )


def _clean_up(settings: Settings, *, keep: bool) -> None:
    stack.down(settings)
    shutil.rmtree(settings.root / "flink", ignore_errors=True)
    if not keep:
        shutil.rmtree(settings.root)
    with suppress(OSError):  # another topic was kept
        HOME.rmdir()


def main() -> None:
    """Entry point."""
    given = _arguments()
    console = Console(width=100)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # importing sagaz has configured logging, at INFO
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the broker is stopped then too
    if (free := shutil.disk_usage(CHECKOUT).free) < given.events * BYTES_PER_EVENT:
        sys.exit(f"drain: {free / 2**30:.1f} GiB free, {given.events * BYTES_PER_EVENT / 2**30:.1f} needed")
    load = Load(events=given.events, seed=given.seed)
    topic = f"drain-{load.events}-{load.events_per_second:.0f}-{load.seed}"
    settings = Settings(home=str(HOME / topic), topic=topic, partitions=load.partitions)
    if not _truth_file(settings).exists():
        stack.down(settings)
        shutil.rmtree(settings.root, ignore_errors=True)
    settings.root.mkdir(parents=True, exist_ok=True)
    turn = _turn(given)
    all_series: list[Series] = []
    checked: list[Run] = []
    failure = ""
    try:
        broker = stack.up(settings)
        settings = msgspec.structs.replace(settings, bootstrap_servers=broker.bootstrap_servers)
        truth = _topic(settings, load, console)
        console.print(
            f"{truth.events:,} events of {truth.value_bytes / truth.events:.0f} bytes, seed {load.seed}, "
            f"{load.partitions} partitions, {truth.hours:.2f} hours of event time; {truth.completed:,} steps completed, "
            f"{truth.failed:,} failed",
            highlight=False,
        )
        task = _task(settings, truth, broker.pid, given)
        deadline = time.monotonic() + QUIET_SECONDS
        for mode in given.modes:
            series = Series(mode=mode, load_before=_await_quiet(given.quiet, deadline, console))
            all_series.append(series)
            for run in measure(mode, turn, given.repeat, task, _told(console, mode, checked)):
                series.runs.append(run)
    except (DrainFailedError, stack.StackError) as error:
        failure = f"drain: {error}"  # what was measured before is still shown
    except KeyboardInterrupt:
        failure = "drain: stopped"
    finally:
        _clean_up(settings, keep=given.keep)
    console.print(table(load.events, turn, all_series))
    if given.json:
        facts = {"given": sys.argv[1:], "load": load, "series": all_series}
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
    faults = sum(bool(run.faults) for run in checked)
    console.print(
        f"counts right in {len(checked) - faults} of {len(checked)} runs, warm-ups among them",
        style="bold red" if faults else "green",
    )
    sys.exit(failure or (1 if faults else 0))


if __name__ == "__main__":
    main()
