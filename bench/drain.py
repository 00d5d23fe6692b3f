"""How fast the analytics job drains a topic, against reading the same topic and throwing it away, in the same run.

    python bench/drain.py [--events 3000000] [--repeat 5] [--cold | --warm | --both] [--keep] [--json FILE]

What is compared, on a broker of its own with synthetic events (`bench/synthesise.py`):

- baseline: the job's own source table, every column of it, into a blackhole: fetch, parse all fields, compute event
  time and watermarks, throw away;
- job: the job's own statements, `events` and `step_stats` into Iceberg tables, committed every 5 s;
- variant, where asked for: the job with `--option KEY=VALUE` of Flink or `--table-property KEY=VALUE` of Iceberg.

Each run reads the whole topic, bounded, in a home of its own: an empty catalog, no checkpoint to resume from.
Cold: a new process and a new JVM each run. Warm: one process and one JVM, one warm-up of each, then in turns; the mini
cluster is new each run, because PyFlink makes one a job.

What is measured of a run: wall time from the moment the job is accepted, planned and initialised until it is FINISHED,
its last commit included ("run"), and from the start of the process (warm: from the call) until then ("all"); CPU
seconds of the Python process and its JVM while it runs, those of the broker apart, and those of everything else on the
machine, which should be none; the highest resident size that the JVM ever had. A ratio is that of neighbouring runs.

What is checked: baseline: each partition was read to its end; job: every record is in `events` once, and `step_stats`
holds as many completed and failed steps and as many milliseconds as were synthesised. Anything else: exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.synthesise import Load, Truth, fill_topic
from pipelines import processes, stack
from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.settings import CHECKOUT, Settings
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

HOME = CHECKOUT / ".sagascope" / "bench"
BYTES_PER_EVENT = 600
"""On the disk, with room to spare: the record, its row, and what is written before the last run's rows are deleted."""
QUIET_SECONDS = 600.0
SETTLE_SECONDS = 2.0

Mode = Literal["cold", "warm"]
Contender = Literal["baseline", "job", "variant"]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process is to run, one after the other."""

    home: str
    bootstrap_servers: str
    topic: str
    truth: Truth
    broker_pid: int
    heap: str
    contenders: tuple[Contender, ...]
    options: dict[str, str]
    """Of Flink, for the variant."""
    table_properties: dict[str, str]
    """Of Iceberg, for the variant."""
    spawned: float
    """When, by the monotonic clock, which all processes of a machine share."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one drain."""

    contender: Contender
    run_seconds: float
    all_seconds: float
    cpu_seconds: float
    """Of the Flink process tree while the job ran."""
    all_cpu_seconds: float
    """Of it from its start on; warm: from the call on."""
    broker_cpu_seconds: float
    other_cpu_seconds: float
    """Of everything else on the machine, what the hypervisor took included, while the job ran."""
    jvm_peak_bytes: int
    facts: dict[str, int]
    """What was found in the tables, or in the log for the baseline."""
    faults: list[str]
    """What of it is wrong."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one mode, in order, warm-ups left out."""

    mode: Mode
    load_before: float
    """The machine's 1-minute load."""
    runs: list[Run]

    def of(self, contender: Contender, value: Callable[[Run], float]) -> list[float]:
        """The values of a contender's runs."""
        return [value(run) for run in self.runs if run.contender == contender]


class DrainFailedError(RuntimeError):
    """A child process ended without its measurements."""


# --- the child process: Flink --------------------------------------------------------------------------------------


