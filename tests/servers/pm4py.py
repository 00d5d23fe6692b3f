"""PM4Py, a reader of object-centric event logs that is not ours: in an environment of its own, installed once.

It is in no lock of ours: it brings half a gigabyte, a numpy and pandas of its own, and another licence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
import venv
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.server import DOWNLOADS, INSTALL_SECONDS, absent, say

if TYPE_CHECKING:
    from pathlib import Path

REQUIREMENT = "pm4py==2.7.23.11"
SCRIPT = """
import json, sys
import pm4py
log = pm4py.read_ocel2_json(sys.argv[1])
print(json.dumps({
    "events": len(log.events),
    "activities": log.events["ocel:activity"].value_counts().to_dict(),
    "objects": log.objects["ocel:type"].value_counts().to_dict(),
    "relations": log.relations["ocel:qualifier"].value_counts().to_dict(),
    "between_objects": log.o2o["ocel:qualifier"].value_counts().to_dict(),
    "types": {name: str(kind) for name, kind in log.events.dtypes.items()},
    "rows": json.loads(log.events.to_json(orient="records", date_format="iso")),
    "things": json.loads(log.objects.to_json(orient="records")),
}))
"""


@pytest.fixture(scope="session")
def pm4py_python() -> Path:
    """The Python that has it; the environment is made once, also by two test runs that begin together."""
    home = DOWNLOADS / REQUIREMENT.replace("==", "-")
    if not home.exists():
        _install(home)
    return home / "bin" / "python"


def _install(home: Path) -> None:
    """A venv can't be moved: its scripts name its folder. Only its Python is used, which finds its packages by where it is."""
    own = DOWNLOADS / f"pm4py.{uuid.uuid4().hex}"
    own.parent.mkdir(parents=True, exist_ok=True)
    say(f"Installing {REQUIREMENT} for the tests, in {home}")
    try:
        venv.create(own, with_pip=True)
        command = [str(own / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
        if done.returncode:
            say(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
            absent(REQUIREMENT, "see the lines above; the network?")
        try:
            own.rename(home)
        except OSError:
            if not home.exists():  # else another run was first
                raise
    finally:
        shutil.rmtree(own, ignore_errors=True)


def read(python: Path, file: Path) -> dict[str, Any]:
    """What it finds in a log of OCEL 2.0, JSON."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", SCRIPT, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
