"""The application's settings: one typed object, read from the environment by an entry point and passed in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SAGASCOPE_"
CHECKOUT = Path(__file__).resolve().parent.parent

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Days = Annotated[int, Meta(ge=1, le=36_500)]
KeptDays = Annotated[int, Meta(ge=0, le=36_500)]
Bytes = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,5} ?[KMGT]iB$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


def byte_count(size: str) -> int:
    """The bytes of a size like `4GiB`, `11.7 GiB` or `512MiB`.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(bytes|[KMGT]iB)", size)
    if match is None:
        msg = f"{size!r} is no size; write it like 512MiB or 4GiB"
        raise ValueError(msg)
    power = 0 if match[2] == "bytes" else 1 + "KMGT".index(match[2][0])
    return int(float(match[1]) * 1024**power)


class InvalidSettingError(ValueError):
    """A setting in the environment can't be used: names the variable, its value and what is allowed."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are and how the job computes. Each field is read from `SAGASCOPE_<FIELD>`."""

    home: str = str(CHECKOUT / ".sagascope")
    """Folder of all local state: broker data, catalog, tables, checkpoints, logs."""
    bootstrap_servers: str = ""
    """The Kafka to use, host:port; empty: the local one that `sagascope up` starts."""
    topic: Name = "saga-events"
    """The topic of the events."""
    definitions_topic: Name = "saga-definitions"
    """The compacted topic of the sagas' definitions."""
    partitions: Positive = 2
    """Partitions of the topic, where Sagascope creates it."""
    parallelism: Positive = 2
    """Subtasks of each operator of the job."""
    window_seconds: Positive = 10
    """Width of the windows of the statistics: a divisor of 3,600, because they are kept by the hour."""
    watermark_delay_ms: NotNegative = 5_000
    """How far behind the newest event of a partition another may come and still count in the statistics."""
    dedup_horizon_seconds: NotNegative = 3_600
    """How long, in event time, the job remembers an event id: a second record with it is dropped. 0: not at all."""
    idle_timeout_ms: NotNegative = 30_000
    """After how long without an event a partition no longer holds the windows back."""
    checkpoint_interval_ms: Positive = 5_000
    """How often the job commits: the freshness of the tables."""
    snapshots_kept_minutes: Positive = 60
    """For how long what was current stays readable: the longest that a query or the commit of a recompute may take."""
    target_file_mb: Positive = 128
    """Size of the files, in MiB, that compaction makes of small ones; those of three quarters of it or more stay as they are."""
    orphans_kept_hours: Positive = 24
    """How old a file that no snapshot names has to be before it is deleted: longer than any commit may be on its way."""
    events_kept_days: KeptDays = 0
    """So many whole days of `events`, besides today, are kept; at least `longest_run_days`. 0: all."""
    rejected_events_kept_days: KeptDays = 0
    """The same of `rejected_events`."""
    statistics_kept_days: KeptDays = 0
    """The same of each statistic. They may be kept for longer than the events that they were computed from."""
    longest_run_days: Days = 7
    """So many days before those asked for are read, too, for the beginnings of runs that ended within them."""
    sql_memory: Bytes = "4GiB"
    """What one query over the history may keep in memory, in KiB, MiB, GiB or TiB; never more than half of the machine's."""
    sql_disk: Bytes = "16GiB"
    """And, beyond it, on the disk while it runs; never more than half of what is free there."""
    redis_url: str = ""
    """The demo's sagas are told to this Redis, too; empty: to one at redis://127.0.0.1:6379/0, if it answers."""
    elasticsearch_url: str = ""
    """And to this Elasticsearch; empty: to one at http://127.0.0.1:9200, if it answers."""
    rabbitmq_url: str = ""
    """And to this RabbitMQ; empty: to one at amqp://guest:guest@127.0.0.1:5672/, if it answers."""
    fluss_servers: str = ""
    """And to this Fluss, host:port; empty: to one at 127.0.0.1:9123, if it answers."""
    webhook_url: str = ""
    """And the ends of its sagas are posted there; empty: nowhere."""
    webhook_secret: str = ""
    """What those posts are signed with."""
    targets_file: str = ""
    """YAML file of the targets that `sagascope report sla_compliance` judges by."""
    alert_url: str = ""
    """Where Dagster posts that a run failed, as JSON with `text`; empty: nowhere."""
    dashboard_token: str = ""
    """What `sagascope dashboard` demands of its viewers; without it only viewers on this machine are let in."""
    trace_url: str = ""
    """Where the dashboard's links to a trace lead: https://traces.example/trace/{trace_id}; empty: nowhere."""
    import_url: str = ""
    """Where Dagster imports sagaz's outbox from: postgresql://user:password@host/database, or the path of a SQLite file."""
    import_files: str = ""
    """What files of events Dagster imports: paths and patterns, parted by colons, of Parquet and JSON lines."""

    relay_from: str = ""
    """Where `sagascope relay` takes events: postgresql://user:password@host/database, sqlite:///path, or amqp://user:password@host/vhost."""
    relay_to: str = ""
    """Where it publishes them: kafka://host:port/topic or amqp://user:password@host/vhost; empty: to the Kafka and topic above."""
    relay_table: str = "sagascope_outbox"
    """The outbox's table, in PostgreSQL."""
    relay_batch_size: Annotated[int, Meta(ge=1, le=10_000)] = 2_000
    """So many events are claimed and published at a time."""
    relay_poll_ms: Positive = 1_000
    """How long the relay waits to be woken before it looks by itself."""
    relay_lease_seconds: Annotated[int, Meta(ge=30)] = 30
    """How long what a relay has claimed is its own: so long after a kill others take it over."""
    relay_parked: Literal["block", "pass"] = "block"
    """Whether an event that the broker will never take holds back what follows in its saga."""
    relay_retention_hours: NotNegative = 168
    """For how long an event that was sent stays in the outbox. 0: until it is next tidied."""
    relay_metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """Where the relay serves its metrics on the loopback interface; 0: nowhere."""

    def __post_init__(self) -> None:
        if strange := sorted(set(re.findall(r"[^A-Za-z0-9/._~+=@-]", str(self.root)))):
            msg = (
                f"{PREFIX}HOME={str(self.root)!r}: Kafka, Flink and Iceberg each read {' '.join(map(repr, strange))} in a "
                f"path in a way of their own; set {PREFIX}HOME to a folder of letters, digits and . _ ~ + = @ -"
            )
            raise InvalidSettingError(msg)
        if 3_600 % self.window_seconds:
            msg = f"{PREFIX}WINDOW_SECONDS={self.window_seconds}: statistics are kept by the hour; set it to a divisor of 3600"
            raise InvalidSettingError(msg)

        if 0 < self.events_kept_days < self.longest_run_days:
            msg = (
                f"{PREFIX}EVENTS_KEPT_DAYS={self.events_kept_days}: a run that is still open may have begun "
                f"{self.longest_run_days} days ago ({PREFIX}LONGEST_RUN_DAYS); keep as many days of events, or all: 0"
            )
            raise InvalidSettingError(msg)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """The defaults, overridden by variables `SAGASCOPE_…`.

        Raises:
            InvalidSettingError: a value of the wrong kind, or a variable of that prefix that is no setting.
        """
        given = {key.removeprefix(PREFIX).lower(): value for key, value in environ.items() if key.startswith(PREFIX)}
        if unknown := sorted(set(given) - set(cls.__struct_fields__)):
            known = ", ".join(PREFIX + name.upper() for name in cls.__struct_fields__)
            msg = f"{PREFIX}{unknown[0].upper()} is no setting; the settings are {known}"
            raise InvalidSettingError(msg)
        for name, value in given.items():
            try:
                msgspec.convert({name: value}, cls, strict=False)
            except msgspec.ValidationError as error:
                if isinstance(error.__cause__, InvalidSettingError):
                    continue  # what settings say together is judged below
                msg = f"{PREFIX}{name.upper()}={value!r}: {str(error).split(' - at ')[0]}"
                raise InvalidSettingError(msg) from error
        try:
            return msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, InvalidSettingError):
                raise error.__cause__ from None
            raise

    def environment(self) -> dict[str, str]:
        """The same settings as variables, for a process that is started."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in self.__struct_fields__}

    @property
    def root(self) -> Path:
        """`home`, absolute."""
        return Path(self.home).resolve()

    @property
    def catalog_file(self) -> Path:
        """The SQLite file of the Iceberg catalog."""
        return self.root / "lake" / "catalog.db"

    @property
    def warehouse_folder(self) -> Path:
        """Where the tables' files are."""
        return self.root / "lake" / "warehouse"

    @property
    def checkpoints(self) -> Path:
        """Where the analytics job's checkpoints are."""
        return self.root / "checkpoints" / "analytics"

    @property
    def fan_out(self) -> Path:
        """Where the demo's fan-out keeps its audit log and dead letters."""
        return self.root / "fan-out"

    @property
    def relay_folder(self) -> Path:
        """Where the relay keeps how far it has read sagaz's own outboxes."""
        return self.root / "relay"

    @property
    def data_docs(self) -> Path:
        """Where `sagascope quality --docs` writes its site."""
        return self.root / "data-docs"

    @property
    def logs(self) -> Path:
        """Where each process that Sagascope starts writes its log."""
        return self.root / "logs"

    @property
    def jars(self) -> Path:
        """Where `make setup` puts the jars, `flink/` and `kafka/`: in the checkout, wherever `home` is."""
        return CHECKOUT / ".sagascope" / "jars"

    @property
    def temporary(self) -> Path:
        """Where the processes' temporary files go."""
        return self.root / "tmp"