class _Reading:
    """The clocks at one moment."""

    def __init__(self, broker_pid: int) -> None:
        me = psutil.Process()
        tree = [me, *me.children(recursive=True)]
        times = psutil.cpu_times()
        self.wall = time.monotonic()
        self.flink = sum(process.cpu_times().user + process.cpu_times().system for process in tree)
        broker = psutil.Process(broker_pid).cpu_times()
        self.broker = broker.user + broker.system
        self.machine = times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def run_task(task: Task) -> Iterator[Run]:
    """Drain the topic once for each contender of the task, in this process."""
    from jobs.flink import flink_log, prepare_jvm  # noqa: PLC0415 - only the child needs what leads to PyFlink

    settings = Settings(home=task.home, bootstrap_servers=task.bootstrap_servers, topic=task.topic)
    prepare_jvm(settings, heap=task.heap)
    log = flink_log(settings)
    for number, contender in enumerate(task.contenders):
        if number:
            _settle()
        own = msgspec.structs.replace(settings, home=str(settings.root / f"run-{number}"))
        began = _Reading(task.broker_pid) if number else None
        log_begins = log.stat().st_size if log.exists() else 0
        properties = task.table_properties if contender == "variant" else {}
        _make_tables(own, properties)
        client = _submit(own, contender, task.options if contender == "variant" else {})
        accepted = _Reading(task.broker_pid)
        client.get_job_execution_result().result()
        ended = _Reading(task.broker_pid)
        peak = _jvm_peak_bytes()
        with log.open("rb") as lines:
            lines.seek(log_begins)
            said = lines.read().decode("utf-8", "replace")
        facts = _read_to(said) if contender == "baseline" else _stored(own)
        shutil.rmtree(own.root)
        flink = ended.flink - accepted.flink
        broker = ended.broker - accepted.broker
        yield Run(
            contender=contender,
            run_seconds=ended.wall - accepted.wall,
            all_seconds=ended.wall - (began.wall if began else task.spawned),
            cpu_seconds=flink,
            all_cpu_seconds=ended.flink - (began.flink if began else 0.0),
            broker_cpu_seconds=broker,
            other_cpu_seconds=max(0.0, ended.machine - accepted.machine - flink - broker),
            jvm_peak_bytes=peak,
            facts=facts,
            faults=[
                f"{name}: {facts[name]:,}, expected {wanted:,}"
                for name, wanted in _expected(contender, task.truth).items()
                if facts[name] != wanted
            ],
        )


def _make_tables(settings: Settings, properties: dict[str, str]) -> None:
    """An empty catalog with the job's tables."""
    catalog = open_catalog(settings)
    for table in TABLES if properties else ():
        with catalog.load_table(table.identifier).transaction() as change:
            change.set_properties(properties)


def _submit(settings: Settings, contender: Contender, options: dict[str, str]) -> Any:
    """`jobs.analytics.submit`, bounded, but for what the contender is about; returns the job's client."""
    from pyflink.table import TableDescriptor  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

    from jobs import analytics  # noqa: PLC0415 - see above
    from jobs.flink import streaming_environment  # noqa: PLC0415 - see above

    environment = streaming_environment(settings)
    for key, value in options.items():
        environment.get_config().set(key, value)
    for sql in analytics.statements(settings, bounded=True):
        environment.execute_sql(sql)
    inserts = environment.create_statement_set()
    if contender == "baseline":
        # The sink takes the source's columns as they are, all of them: nothing for the planner to leave out.
        inserts.add_insert(TableDescriptor.for_connector("blackhole").build(), environment.from_path("saga_events"))
    else:
        for sql in analytics.insert_statements(settings):
            inserts.add_insert_sql(sql)
    return inserts.execute().get_job_client()


def _settle() -> None:
    """Let the last run's mini cluster go, and its garbage, so that the next one does not pay for them."""
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - see _submit

    time.sleep(SETTLE_SECONDS)
    get_gateway().jvm.System.gc()


