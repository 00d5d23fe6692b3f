"""The application's settings: one typed object, read from the environment by an entry point and passed in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SAGASCOPE_"
CHECKOUT = Path(__file__).resolve().parent.parent

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Days = Annotated[int, Meta(ge=1, le=36_500)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


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
    longest_run_days: Days = 7
    """So many days before those asked for are read, too, for the beginnings of runs that ended within them."""
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
                    raise error.__cause__ from None
                msg = f"{PREFIX}{name.upper()}={value!r}: {str(error).split(' - at ')[0]}"
                raise InvalidSettingError(msg) from error
        return msgspec.convert(given, cls, strict=False)

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
