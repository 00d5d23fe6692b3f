"""What this machine brings: Python and its packages, Java, jars, room on the disk, a port, a clock that is kept."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pipelines import bootstrap, stack
from pipelines.doctor.findings import Finding, fault, ok, size, warning

if TYPE_CHECKING:
    from warehouse.settings import Settings

LOCK_FILE = bootstrap.ROOT / "requirements.lock"
POM = bootstrap.ROOT / "pom.xml"
POM_NAMES = {"m": "http://maven.apache.org/POM/4.0.0"}
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)
SETUP = "`make setup`"
ROOM_NEEDED = 2 << 30
DAGSTER_PORT = 3000
NAMED = 6


def python() -> list[Finding]:
    """The Python that runs this."""
    found = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    wanted = ".".join(map(str, bootstrap.PYTHON))
    if sys.version_info[:2] != bootstrap.PYTHON:
        return [fault("python", f"this is Python {found}; requirements.lock is for {wanted}", SETUP)]
    return [ok("python", f"Python {found} at {sys.executable}")]


def packages(lock: Path = LOCK_FILE) -> list[Finding]:
    """The installed packages against those that the lock file pins."""
    pinned = dict(PIN.findall(lock.read_text()))
    installed = {name: _installed(name) for name in pinned}
    absent = [f"{name} {pinned[name]}" for name, found in installed.items() if found is None]
    other = [
        f"{name} {found}, not {pinned[name]}" for name, found in installed.items() if found not in (None, pinned[name])
    ]
    findings = []
    if absent:
        findings.append(fault("python", f"not installed: {_some(absent)}", SETUP))
    if other:
        findings.append(warning("python", f"not the version that {lock.name} pins: {_some(other)}", SETUP))
    return findings or [ok("python", f"all {len(pinned)} packages of {lock.name} are installed, as pinned")]


def pyflink(pom: Path = POM) -> list[Finding]:
    """PyFlink and the Java classes that the connector is compiled against are of one version."""
    found, wanted = _installed("apache-flink"), _Pom(pom).properties.get("flink.version")
    if found is None:
        return [fault("python", "PyFlink (apache-flink) is not installed: no job can run", SETUP)]
    if found != wanted:
        cure = "make them one in pyproject.toml and pom.xml, then `make lock setup`"
        return [fault("jars", f"PyFlink is {found}, and {pom.name} builds the connector for Flink {wanted}", cure)]
    return [ok("jars", f"PyFlink and {pom.name} are both for Flink {found}")]


def java() -> list[Finding]:
    """A Java that runs Kafka and Flink, and a compiler for the connector."""
    try:
        path = stack.find_java()
    except stack.StackError as error:
        what, _, cure = str(error).partition(": ")
        return [fault("java", what, cure)]
    said = bootstrap.version_of([path, "-version"])
    found = re.search(r'version "(\d+)([^"]*)"', said)
    if not found:
        return [fault("java", f"{path} does not tell its version, but {said[:200]!r}", bootstrap.JDK_CURE)]
    if int(found[1]) < bootstrap.JAVA:
        return [fault("java", f"{path} is Java {found[1]}; {bootstrap.JAVA} or later is needed", bootstrap.JDK_CURE)]
    findings = [ok("java", f"Java {found[1]}{found[2]} at {path}")]
    if not (Path(path).resolve().parent / "javac").exists():
        what = f"{path} comes without javac: what is built runs, but {SETUP} can't build the connector anew"
        findings.append(warning("java", what, bootstrap.JDK_CURE))
    return findings


def jars(folder: Path, pom: Path = POM) -> list[Finding]:
    """The jars that the pom names are there and can be read, and were made from the sources as they are now."""
    findings = []
    for name, wanted in _Pom(pom).jars.items():
        there = {jar.name: jar for jar in (folder / name).glob("*.jar")}
        if lacking := sorted(wanted - set(there)):
            findings.append(fault("jars", f"{folder / name} lacks {_some(lacking)}", f"{_again(folder)}"))
        # A jar's directory is at its end: a download that was cut off has none.
        if broken := [jar.name for jar in there.values() if not zipfile.is_zipfile(jar)]:
            findings.append(fault("jars", f"{folder / name} has what is no whole jar: {_some(broken)}", _again(folder)))
        elif not lacking:
            total = sum(jar.stat().st_size for jar in there.values())
            findings.append(ok("jars", f"{name}: {len(there)} jars, {size(total)}, none of them cut off"))
    if folder.is_dir() and bootstrap.read(folder / bootstrap.JARS_STAMP.name) != bootstrap.stamp_of(
        *bootstrap.jar_sources()
    ):
        findings.append(warning("jars", "pom.xml or jobs/java has changed since the jars were made", SETUP))
    return findings


def home(settings: Settings) -> list[Finding]:
    """The folder of all state can be written, and its disk has room."""
    root, findings = settings.root, []
    there = nearest(root)
    choose = "set SAGASCOPE_HOME to a folder of your own"
    if not there.is_dir():
        return [fault("home", f"{there} is a file, and is to be a folder", f"move it away, or {choose}")]
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        findings.append(fault("home", f"{there} can't be written: {error.strerror}", f"chown or free it, or {choose}"))
    else:
        findings.append(
            ok("home", f"{root} can be written" if there == root else f"{root} is not made yet, but can be")
        )
    free = shutil.disk_usage(there).free
    if free < ROOM_NEEDED:
        cure = "free some, or set SAGASCOPE_HOME to another disk"
        findings.append(warning("home", f"{size(free)} free on its disk, less than {size(ROOM_NEEDED)}", cure))
    else:
        findings.append(ok("home", f"{size(free)} free on its disk"))
    return findings


def nearest(path: Path) -> Path:
    """The path itself where it exists, else what it would be made in."""
    return next(one for one in (path, *path.parents) if one.exists())


def dagster_port(port: int = DAGSTER_PORT) -> list[Finding]:
    """Whether `make dagster` would find its port free; as it should be where Dagster runs, it is no fault if not."""
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if taken:
        return [
            ok(
                "ports",
                f"{port} is taken, by Dagster or another",
                f"`make dagster PORT={port + 1}`, should it be another",
            )
        ]
    return [ok("ports", f"{port} is free for `make dagster`")]


def clock_kept() -> list[Finding]:
    """Whether the system says that this machine's clock is kept by NTP."""
    tool = shutil.which("timedatectl")
    said = ""
    if tool:
        done = subprocess.run(
            [tool, "show", "-p", "NTPSynchronized"], capture_output=True, text=True, check=False, timeout=10
        )
        said = done.stdout.strip()
    match said:
        case "NTPSynchronized=yes":
            return [ok("clock", "timedatectl says that NTP keeps this machine's clock")]
        case "NTPSynchronized=no":
            what = "timedatectl says that nothing keeps this machine's clock: event times may run away from other machines'"
            return [warning("clock", what, "`timedatectl set-ntp true`")]
        case _:
            return [ok("clock", "nothing here tells whether NTP keeps this machine's clock (no systemd)")]


