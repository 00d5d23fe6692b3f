"""Faults of the machine, each really made, are found and told with their cure."""

from __future__ import annotations

import re
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from pipelines.doctor import machine
from pipelines.doctor.findings import Level
from tests.pipelines.doctor.conftest import faults, found, look
from warehouse.settings import CHECKOUT, Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the jars' folder, as links, for the doctor to look at."""
    real, folder = Settings().jars, tmp_path / "jars"
    for jar in real.glob("*/*.jar"):
        copy = folder / jar.relative_to(real)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(jar)
    shutil.copy(real / "pom.sha256", folder)
    monkeypatch.setattr(Settings, "jars", folder)
    return folder


def test_a_disk_almost_full(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 2 GiB is warned of."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1 << 30))
    found(local, "home", Level.WARNING, r"1\.0 GiB free", "free some, or set SAGASCOPE_HOME")


def test_packages_that_differ_from_the_lock_file(tmp_path: Path) -> None:
    """One that is absent is a fault, one of another version a warning; each is named."""
    lock = tmp_path / "requirements.lock"
    lock.write_text("msgspec==0.0.1 \\\n    --hash=sha256:00\nno-such-package==1.2\nrich==99 \\\n")
    absent, other = machine.packages(lock)
    assert (absent.level, absent.cure) == (Level.FAULT, "`make setup`")
    assert absent.what.endswith("not installed: no-such-package 1.2")
    assert (other.level, other.cure) == (Level.WARNING, "`make setup`")
    assert re.search(r"msgspec [\d.]+, not 0\.0\.1, rich [\d.]+, not 99$", other.what)


def test_a_pyflink_that_the_pom_is_not_for(tmp_path: Path) -> None:
    """They move together."""
    pom = tmp_path / "pom.xml"
    text = (CHECKOUT / "pom.xml").read_text()
    pom.write_text(re.sub(r"<flink.version>.*?<", "<flink.version>1.20.0<", text))
    [one] = machine.pyflink(pom)
    assert one.level is Level.FAULT
    assert "for Flink 1.20.0" in one.what
    assert "`make lock setup`" in one.cure


@pytest.mark.parametrize(
    ("script", "level", "what"),
    [
        ("""echo 'openjdk version "11.0.2" 2019-01-15'""", Level.FAULT, r"is Java 11; 17 or later is needed"),
        ("exit 3", Level.FAULT, r"does not tell its version"),
        ("""echo 'openjdk version "21" 2023-09-19'""", Level.WARNING, r"comes without javac"),
        (None, Level.FAULT, r"no java in JAVA_HOME"),
    ],
)
def test_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, level: Level, what: str) -> None:
    """Too old, broken, without a compiler, or not there."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    if script:
        java = tmp_path / "bin" / "java"
        java.parent.mkdir()
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
    one = machine.java()[-1]
    assert one.level is level
    assert re.search(what, one.what)
    assert "install a JDK 17 (Debian: apt install openjdk-17-jdk-headless)" in one.cure


def test_jars_that_are_not_there_or_not_whole(local: Settings, jars: Path) -> None:
    """One removed, one cut off in the middle: each is named, and set-up would bring them again."""
    code, findings = look(local)
    assert (code, faults(findings)) == (0, [])
    [sqlite] = (jars / "flink").glob("sqlite-jdbc-*.jar")
    sqlite.unlink()
    [kafka] = (jars / "kafka").glob("kafka_2.13-*.jar")
    whole = kafka.read_bytes()
    kafka.unlink()
    kafka.write_bytes(whole[: len(whole) // 2])
    again = r"rm -f .*/jars/pom.sha256 && make setup"
    found(local, "jars", Level.FAULT, f"flink lacks {sqlite.name}$", again)
    found(local, "jars", Level.FAULT, f"kafka has what is no whole jar: {kafka.name}$", again)


def test_jars_of_other_sources(local: Settings, jars: Path) -> None:
    """Made before the pom or the connector changed."""
    (jars / "pom.sha256").write_text("of another pom")
    found(local, "jars", Level.WARNING, "has changed since the jars were made", "make setup")


def test_whether_dagster_would_find_its_port_is_only_told() -> None:
    """A port in use is no fault: Dagster may be what uses it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        listening.listen()
        [taken] = machine.dagster_port(port)
    [free] = machine.dagster_port(port)
    assert (taken.level, free.level) == (Level.OK, Level.OK)
    assert "is taken" in taken.what
    assert f"PORT={port + 1}" in taken.cure
    assert "is free" in free.what
