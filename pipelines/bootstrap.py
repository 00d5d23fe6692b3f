"""Sets up what is missing: `.venv` from requirements.lock, the jars from pom.xml. Run by `make`, with any Python 3.

Standard library only, and no syntax newer than Python 3.7: it has to be able to say that a Python is too old. Does
nothing, in a blink, where all is there already. Each thing that is missing is one line with its cure.
"""

import errno
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = ROOT / ".sagascope"
PYTHON = (3, 11)
JAVA = 17
JDK_CURE = "install a JDK 17 (Debian: apt install openjdk-17-jdk-headless)"
DISK_NEEDED_GIB = 4
PACKAGES_STAMP = VENV / "sagascope-requirements.sha256"
JARS_STAMP = STATE / "jars" / "pom.sha256"

COMMAND = """#!/bin/sh
exec {python} -P -m pipelines "$@"
"""


class MissingError(Exception):
    """Something is missing that this can't bring; the message has the cure."""


def main() -> None:
    """Set up; exit code 1 with one line where something is missing."""
    try:
        STATE.mkdir(exist_ok=True)
        with (STATE / "bootstrap.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two `make`s at once: the second one finds all done
            set_up()
    except MissingError as missing:
        sys.exit(f"sagascope: {missing}")
    except OSError as error:
        sys.exit(f"sagascope: {disk_full() if error.errno == errno.ENOSPC else f'set-up failed: {error}'}")
    except KeyboardInterrupt:
        sys.exit("\nsagascope: set-up interrupted; run it again, it goes on where it was")


def set_up() -> None:
    """Bring the packages and the jars, unless they are there for this very lock file and pom."""
    java = find_java()
    if stamp_of(ROOT / "requirements.lock") != read(PACKAGES_STAMP):
        install_packages(find_python())
    if stamp_of(*jar_sources()) != read(JARS_STAMP):
        install_jars(find_maven(), java)


def find_python() -> str:
    """The Python 3.11 that the lock file is for."""
    names = [os.environ.get("PYTHON"), "python3.11", "python3", sys.executable]
    for name in filter(None, names):
        path = shutil.which(name)
        if path and VENV in Path(path).parents:
            continue  # an activated .venv, which is about to be made anew
        if path and version_of([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]) == "3.11":
            return path
    raise MissingError(
        f"Python 3.11 is not on the PATH (this is {sys.version_info[0]}.{sys.version_info[1]}): install it (Debian 12: "
        "apt install python3.11-venv; elsewhere: pyenv install 3.11), or name one with PYTHON=/path/to/python3.11"
    )


def require_venv(python: str) -> None:
    """That Python can make virtual environments: Debian's is without them until a package of its own is there."""
    probe = subprocess.run([python, "-c", "import ensurepip, venv"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if probe.returncode:
        raise MissingError(f"{python} can't make virtual environments: apt install python3.11-venv")


def find_java() -> str:
    """The Java of JAVA_HOME, else of the PATH; 17 or later."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if not java:
        where = f"in JAVA_HOME={home}" if home else "on the PATH"
        raise MissingError(f"no java {where}: {JDK_CURE}")
    found = re.search(r'version "(\d+)', version_of([java, "-version"]))
    if not found or int(found.group(1)) < JAVA:
        is_version = found.group(1) if found else "of no known version"
        raise MissingError(f"{java} is Java {is_version}: {JDK_CURE}")
    return java


def find_maven() -> str:
    """Maven, for the jars."""
    maven = shutil.which("mvn")
    if not maven:
        raise MissingError("no mvn on the PATH: install Maven (Debian: apt install maven)")
    return maven


def install_packages(python: str) -> None:
    """A new virtual environment with exactly what the lock file names, each file checked by its hash."""
    require_disk()
    require_venv(python)
    total = len(re.findall(r"^[A-Za-z0-9_.-]+==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    with Step("Python packages", "about 1.5 GB in .venv, two minutes or more the first time") as step:
        shutil.rmtree(str(VENV), ignore_errors=True)
        step.run([python, "-m", "venv", str(VENV)])
        pip = [
            str(VENV / "bin" / "python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--progress-bar=off",
        ]
        fetched = Counter("Collecting ", total)
        step.run([*pip, "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements.lock")], fetched)
        step.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
        command = VENV / "bin" / "sagascope"
        command.write_text(COMMAND.format(python=shlex.quote(str(VENV / "bin" / "python"))))
        command.chmod(0o755)
    PACKAGES_STAMP.write_text(stamp_of(ROOT / "requirements.lock"))


def install_jars(maven: str, java: str) -> None:
    """The jars that pom.xml names and the one that it builds, laid out under .sagascope/jars."""
    require_disk()
    home = Path(java).resolve().parent.parent
    if not (home / "bin" / "javac").exists():
        raise MissingError(f"{java} comes without a compiler: {JDK_CURE}")
    with Step("Jars: Kafka broker, Flink connectors", "about 150 MB") as step:
        shutil.rmtree(str(STATE / "jars"), ignore_errors=True)
        step.run([maven, "--batch-mode", "--quiet", "--file", str(ROOT / "pom.xml"), "package"], java_home=home)
    JARS_STAMP.write_text(stamp_of(*jar_sources()))


def jar_sources() -> List[Path]:
    """What the jars are made from."""
    return [ROOT / "pom.xml", *sorted(file for file in (ROOT / "jobs" / "java").rglob("*") if file.is_file())]


class Counter:
    """Progress from a command's output: how many of so many lines begin so."""

    def __init__(self, prefix: str, total: int) -> None:
        self.prefix, self.total, self.count = prefix, total, 0

    def note(self, line: str) -> str:
        """What to show after this line."""
        self.count += line.startswith(self.prefix)
        if line.startswith("Installing collected"):
            return f"installing {self.count} packages"
        return f"fetching {self.count} of {self.total}"


class Step:
    """One step of the set-up, with what it is at on one line of the terminal, and its seconds when it is done."""

    def __init__(self, name: str, hint: str) -> None:
        self.name, self.began, self.live = name, time.time(), sys.stdout.isatty()
        print(f"Set-up: {name} ({hint}) …", flush=True)

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.show("")
            print(f"Set-up: {self.name} done, {time.time() - self.began:.0f} s", flush=True)

    def show(self, what: str) -> None:
        """Overwrite the line; only where there is a terminal."""
        if self.live:
            line = f"  {what} … {time.time() - self.began:.0f} s" if what else ""
            print("\r\x1b[K" + line, end="", flush=True)

    def run(self, command: List[str], counter: Optional[Counter] = None, java_home: Optional[Path] = None) -> None:
        """Run a command; where it fails, its last lines and what to do."""
        environment = dict(os.environ, JAVA_HOME=str(java_home)) if java_home else None
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        lines = []
        for line in child.stdout or ():
            lines.append(line.rstrip())
            if counter:
                self.show(counter.note(line.strip()))
        if child.wait():
            self.show("")
            if any("No space left on device" in line for line in lines):
                raise disk_full()
            said = "\n".join(line for line in lines[-12:] if line)
            raise MissingError(f"{self.name} failed; check the network and run it again. It said:\n{said}")


def require_disk() -> None:
    """Enough room to begin."""
    free = shutil.disk_usage(str(ROOT)).free / 2.0**30
    if free < DISK_NEEDED_GIB:
        raise MissingError(f"{free:.1f} GiB free for {ROOT}, {DISK_NEEDED_GIB} needed: free some")


def disk_full() -> MissingError:
    """What to do where the room ran out on the way."""
    return MissingError(f"the disk is full: free {DISK_NEEDED_GIB} GiB for {ROOT}")


def version_of(command: List[str]) -> str:
    """What a command prints of its version; empty where it can't run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def stamp_of(*files: Path) -> str:
    """The SHA-256 of the files, and of where the clone is: a virtual environment does not move."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files) + str(ROOT).encode()).hexdigest()


def read(file: Path) -> str:
    """A stamp's text; empty where there is none."""
    return file.read_text() if file.exists() else ""


if __name__ == "__main__":
    main()
