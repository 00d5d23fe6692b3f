"""What is a valid event: one set of records, by which `sagascope.events.decode` and the job's parser are judged alike.

A line of event_vectors.jsonl: `name`; the record's value as `text` (in which @RUN@ stands for `run`, a text and how often)
or as `base64`; its timestamp `record_time`; and `wrong`, the field that makes it none, null where it is a valid event.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import random

FILE = Path(__file__).with_suffix(".jsonl")

SCRAPS = [
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud83d", b"\\ude00", b'""', b" ", b"\n"),
    *(b"null", b"true", b"1", b"0", b"-", b".", b"e", b"9" * 20),
    *(b"\xff", b"\xc3\xa4", b"\x00", b"\xef\xbb\xbf"),
]


class Vector(msgspec.Struct, frozen=True):
    """A record and what is wrong with it."""

    name: str
    record_time: int
    wrong: str | None
    text: str = ""
    run: tuple[str, int] = ("", 0)
    base64: str = ""

    @property
    def value(self) -> bytes:
        """The record's bytes."""
        piece, times = self.run
        return self.text.replace("@RUN@", piece * times).encode() or base64.b64decode(self.base64)


VECTORS = [msgspec.json.decode(line, type=Vector) for line in FILE.read_bytes().splitlines()]

SHORT = [vector.value for vector in VECTORS if 0 < len(vector.text) < 2_000]


def mutated(rng: random.Random) -> bytes:
    """A vector's value with one to three places of it damaged."""
    value = bytearray(rng.choice(SHORT))
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(value) + 1)
        match rng.randrange(4):
            case 0:
                value[place:place] = rng.choice(SCRAPS)
            case 1:
                value[place : place + rng.randint(1, 3)] = rng.choice(SCRAPS)
            case 2:
                del value[place : place + rng.randint(1, 8)]
            case _:
                other = rng.choice(SHORT)
                start = rng.randrange(len(other))
                value[place:place] = other[start : start + rng.randint(1, 40)]
    return bytes(value)