class _Pom:
    """What pom.xml names: properties, and the jars that it lays out, by folder."""

    def __init__(self, file: Path) -> None:
        project = ET.parse(file).getroot()  # noqa: S314 - our own file
        block = project.find("m:properties", POM_NAMES)
        self.properties = {child.tag.rpartition("}")[2]: child.text or "" for child in (() if block is None else block)}
        own = f"{self._text(project, 'artifactId')}-{self._text(project, 'version')}.jar"
        items = project.iterfind(".//m:artifactItem", POM_NAMES)
        dependencies = project.iterfind("m:dependencies/m:dependency", POM_NAMES)
        self.jars = {
            "flink": {own, *(self._jar(item) for item in items)},
            "kafka": {self._jar(one) for one in dependencies if self._text(one, "scope") != "provided"},
        }
        """By folder; of the broker's only those that the pom names itself, not what they need in turn."""

    def _jar(self, item: ET.Element) -> str:
        return f"{self._text(item, 'artifactId')}-{self._text(item, 'version')}.jar"

    def _text(self, item: ET.Element, name: str) -> str:
        text = item.findtext(f"m:{name}", "", POM_NAMES)
        return re.sub(r"\$\{([^}]+)\}", lambda found: self.properties.get(found[1], found[0]), text)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _again(folder: Path) -> str:
    """Set-up does nothing while the stamp says that all is there."""
    return f"`rm -f {folder / bootstrap.JARS_STAMP.name} && make setup`"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
