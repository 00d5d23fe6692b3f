"""From where a job goes on: its newest checkpoint, if that is one of this very job; after a rebase the tables themselves."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import zipfile
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from kafka import KafkaAdminClient

from warehouse.progress import offsets_since
from warehouse.topic import bounds_of, offsets_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from warehouse.progress import Progress
    from warehouse.settings import Settings

NOTE = "made_for.json"
HEADER = struct.Struct(">IIq")
"""How a checkpoint's `_metadata` begins: a magic number, the format's version, the checkpoint's number."""
MAGIC = 0x4960672D
KEPT = 3
REBASE = "`sagascope analyze --rebase` goes on from what the tables hold"
SETTLING = timedelta(minutes=10)
"""How far back a rebase reads at least."""


class CanNotResumeError(RuntimeError):
    """Going on would lose events or store them twice; says why, and what to do."""


class MadeFor(msgspec.Struct, frozen=True):
    """The fingerprint of a job: another topic's offsets or another query's state fit nothing else."""

    kafka_cluster: str
    topic: str
    window_seconds: int
    sql: str
    flink: str
    jars: str = ""
    watermark_delay_ms: int = 0
    """Of `sql`, too, as is the next one: told apart, because a hash says nothing to who has changed a setting."""
    dedup_horizon_seconds: int = 0


def made_for(settings: Settings, statements: Iterable[str]) -> MadeFor:
    """The fingerprint of the job that these settings and statements make.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        CanNotResumeError: a connector's jar is damaged.
    """
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers, bootstrap_timeout_ms=10_000)
    try:
        cluster = str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()
    text = "\n".join(statements).replace(settings.bootstrap_servers, "")  # its address is no part of a cluster
    return MadeFor(
        kafka_cluster=cluster,
        topic=settings.topic,
        window_seconds=settings.window_seconds,
        watermark_delay_ms=settings.watermark_delay_ms,
        dedup_horizon_seconds=settings.dedup_horizon_seconds,
        sql=_digest(text),
        flink=version("apache-flink"),
        jars=_digest("\n".join(sorted(map(contents_of, (settings.jars / "flink").glob("*.jar"))))),
    )


def contents_of(jar: Path) -> str:
    """Name and contents of a jar, but for when it was packed.

    Raises:
        CanNotResumeError: it is damaged.
    """
    try:
        with zipfile.ZipFile(jar) as files:
            return "\n".join([jar.name, *sorted(f"{file.filename} {file.CRC:08x}" for file in files.infolist())])
    except zipfile.BadZipFile as error:
        msg = f"{jar} is damaged ({error}): remove it, then `make setup` brings it again"
        raise CanNotResumeError(msg) from error


def checkpoints_for(folder: Path, job: MadeFor, rows: int) -> list[Path]:
    """The checkpoints to resume from, the newest first; none for a first start. Forgets what earlier runs left.

    Args:
        folder: Of the job's checkpoints: a folder a run, and the savepoint of the last stop.
        job: What is about to start.
        rows: How many rows its tables hold already.

    Raises:
        CanNotResumeError: the checkpoints are of another job, or the tables hold rows and no checkpoint is left.
    """
    found = completed_checkpoints(folder)
    if not found:
        if rows:
            msg = (
                f"the tables hold {rows:,} events, but {folder} has no checkpoint to go on from: reading the topic from "
                f"its start would store them twice. Bring the checkpoints back; or {REBASE}"
            )
            raise CanNotResumeError(msg)
        note(folder, job)
        return []
    before = noted(folder) or job
    changed = [name for name in MadeFor.__struct_fields__ if getattr(before, name) != getattr(job, name)]
    if changed:
        was, now = ({name: getattr(made, name) for name in changed} for made in (before, job))
        cure = "use another SAGASCOPE_HOME" if {"kafka_cluster", "topic"} & set(changed) else REBASE
        msg = (
            f"the checkpoints in {folder} were made for {was}, and this job is for {now}: its state fits no other. "
            f"Set it back; or {cure}"
        )
        raise CanNotResumeError(msg)
    newest = found[:KEPT]
    for run in folder.iterdir():
        if (
            run.is_dir()
            and not run.name.startswith("damaged-")
            and not any(run in (checkpoint, checkpoint.parent) for checkpoint in newest)
        ):
            shutil.rmtree(run)
    return newest


