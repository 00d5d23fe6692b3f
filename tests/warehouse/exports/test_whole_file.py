"""A file is there whole or not at all, also when its writer is killed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from warehouse.exports.whole_file import ExportError, replacing

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys
from pathlib import Path
from warehouse.exports.whole_file import replacing
with replacing(Path(sys.argv[1]), lambda _: True) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def mine(_: Path) -> bool:
    """Every file is."""
    return True


def nobodys(_: Path) -> bool:
    """No file is."""
    return False


def test_a_kill_leaves_the_old_file_and_the_next_writer_clears_away(tmp_path: Path) -> None:
    """Kill -9 in the middle: the old content stays, and what was begun does not pile up."""
    file = tmp_path / "x"
    file.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False, timeout=60)
    assert done.returncode == -9
    assert file.read_text() == "old"
    assert len([*tmp_path.glob(".x.*.partial")]) == 1
    with replacing(file, mine) as partial:
        partial.write_text("new")
    assert file.read_text() == "new"
    assert [*tmp_path.iterdir()] == [file]


def test_two_writers_do_not_clear_each_other_away(tmp_path: Path) -> None:
    """Who ends last has the last word."""
    file = tmp_path / "x"
    with replacing(file, mine) as first:
        first.write_text("first")
        with replacing(file, mine) as second:
            second.write_text("second")
        assert file.read_text() == "second"
    assert file.read_text() == "first"
    assert [*tmp_path.iterdir()] == [file]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    """Neither half a file nor its folder."""
    file = tmp_path / "x"
    with pytest.raises(FileNotFoundError), replacing(file, mine):
        (tmp_path / "no").read_bytes()
    assert [*tmp_path.iterdir()] == []


def test_where_no_file_can_be_is_said(tmp_path: Path) -> None:
    """The path and the cure; before anything is computed."""
    file = tmp_path / "x"
    file.write_text("yours")
    for path, said in (
        (file, "is no such export: name another file, or replace it with --force"),
        (tmp_path / "no" / "x", "there is no folder .*no; make it first"),
        (tmp_path, "is no file"),
    ):
        with pytest.raises(ExportError, match=said), replacing(path, nobodys):
            pytest.fail("nothing may be written")
    assert file.read_text() == "yours"
    with replacing(file, nobodys, force=True) as partial:
        partial.write_text("ours")
    assert file.read_text() == "ours"
