"""The TableEnvironment: catalog, checkpoints, restore. The only Flink code that jobs share."""

from __future__ import annotations

import os
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from warehouse.catalog import BUSY_TIMEOUT_SECONDS, CATALOG_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warehouse.settings import Settings
    from warehouse.tables import Table

LOOPBACK = "127.0.0.1"
SQL_FOLDER = Path(__file__).parent / "sql"
STATISTICS_VIEWS = ("ended_steps", "timed_steps", "saga_turns")
"""What the statistics read, over `valid_events`; in the order in which they build on each other."""

GARBAGE_COLLECTOR = "-XX:+UseParallelGC -XX:NewRatio=1"
"""Nearly all that a job allocates dies young: about a fifth less CPU than with the JVM's default (bench/RESULTS.md)."""

HADOOP_CONFIGURATION = Path(__file__).parent / "hadoop"
LOG_CONFIGURATION = Path(__file__).parent / "log4j2.properties"


def prepare_jvm(settings: Settings, heap: str = "1g", log: str = "flink") -> None:
    """Set what PyFlink's JVM reads from the environment; before the first PyFlink call of the process.

    Connector jars go on the class path itself, because catalogs don't see `pipeline.jars`. Of two JVMs that wrote one log,
    each would roll it over under the other.

    Raises:
        FileNotFoundError: the jars are not there; `make setup` brings them.
    """
    jars = settings.jars / "flink"
    if not any(jars.glob("*.jar")):
        msg = f"no jars in {jars}: run `make setup`"
        raise FileNotFoundError(msg)
    settings.logs.mkdir(parents=True, exist_ok=True)
    os.environ["HADOOP_CLASSPATH"] = f"{jars}/*"
    os.environ.setdefault("HADOOP_CONF_DIR", str(HADOOP_CONFIGURATION))
    settings.temporary.mkdir(parents=True, exist_ok=True)
    # Else a server for Python UDFs, of which there are none, listens to the whole network.
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112 - so PyFlink spells it
    os.environ["FLINK_LOG_DIR"] = str(settings.logs)
    os.environ["LOG4J_PROPERTIES"] = str(LOG_CONFIGURATION)
    os.environ["JVM_ARGS"] = (
        f"-Xmx{heap} {GARBAGE_COLLECTOR} -XX:MaxMetaspaceSize=512m "
        f"-Dsagascope.log={settings.logs / log}.log -Djava.io.tmpdir={settings.temporary}"
    )


def flink_log(settings: Settings) -> Path:
    """Where the JVM writes its log."""
    return settings.logs / "flink.log"


def streaming_environment(settings: Settings, checkpoint: Path | None = None) -> Any:
    """A streaming TableEnvironment in this process's mini cluster, whose job resumes from `checkpoint`."""
    options = {
        "execution.runtime-mode": "streaming",
        "execution.checkpointing.interval": f"{settings.checkpoint_interval_ms} ms",
        "execution.checkpointing.min-pause": f"{settings.checkpoint_interval_ms // 2} ms",
        "execution.checkpointing.dir": settings.checkpoints.as_uri(),
        "execution.checkpointing.num-retained": 3,
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.unaligned.enabled": "false",  # Iceberg issue 15846: silent loss
        "execution.state-recovery.claim-mode": "CLAIM",  # what it resumed from is deleted once it is surpassed
        "table.exec.source.idle-timeout": f"{settings.idle_timeout_ms} ms",
    }
    if checkpoint is not None:
        options["execution.state-recovery.path"] = checkpoint.as_uri()
    return _environment(settings, options)


def batch_environment(settings: Settings) -> Any:
    """A batch TableEnvironment in this process's mini cluster."""
    return _environment(settings, {"execution.runtime-mode": "batch"})


def _environment(settings: Settings, options: Mapping[str, object]) -> Any:
    from pyflink.common import Configuration  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set
    from pyflink.table import EnvironmentSettings, TableEnvironment  # noqa: PLC0415

    options = {
        "parallelism.default": settings.parallelism,
        "taskmanager.numberOfTaskSlots": settings.parallelism,
        # A mini cluster has a REST server, too: for this machine alone, and to look, not to run anything.
        "rest.address": LOOPBACK,
        "rest.bind-address": LOOPBACK,
        "rest.bind-port": "0",
        "web.submit.enable": "false",
        "web.cancel.enable": "false",
        "jobmanager.bind-host": LOOPBACK,
        "taskmanager.bind-host": LOOPBACK,
        "io.tmp.dirs": settings.temporary,
        "pipeline.object-reuse": "true",
        "table.local-time-zone": "UTC",
        "table.exec.iceberg.use-v2-sink": "true",  # the first version lost rows at the end of bounded runs
        "table.optimizer.reuse-optimize-block-with-digest-enabled": "true",  # one pass over the topic for all sinks
        **options,
    }
    configuration = Configuration()
    for key, value in options.items():
        configuration.set_string(key, str(value))
    environment = TableEnvironment.create(EnvironmentSettings.new_instance().with_configuration(configuration).build())
    environment.execute_sql(
        f"CREATE CATALOG {CATALOG_NAME} WITH ("
        "'type' = 'iceberg', 'catalog-impl' = 'org.apache.iceberg.jdbc.JdbcCatalog', 'jdbc.schema-version' = 'V1', "
        f"'uri' = 'jdbc:sqlite:{settings.catalog_file}?busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}', "
        f"'warehouse' = '{settings.warehouse_folder.as_uri()}')"
    )
    return environment


def root_cause(trace: str) -> str:
    """The innermost `Caused by` of a Java stack trace, on one line."""
    causes = [line.removeprefix("Caused by: ") for line in trace.splitlines() if line.startswith("Caused by: ")]
    return causes[-1] if causes else trace.strip().splitlines()[0] if trace.strip() else "unknown"


def statement(name: str, parameters: Mapping[str, object]) -> str:
    """The SQL of `jobs/sql/<name>.sql` with its ${placeholders} filled in; a quote in a value stays inside its literal.

    Raises:
        KeyError: a placeholder without a value.
    """
    text = (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")
    return Template(text).substitute({key: str(value).replace("'", "''") for key, value in parameters.items()})


def query(settings: Settings, table: Table) -> str:
    """The SELECT whose rows a table gets: the same for the stream and for a recompute."""
    return statement(table.name, {"window": interval(settings.window_seconds * 1000)})


def interval(milliseconds: int) -> str:
    """The text of a SQL literal INTERVAL '…' DAY TO SECOND: a plain SECOND takes two digits only."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} {hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03}"
