"""Checkpoints of another job, a JVM that was left over, a recompute that is owed: found and told with their cure."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from pipelines import stack
from pipelines.doctor.findings import Level
from tests.pipelines.doctor.conftest import found, make_tables, store

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker

HOLDER = """
public class Holder {
    public static void main(String[] arguments) throws Exception {
        var file = new java.io.RandomAccessFile(arguments[0], "rw");
        var held = file.getChannel().tryLock();
        file.writeBytes(String.valueOf(ProcessHandle.current().pid()));
        System.out.println(held.isValid());
        System.in.read();
    }
}
"""


@pytest.fixture
def resumable(settings: Settings) -> Settings:
    """Settings with a checkpoint, and the note of what it was made for, as the job writes it."""
    make_tables(settings)
    command = [sys.executable, "-m", "jobs.analytics", "--fingerprint"]
    done = subprocess.run(command, env=os.environ | settings.environment(), check=True, capture_output=True)
    said = json.loads(done.stdout)
    assert (said["noted"], said["checkpoints"], said["differing"]) == (None, 0, [])
    checkpoint = settings.checkpoints / "run" / "chk-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "_metadata").write_bytes(struct.pack(">IIq", 0x4960672D, 6, 1))
    (settings.checkpoints / "made_for.json").write_text(json.dumps(said["now"]))
    return settings


def test_checkpoints_of_another_job(resumable: Settings) -> None:
    """Another window needs a rebase, another topic another home; the same job goes on."""
    found(resumable, "fingerprint", Level.OK, "1 checkpoint in .*, made for this very job; the newest is .*chk-1", "")
    wider = msgspec.structs.replace(resumable, window_seconds=20)
    what = "so the next one refuses to start: window_seconds was 10, is 20, sql was"
    found(wider, "fingerprint", Level.FAULT, what, "set it back; or `sagascope analyze --rebase`")
    other = msgspec.structs.replace(resumable, topic=f"{resumable.topic}-2")
    stack.make_topic(other)
    found(other, "fingerprint", Level.FAULT, "topic was ", "use another SAGASCOPE_HOME")


def test_checkpoints_that_are_lost_or_of_nobody(resumable: Settings) -> None:
    """No note, a damaged note, and rows in the tables without a checkpoint to go on from."""
    note = resumable.checkpoints / "made_for.json"
    note.write_text('{"kafka_cl')
    found(resumable, "fingerprint", Level.FAULT, "can't be compared", f"should {note} be damaged, remove it")
    note.unlink()
    found(resumable, "fingerprint", Level.WARNING, "nobody has noted what they were made for", "--rebase")
    store(resumable, 0)
    shutil.rmtree(resumable.checkpoints / "run")
    what = "the tables hold 1 events, but there is no checkpoint: the job refuses to start"
    found(resumable, "fingerprint", Level.FAULT, what, "bring the checkpoints back; or `sagascope analyze --rebase`")


def test_a_jvm_that_outlived_its_job(local: Settings, tmp_path: Path) -> None:
    """A real JVM that holds the tables' lock as the job's does, and no job above it."""
    local.checkpoints.mkdir(parents=True)
    source = tmp_path / "Holder.java"
    source.write_text(HOLDER)
    command = [stack.find_java(), str(source), str(local.checkpoints / "jvm.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as jvm:
        try:
            assert jvm.stdout
            assert jvm.stdout.readline() == "true\n"
            found(local, "job", Level.FAULT, rf"the JVM \(pid {jvm.pid}\) of one that was killed", f"`kill {jvm.pid}`")
        finally:
            jvm.kill()
    found(local, "job", Level.OK, "no analytics job runs", "sagascope analyze")


def test_a_recompute_that_is_owed(local: Settings) -> None:
    """Told until it is done; a damaged note of it is a fault."""
    local.checkpoints.mkdir(parents=True)
    owed = local.checkpoints / "recompute.json"
    owed.write_text('{"since":"2026-11-20T10:00:00Z","until":"2026-11-20T12:00:00Z"}')
    what = "from 2026-11-20T10:00:00Z to 2026-11-20T12:00:00Z are still to be recomputed"
    found(local, "job", Level.WARNING, what, "sagascope analyze")
    owed.write_text('{"since":')
    found(local, "job", Level.FAULT, "recompute.json, .* is damaged", "remove it; `sagascope parity --mend`")
