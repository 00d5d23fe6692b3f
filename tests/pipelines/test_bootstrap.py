"""Set-up: each thing that is missing is one line with its cure; what is there is left alone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pipelines import bootstrap

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of which nothing is set up, and tools that are all there."""
    (tmp_path / "requirements.lock").write_text("six==1.17.0 \\\n    --hash=sha256:00\n")
    (tmp_path / "pom.xml").write_text("<project/>")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "STATE", tmp_path / ".sagascope")
    monkeypatch.setattr(bootstrap, "PACKAGES_STAMP", tmp_path / ".venv" / "packages")
    monkeypatch.setattr(bootstrap, "JARS_STAMP", tmp_path / ".sagascope" / "jars" / "pom")
    return tmp_path


def tool(folder: Path, name: str, says: str) -> None:
    """A program that only says something."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\nexit 1\n")
    (folder / name).chmod(0o755)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What `main` ended with."""
    with pytest.raises(SystemExit) as caught:
        bootstrap.main()
    capsys.readouterr()
    return str(caught.value.code)


def test_without_java(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No java on the PATH, none in JAVA_HOME, or one that is too old."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(clone / "bin"))
    assert "no java on the PATH: install a JDK 17" in said(capsys)
    tool(clone / "bin", "java", 'openjdk version "11.0.2" 2019-01-15')
    assert "is Java 11: install a JDK 17" in said(capsys)
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    assert "no java in JAVA_HOME=/nowhere: install a JDK 17" in said(capsys)


def test_without_the_right_python(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock file is for 3.11; another Python is named, with how to get the right one."""
    tool(clone / "bin", "java", 'openjdk version "17.0.1" 2021-10-19')
    tool(clone / "bin", "python3", "3.9")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setenv("PATH", str(clone / "bin"))
    monkeypatch.setattr(sys, "executable", str(clone / "bin" / "python3"))
    message = said(capsys)
    assert "Python 3.11 is not on the PATH" in message
    assert "PYTHON=/path/to/python3.11" in message


def test_without_venv(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Debian's python3.11 has no ensurepip: its package is named, not the network."""
    tool(clone / "bin", "java", 'openjdk version "17.0.1" 2021-10-19')
    tool(clone / "bin", "python3.11", "3.11")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setenv("PATH", str(clone / "bin"))
    assert said(capsys).endswith("python3.11 can't make virtual environments: apt install python3.11-venv")


def test_without_maven(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Maven is asked for only when jars are missing."""
    tool(clone / "bin", "java", 'openjdk version "17.0.1" 2021-10-19')
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(clone / "bin"))
    (clone / ".venv").mkdir()
    bootstrap.PACKAGES_STAMP.write_text(bootstrap.stamp_of(clone / "requirements.lock"))
    assert "no mvn on the PATH: install Maven" in said(capsys)
    bootstrap.JARS_STAMP.parent.mkdir(parents=True)
    bootstrap.JARS_STAMP.write_text(bootstrap.stamp_of(clone / "pom.xml"))
    bootstrap.main()


def test_without_room(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Too little disk is said before anything is fetched."""
    monkeypatch.setattr(bootstrap, "DISK_NEEDED_GIB", 1_000_000)
    assert "1000000 needed: free some" in said(capsys)


def test_a_disk_that_fills_up(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On the way, here or in a command: how much to free, and where."""
    cure = f"sagascope: the disk is full: free {bootstrap.DISK_NEEDED_GIB} GiB for {clone}"
    script = "print('No space left on device'); print('more\\n' * 20); raise SystemExit(1)"
    monkeypatch.setattr(bootstrap, "set_up", lambda: bootstrap.Step("x", "y").run([sys.executable, "-c", script]))
    assert said(capsys) == cure

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bootstrap, "set_up", full)
    assert said(capsys) == cure


def test_the_command_runs_from_any_folder(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clone's path is like, and not a folder `pipelines` of where it is called."""
    venv = clone / """it's a "clone" of $HOME""" / ".venv"
    monkeypatch.setattr(bootstrap, "VENV", venv)
    monkeypatch.setattr(bootstrap, "PACKAGES_STAMP", venv / "packages")
    monkeypatch.setattr(bootstrap.Step, "run", lambda *_: (venv / "bin").mkdir(parents=True, exist_ok=True))
    bootstrap.install_packages(sys.executable)
    (venv / "bin" / "python").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    done = subprocess.run([venv / "bin" / "sagascope", "sql", "SELECT 1"], capture_output=True, text=True, check=True)
    assert done.stdout == "-P|-m|pipelines|sql|SELECT 1|"


def test_a_package_that_is_not_what_the_lock_says(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong hash ends the set-up with what pip said, and the next run starts over."""
    wheel = clone / "six-1.17.0-py3-none-any.whl"
    wheel.write_text("something else")
    (clone / "requirements.lock").write_text(f"six @ {wheel.as_uri()} --hash=sha256:{'0' * 64}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the network has no part in it
    message = said(capsys)
    assert "Python packages failed" in message
    assert "DO NOT MATCH THE HASHES" in message
    assert not bootstrap.PACKAGES_STAMP.exists()


def test_a_changed_lock_or_a_moved_clone_is_set_up_again(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp is of the file and of the place."""
    before = bootstrap.stamp_of(clone / "requirements.lock")
    (clone / "requirements.lock").write_text("changed")
    changed = bootstrap.stamp_of(clone / "requirements.lock")
    monkeypatch.setattr(bootstrap, "ROOT", clone / "elsewhere")
    assert len({before, changed, bootstrap.stamp_of(clone / "requirements.lock")}) == 3


def test_this_checkout_is_set_up_and_stays_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second `make setup` does nothing and says nothing. Compared only: a set-up would delete what runs the tests."""
    for sources, stamp in (
        ([bootstrap.ROOT / "requirements.lock"], bootstrap.PACKAGES_STAMP),
        (bootstrap.jar_sources(), bootstrap.JARS_STAMP),
    ):
        assert bootstrap.stamp_of(*sources) == bootstrap.read(stamp), f"{sources[0].name} changed: run `make setup`"
    monkeypatch.setattr(bootstrap, "install_packages", lambda *_: pytest.fail("installs the packages again"))
    monkeypatch.setattr(bootstrap, "install_jars", lambda *_: pytest.fail("installs the jars again"))
    bootstrap.set_up()
    assert capsys.readouterr() == ("", "")
