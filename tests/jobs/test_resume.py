"""From where a job goes on, and when it must not."""

from __future__ import annotations

import os
import time
import zipfile
from typing import TYPE_CHECKING

import msgspec
import pytest

from jobs.resume import (
    HEADER,
    MAGIC,
    CanNotResumeError,
    MadeFor,
    checkpoints_for,
    completed_checkpoints,
    contents_of,
)

if TYPE_CHECKING:
    from pathlib import Path

JOB = MadeFor(kafka_cluster="c", topic="t", window_seconds=10, sql="s", flink="2.2.1", jars="j")


def complete(folder: Path, name: str, number: int, age: float = 0) -> Path:
    """A completed checkpoint or savepoint of that number, that many seconds old."""
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "_metadata").write_bytes(HEADER.pack(MAGIC, 4, number) + b"state")
    os.utime(checkpoint / "_metadata", (time.time() - age,) * 2)
    return checkpoint


def test_the_newest_checkpoint_has_the_highest_number(tmp_path: Path) -> None:
    """Of any run; one without _metadata was never completed, and a clock that was set back does not matter."""
    assert completed_checkpoints(tmp_path) == []
    seventh = complete(tmp_path, "a/chk-7", 7)
    tenth = complete(tmp_path, "b/chk-10", 10, age=3_600)
    (tmp_path / "b" / "chk-11").mkdir()
    assert completed_checkpoints(tmp_path) == [tenth, seventh]


def test_a_savepoint_stands_among_the_checkpoints_by_its_number(tmp_path: Path) -> None:
    """Its folder's name tells nothing, its `_metadata` does."""
    eighth = complete(tmp_path, "a/chk-8", 8)
    savepoint = complete(tmp_path, "savepoint-12ab-34cd", 9, age=60)
    assert completed_checkpoints(tmp_path) == [savepoint, eighth]
    later = complete(tmp_path, "b/chk-10", 10)
    assert completed_checkpoints(tmp_path)[0] == later


def test_a_damaged_one_keeps_its_place(tmp_path: Path) -> None:
    """It has to be tried in its turn, so that it is told of."""
    older = complete(tmp_path, "a/chk-7", 7)
    damaged = complete(tmp_path, "a/chk-8", 8)
    (damaged / "_metadata").write_bytes(b"rubbish")
    assert completed_checkpoints(tmp_path) == [damaged, older]
    savepoint = complete(tmp_path, "savepoint-1", 6)
    (savepoint / "_metadata").write_bytes(b"")
    assert completed_checkpoints(tmp_path)[0] == savepoint


def test_of_equal_numbers_the_younger_one_counts(tmp_path: Path) -> None:
    """Two runs that resumed from one checkpoint number their own alike."""
    complete(tmp_path, "a/chk-7", 7, age=10)
    complete(tmp_path, "b/chk-7", 7, age=5)
    assert completed_checkpoints(tmp_path)[0] == tmp_path / "b" / "chk-7"


def test_the_same_job_resumes_and_forgets_older_runs(tmp_path: Path) -> None:
    """A first start notes what it is for; the next one finds the newest three, and other runs' folders go."""
    assert checkpoints_for(tmp_path, JOB, rows=0) == []
    complete(tmp_path, "a/chk-2", 2)
    newest = [complete(tmp_path, f"b/chk-{number}", number) for number in (5, 4)]
    savepoint = complete(tmp_path, "savepoint-1", 3)
    assert checkpoints_for(tmp_path, JOB, rows=100) == [*newest, savepoint]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "made_for.json", "savepoint-1"]


@pytest.mark.parametrize("field", MadeFor.__struct_fields__)
def test_checkpoints_of_another_job_are_refused(tmp_path: Path, field: str) -> None:
    """Another topic, window, cluster, SQL, Flink or connector: named, with what it was and what it is, and the cure."""
    checkpoints_for(tmp_path, JOB, rows=0)
    complete(tmp_path, "a/chk-1", 1)
    other = 60 if isinstance(getattr(JOB, field), int) else "other"
    cure = "SAGASCOPE_HOME" if field in ("kafka_cluster", "topic") else "--rebase"
    with pytest.raises(CanNotResumeError, match=f"made for .*{field}.* this job is for .*{other}.*{cure}"):
        checkpoints_for(tmp_path, msgspec.structs.replace(JOB, **{field: other}), rows=1)


def test_a_note_of_an_older_version_differs(tmp_path: Path) -> None:
    """It knew no fingerprint of the connectors: that is a difference, not an error."""
    complete(tmp_path, "a/chk-1", 1)
    known = msgspec.to_builtins(JOB)
    del known["jars"]
    (tmp_path / "made_for.json").write_bytes(msgspec.json.encode(known))
    with pytest.raises(CanNotResumeError, match=r"jars.*--rebase"):
        checkpoints_for(tmp_path, JOB, rows=1)


def test_lost_checkpoints_store_nothing_twice(tmp_path: Path) -> None:
    """Rows without a checkpoint: the topic is not read again from its start."""
    checkpoints_for(tmp_path, JOB, rows=0)
    with pytest.raises(CanNotResumeError, match=r"hold 7 events.*no checkpoint.*twice.*--rebase"):
        checkpoints_for(tmp_path, JOB, rows=7)


def test_the_fingerprint_is_of_what_is_in_the_jars(tmp_path: Path) -> None:
    """Other code under the same name is another connector; the same code packed at another time is not."""

    def packed(code: str, year: int) -> str:
        jar = tmp_path / "connector.jar"
        with zipfile.ZipFile(jar, "w") as files:
            files.writestr(zipfile.ZipInfo("A.class", (year, 1, 1, 0, 0, 0)), code)
        return contents_of(jar)

    assert packed("one", 2026) == packed("one", 2027)
    assert packed("one", 2026) != packed("two", 2026)
    (tmp_path / "connector.jar").write_bytes(b"half a jar")
    with pytest.raises(CanNotResumeError, match=r"connector.jar is damaged.*make setup"):
        contents_of(tmp_path / "connector.jar")