def _jvm_peak_bytes() -> int:
    """The kernel's own high-water mark of this process's JVM: no sampling, nothing missed."""
    java = next(child for child in psutil.Process().children(recursive=True) if child.name() == "java")
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{java.pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _read_to(log: str) -> dict[str, int]:
    """A blackhole counts nothing; but the log says which split has which end, and which of them were read to it."""
    ends = dict(re.findall(r"Partition: (\S+), StartingOffset: -2, StoppingOffset: (\d+)\]", log))
    read = {
        split.strip()
        for splits in re.findall(r"Finished reading split\(s\) \[(.*?)\]", log)
        for split in splits.split(",")
    }
    return {"records read": sum(int(end) for split, end in ends.items() if split in read)}


def _stored(settings: Settings) -> dict[str, int]:
    with history.open(settings) as tables:
        rows, records = tables.sql(
            "SELECT count(*), count(DISTINCT source_partition * 1000000000000 + source_offset) FROM events"
        ).fetchall()[0]
        completed, failed, milliseconds, windows = tables.sql(
            "SELECT sum(completed), sum(failed), sum(avg_ms * (completed + failed)), count(DISTINCT window_start) FROM step_stats"
        ).fetchall()[0]
    return {
        "rows": rows,
        "distinct records": records,
        "completed": int(completed or 0),
        "failed": int(failed or 0),
        "milliseconds": round(milliseconds or 0.0),  # of a sum of doubles, exact enough for whole milliseconds
        "windows": windows,
    }


def _expected(contender: Contender, truth: Truth) -> dict[str, int]:
    if contender == "baseline":
        return {"records read": truth.events}
    return {
        "rows": truth.events,
        "distinct records": truth.events,
        "completed": truth.completed,
        "failed": truth.failed,
        "milliseconds": truth.duration_ms,
    }


# --- the parent process: broker, topic, children, table ------------------------------------------------------------


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
    _new_home(home)
    task = msgspec.structs.replace(task, spawned=time.monotonic())
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, __file__, "--task", msgspec.json.encode(task).decode()],
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
            msg = f"a run of {', '.join(task.contenders)} failed; {log} ends:\n{processes.last_lines(log, 20)}"
            raise DrainFailedError(msg)
    finally:
        with suppress(psutil.NoSuchProcess):
            processes.stop(process, 10.0)
        child.wait()
    shutil.rmtree(home)


