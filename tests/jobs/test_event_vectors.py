"""The job's parser, in Java, against `sagascope.events.decode`: they must not differ on a single record."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sagascope.events import InvalidEventError, decode
from tests.event_vectors import VECTORS, mutated

if TYPE_CHECKING:
    from warehouse.settings import Settings

pytestmark = pytest.mark.flink

RECORD_TIME = 1_790_000_000_000
DAMAGED = 20_000

# In a process of its own: a JVM that PyFlink starts lives as long as the process does.
REASONS = """
import base64, json, os, sys
from jobs.flink import prepare_jvm
from warehouse.settings import Settings
prepare_jvm(Settings.from_environment(os.environ))
from pyflink.java_gateway import get_gateway
parser = get_gateway().jvm.io.sagascope.flink.SagaEventParser
for line in sys.stdin:
    value, record_time = json.loads(line)
    print(json.dumps(parser.reasonOf(base64.b64decode(value), record_time)))
"""


def fields_named(settings: Settings, records: list[tuple[bytes, int]]) -> list[str | None]:
    """The field that the job's parser finds wrong in each record."""
    lines = "".join(json.dumps([base64.b64encode(value).decode(), time]) + "\n" for value, time in records)
    done = subprocess.run(
        [sys.executable, "-c", REASONS],
        input=lines,
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reasons = [json.loads(line) for line in done.stdout.splitlines()]
    return [reason and reason.split(":")[0] for reason in reasons]


def test_vectors_and_damaged_records(local: Settings) -> None:
    """All vectors, and thousands of records damaged at random (seeded): the same field is wrong, or the same ones are valid."""
    vectors = [(vector.value, vector.record_time) for vector in VECTORS]
    rng = random.Random(5)
    damaged = [(mutated(rng), RECORD_TIME) for _ in range(DAMAGED)]
    found = fields_named(local, vectors + damaged)
    assert dict(zip([v.name for v in VECTORS], found, strict=False)) == {v.name: v.wrong for v in VECTORS}
    expected = [_wrong(value) for value, _ in damaged]
    differing = [(v, e, f) for (v, _), e, f in zip(damaged, expected, found[len(vectors) :], strict=True) if e != f]
    assert differing == []
    assert sum(field is None for field in expected) > 100, "hardly a damaged record is valid: the fuzz tries too little"


def _wrong(value: bytes) -> str | None:
    try:
        decode(value, RECORD_TIME)
    except InvalidEventError as error:
        return error.field
    return None
