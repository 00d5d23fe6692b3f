"""From where a job goes on, and when it must not."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from jobs.resume import CanNotResumeError, MadeFor, newest_checkpoint, prepare

if TYPE_CHECKING:
    from pathlib import Path

JOB = MadeFor(kafka_cluster="c", topic="t", window_seconds=10, sql="s", flink="2.2.1")


def complete(folder: Path, name: str, age: float = 0) -> Path:
    """A completed checkpoint, that many seconds old."""
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "_metadata").touch()
    os.utime(checkpoint / "_metadata", (time.time() - age,) * 2)
    return checkpoint


def test_newest_checkpoint_has_the_highest_number(tmp_path: Path) -> None:
    """Of any run; one without _metadata was never completed, and a clock that was set back does not matter."""
    assert newest_checkpoint(tmp_path) is None
    complete(tmp_path, "a/chk-7")
    complete(tmp_path, "b/chk-10", age=3_600)
    (tmp_path / "b" / "chk-11").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "b" / "chk-10"


def test_of_equal_numbers_the_younger_one_counts(tmp_path: Path) -> None:
    """Two runs that resumed from one checkpoint number their own alike."""
    complete(tmp_path, "a/chk-7", age=10)
    complete(tmp_path, "b/chk-7", age=5)
    assert newest_checkpoint(tmp_path) == tmp_path / "b" / "chk-7"


def test_the_same_job_resumes_and_forgets_older_runs(tmp_path: Path) -> None:
    """A first start notes what it is for; the next one finds the newest checkpoint, and the others' folders go."""
    assert prepare(tmp_path, JOB, rows=0) is None
    complete(tmp_path, "a/chk-3")
    newest = complete(tmp_path, "b/chk-5")
    complete(tmp_path, "b/chk-4")
    assert prepare(tmp_path, JOB, rows=100) == newest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "made_for.json"]
    assert (tmp_path / "b" / "chk-4").exists()


@pytest.mark.parametrize("field", MadeFor.__struct_fields__)
def test_checkpoints_of_another_job_are_refused(tmp_path: Path, field: str) -> None:
    """Another topic, window, cluster, SQL or Flink: named, with what it was and what it is."""
    prepare(tmp_path, JOB, rows=0)
    complete(tmp_path, "a/chk-1")
    other = 60 if field == "window_seconds" else "other"
    with pytest.raises(CanNotResumeError, match=f"made for .*{field}.* this job is for .*{other}.*make clean"):
        prepare(tmp_path, msgspec.structs.replace(JOB, **{field: other}), rows=1)


def test_lost_checkpoints_store_nothing_twice(tmp_path: Path) -> None:
    """Rows without a checkpoint: the topic is not read again from its start."""
    prepare(tmp_path, JOB, rows=0)
    with pytest.raises(CanNotResumeError, match=r"hold 7 events.*no checkpoint.*twice.*make clean"):
        prepare(tmp_path, JOB, rows=7)