def _new_home(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (home / "jars").symlink_to(CHECKOUT / ".sagascope" / "jars")


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


def _told(console: Console, mode: Mode, events: int) -> Callable[[Run], None]:
    def tell(run: Run) -> None:
        console.print(
            f"{mode} {run.contender:8} {run.run_seconds:6.1f} s  {events / run.run_seconds / 1000:4.0f} K/s  "
            f"{run.cpu_seconds / events * 1e6:5.1f} CPU s/M  others {run.other_cpu_seconds / run.run_seconds:4.0%}  "
            + ("; ".join(run.faults) if run.faults else "counts right"),
            style="bold red" if run.faults else "dim",
            highlight=False,
        )

    return tell


def table(events: int, all_series: Iterable[Series]) -> Table:
    """The medians, each with least and most; at most 100 columns wide."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("", no_wrap=True)
    for heading in ("run s", "K events/s", "CPU s per M", "all s", "broker", "JVM MiB", "others"):
        shown.add_column(heading, justify="right", no_wrap=True)
    million = events / 1e6
    for series in all_series:
        contenders = list(dict.fromkeys(run.contender for run in series.runs))
        for contender in contenders:
            shown.add_row(
                f"{series.mode} {contender}",
                _spread(series.of(contender, lambda run: run.run_seconds)),
                _spread(series.of(contender, lambda run: events / run.run_seconds / 1000), ".0f"),
                _spread(series.of(contender, lambda run: run.cpu_seconds / million)),
                f"{statistics.median(series.of(contender, lambda run: run.all_seconds)):.1f}",
                f"{statistics.median(series.of(contender, lambda run: run.broker_cpu_seconds / million)):.2f}",
                f"{max(series.of(contender, lambda run: run.jvm_peak_bytes)) / 2**20:,.0f}",
                f"{statistics.median(series.of(contender, lambda run: run.other_cpu_seconds / run.run_seconds)):.0%}",
            )
        for contender in contenders[1:]:
            of: Contender = "job" if contender == "variant" else "baseline"
            shown.add_row(
                f"  {contender} / {of}",
                "",
                _spread(_ratios(series, contender, of, lambda run: 1 / run.run_seconds), ".2f"),
                _spread(_ratios(series, contender, of, lambda run: run.cpu_seconds), ".2f"),
                style="bold",
            )
        shown.add_section()
    return shown


def _ratios(series: Series, contender: Contender, of: Contender, value: Callable[[Run], float]) -> list[float]:
    """Each run's against that of its neighbour, which met the same machine."""
    pairs = zip(series.of(contender, value), series.of(of, value), strict=True)
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
    parser.add_argument("--keep", action="store_true", help="keep the topic for another run of as many events and seed")
    parser.add_argument("--heap", default="1g", help="of Flink's JVM; default 1g, as the job's")
    parser.add_argument("--option", type=_pair, action="append", default=[], help="of Flink, for the variant")
    parser.add_argument("--table-property", type=_pair, action="append", default=[], help="of Iceberg, for the variant")
    parser.add_argument("--quiet", type=float, metavar="LOAD", help="before each series wait for such a 1-minute load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's measurements there")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.events < 1 or given.repeat < 1:
        parser.error("--events and --repeat: 1 or more")
    return given


def _run_child(task: Task) -> None:
    for run in run_task(task):
        sys.stdout.buffer.write(msgspec.json.encode(run) + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    """Entry point."""
    given = _arguments()
    if given.task:
        _run_child(msgspec.json.decode(given.task, type=Task))
        return
    console = Console(width=100)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the broker is stopped then too
    if (free := shutil.disk_usage(CHECKOUT).free) < given.events * BYTES_PER_EVENT:
        sys.exit(f"drain: {free / 2**30:.1f} GiB free, {given.events * BYTES_PER_EVENT / 2**30:.1f} needed")
    load = Load(events=given.events, seed=given.seed)
    topic = f"drain-{load.events}-{load.seed}"
    settings = Settings(home=str(HOME / topic), topic=topic, partitions=load.partitions)
    if not _truth_file(settings).exists():
        stack.down(settings)
        shutil.rmtree(settings.root)
    _new_home(settings.root)
    turn: list[Contender] = ["baseline", "job"]
    if given.option or given.table_property:
        turn.append("variant")
    all_series: list[Series] = []
    try:
        broker = stack.up(settings)
        settings = msgspec.structs.replace(settings, bootstrap_servers=broker.bootstrap_servers)
        truth = _topic(settings, load, console)
        console.print(
            f"{truth.events:,} events of {truth.value_bytes / truth.events:.0f} bytes, seed {load.seed}, "
            f"{load.partitions} partitions; {truth.completed:,} steps completed, {truth.failed:,} failed",
            highlight=False,
        )
        task = Task(
            home=str(HOME / "flink"),
            bootstrap_servers=broker.bootstrap_servers,
            topic=settings.topic,
            truth=truth,
            broker_pid=broker.pid,
            heap=given.heap,
            contenders=(),
            options=dict(given.option),
            table_properties=dict(given.table_property),
            spawned=0.0,
        )
        deadline = time.monotonic() + QUIET_SECONDS
        for mode in given.modes:
            load_before = _await_quiet(given.quiet, deadline, console)
            runs = list(measure(mode, turn, given.repeat, task, _told(console, mode, truth.events)))
            all_series.append(Series(mode=mode, load_before=load_before, runs=runs))
    except (DrainFailedError, stack.StackError) as error:
        sys.exit(f"drain: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        stack.down(settings)
        if not given.keep:
            shutil.rmtree(settings.root)
        with suppress(OSError):  # another topic was kept
            HOME.rmdir()
    console.print(table(truth.events, all_series))
    if given.json:
        given.json.write_bytes(
            msgspec.json.format(msgspec.json.encode({"load": load, "truth": truth, "series": all_series}))
        )
    faults = sum(bool(run.faults) for series in all_series for run in series.runs)
    checked = sum(len(series.runs) for series in all_series)
    console.print(f"counts right in {checked - faults} of {checked} runs", style="bold red" if faults else "green")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
