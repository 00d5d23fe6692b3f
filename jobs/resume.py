"""From where a job goes on: its newest checkpoint, and whether that is one of this very job on these very tables."""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from kafka import KafkaAdminClient

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from warehouse.settings import Settings


class CanNotResumeError(RuntimeError):
    """Going on would lose events or store them twice; says why, and what to do."""


class MadeFor(msgspec.Struct, frozen=True):
    """What the checkpoints in a folder belong to: another topic's offsets or another window's state fit nothing else."""

    kafka_cluster: str
    topic: str
    window_seconds: int
    sql: str
    flink: str


def made_for(settings: Settings, statements: Iterable[str]) -> MadeFor:
    """The job that these settings make.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
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
        sql=hashlib.sha256(text.encode()).hexdigest()[:16],
        flink=version("apache-flink"),
    )


def prepare(folder: Path, job: MadeFor, rows: int) -> Path | None:
    """The checkpoint to resume from, or None for a first start; forgets what earlier runs left beside it.

    Args:
        folder: Of the job's checkpoints, one folder in it a run.
        job: What is about to start.
        rows: How many rows its tables hold already.

    Raises:
        CanNotResumeError: the checkpoints are of another job, or the tables hold rows and no checkpoint is left.
    """
    note = folder / "made_for.json"
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        if rows:
            msg = (
                f"the tables hold {rows:,} events, but {folder} has no checkpoint to go on from: reading the topic from "
                "its start would store them twice. Bring the checkpoints back, or start afresh with `make clean`"
            )
            raise CanNotResumeError(msg)
        note.write_bytes(msgspec.json.encode(job))
        return None
    before = msgspec.json.decode(note.read_bytes(), type=MadeFor) if note.exists() else job
    changed = [name for name in MadeFor.__struct_fields__ if getattr(before, name) != getattr(job, name)]
    if changed:
        was, now = ({name: getattr(made, name) for name in changed} for made in (before, job))
        msg = (
            f"the checkpoints in {folder} were made for {was}, and this job is for {now}: its state fits no other. "
            "Set it back, use another SAGASCOPE_HOME, or start afresh with `make clean`"
        )
        raise CanNotResumeError(msg)
    for run in folder.iterdir():
        if run.is_dir() and run != checkpoint.parent:
            shutil.rmtree(run)
    return checkpoint


def newest_checkpoint(folder: Path) -> Path | None:
    """The completed `chk-<number>` folder of the highest number, of any run; None before the first.

    Numbers go on from one run to the next; the clock, which may be set back, decides only between equal ones.
    """
    completed = [metadata.parent for metadata in folder.glob("*/chk-*/_metadata")]
    return max(completed, key=_age, default=None)


def _age(checkpoint: Path) -> tuple[int, int]:
    return int(checkpoint.name.removeprefix("chk-")), (checkpoint / "_metadata").stat().st_mtime_ns