def check_topic(settings: Settings, progress: Progress) -> dict[int, tuple[int, int]]:
    """The bounds of each partition of the topic, if it still is the one that the tables were filled from.

    Raises:
        CanNotResumeError: a partition ends before what the tables hold of it: the topic was made anew.
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    bounds = bounds_of(settings)
    for partition in sorted({*progress.events, *progress.rejected}):
        last, (_, end) = progress.last(partition), bounds.get(partition, (0, 0))
        if last >= end:
            msg = (
                f"partition {partition} of {settings.topic} ends at offset {end}, but the tables hold {last}: it is not the "
                "topic that they were filled from. Use another SAGASCOPE_HOME"
            )
            raise CanNotResumeError(msg)
    return bounds


def start_of_rebase(
    settings: Settings, job: MadeFor, progress: Progress, bounds: Mapping[int, tuple[int, int]]
) -> dict[int, int]:
    """Forget all checkpoints, and return the offset at which each partition is to be read again.

    That is early enough for every window that is not closed, for the ids that are still to be remembered, and for what was
    on its way into the tables when the job ended. What the topic no longer has is skipped: see `Progress.deleted`.

    Raises:
        CanNotResumeError: the tables came from another topic.
    """
    folder = settings.checkpoints
    before = noted(folder)
    if before and (before.kafka_cluster, before.topic) != (job.kafka_cluster, job.topic):
        msg = (
            f"the tables of {settings.root} were filled from topic {before.topic} of Kafka cluster {before.kafka_cluster}, "
            f"and this is {job.topic} of {job.kafka_cluster}: its offsets mean something else. Use another SAGASCOPE_HOME"
        )
        raise CanNotResumeError(msg)
    since = min(progress.closed.values(), default=None)
    starts = {partition: begin for partition, (begin, _) in bounds.items()}  # before the first window is closed: all
    if since:
        moment = since - max(SETTLING, timedelta(seconds=settings.dedup_horizon_seconds))
        events, records = offsets_since(settings, moment), offsets_at(settings, moment)
        for partition, begin in starts.items():
            behind = progress.events.get(partition, -1) + 1
            # By the records' own time too: a rejected record has no other.
            starts[partition] = max(begin, min(events.get(partition, behind), records.get(partition, behind)))
    for run in folder.glob("*/"):
        shutil.rmtree(run)
    note(folder, job)
    return starts


def noted(folder: Path) -> MadeFor | None:
    """What the checkpoints in the folder were made for; None where nobody has noted it."""
    file = folder / NOTE
    return msgspec.json.decode(file.read_bytes(), type=MadeFor) if file.exists() else None


def note(folder: Path, job: MadeFor) -> None:
    """Note what the checkpoints to come are made for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NOTE, job)


def write_atomically(file: Path, content: msgspec.Struct) -> None:
    """Put it there as JSON, whole or not at all."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as writing:
        writing.write(msgspec.json.encode(content))
        writing.flush()
        os.fsync(writing.fileno())
    partial.replace(file)


def completed_checkpoints(folder: Path) -> list[Path]:
    """Every completed checkpoint and savepoint, of any run, the newest first.

    Numbers go on from one run to the next; the clock, which may be set back, decides only between equal ones.
    """
    metadata = [*folder.glob("*/chk-*/_metadata"), *folder.glob("savepoint-*/_metadata")]
    return [file.parent for file in sorted(metadata, key=_age, reverse=True)]


def _age(metadata: Path) -> tuple[float, int]:
    with metadata.open("rb") as file:
        header = file.read(HEADER.size)
    magic, _, number = HEADER.unpack(header) if len(header) == HEADER.size else (0, 0, 0)
    if magic != MAGIC:  # damaged: it has to be tried in its turn, and to be told of
        name = metadata.parent.name
        number = int(name.removeprefix("chk-")) if name.startswith("chk-") else math.inf
    return number, metadata.stat().st_mtime_ns


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
