"""The chain of hashes: whatever is done to a log, the first entry that suffered is named."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sagascope.audit.chain import GENESIS, Entry, Verification, Verifier, as_line, chained, from_line
from sagascope.events import encode
from tests.sagascope.conftest import make_event

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENTS = [encode(make_event(saga_id=f"order-{n}", attributes={"ö": '"\n'})) for n in range(8)]
CHAIN = chained(EVENTS, None, 1_700_000_000_000)
positions = st.integers(0, len(CHAIN) - 1)


def verified(entries: Sequence[Entry | None], head: str | None = None) -> Verification:
    """What is found in these."""
    verifier = Verifier(head)
    for entry in entries:
        if broken := verifier.objection(entry, "here"):
            return broken
    return verifier.result()


def test_a_chain_is_whole_and_ends_in_its_head() -> None:
    """Nothing is objected to what was written; an empty log is whole, too."""
    assert verified(CHAIN) == (len(CHAIN), CHAIN[-1].hash, None)
    assert verified([]) == (0, GENESIS, None)
    assert chained(EVENTS[3:], CHAIN[2], 1_700_000_000_000) == CHAIN[3:]


def test_the_hash_is_what_anybody_can_compute() -> None:
    """SHA-256 of the line without its last field, which is JSON again; the format is a promise to other programs."""
    line = as_line(CHAIN[1])
    body, _, rest = line.partition(b',"hash":"')
    assert rest == hashlib.sha256(body + b"}").hexdigest().encode() + b'"}\n'
    fields = json.loads(line)
    assert list(fields) == ["sequence", "recorded_at", "previous", "event", "hash"]
    assert (fields["sequence"], fields["previous"]) == (2, CHAIN[0].hash)
    assert from_line(line) == CHAIN[1]


@given(positions, st.data())
def test_any_changed_byte_of_a_line_is_found(position: int, data: st.DataObject) -> None:
    """Also where the JSON is the same afterwards, as by a space."""
    lines = [as_line(entry) for entry in CHAIN]
    line = bytearray(lines[position])
    at = data.draw(st.integers(0, len(line) - 2))
    line[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    found = verified([from_line(each) for each in [*lines[:position], bytes(line), *lines[position + 1 :]]])
    assert found.entries == position
    assert found.broken


@given(positions, st.integers(1, 20))
def test_a_line_cut_short_is_found(position: int, cut: int) -> None:
    """In the middle of the log as at its end."""
    lines = [as_line(entry) for entry in CHAIN]
    lines[position] = lines[position][: -1 - cut]
    found = verified([from_line(line) for line in lines])
    assert found.entries == position
    assert found.broken


@given(positions, st.sampled_from(["sequence", "recorded_at", "previous", "event"]))
def test_a_change_whose_hash_was_computed_again_is_found(position: int, field: str) -> None:
    """At the entry itself or, where it is consistent in itself, at the one after; at the very end by the head."""
    changed = {"sequence": 99, "recorded_at": 1, "previous": "f" * 64, "event": b'{"event_id":"x"}'}[field]
    forged = CHAIN[position]._replace(**{field: changed})  # type: ignore[arg-type] # of its field's type
    forged = forged._replace(hash=hashlib.sha256(as_line(forged).partition(b',"hash":"')[0] + b"}").hexdigest())
    found = verified([*CHAIN[:position], forged, *CHAIN[position + 1 :]], head=CHAIN[-1].hash)
    assert found.broken
    assert found.entries in (position, position + 1)


@given(st.lists(positions, max_size=12))
def test_entries_removed_doubled_or_moved_are_found(order: list[int]) -> None:
    """Any selection in any order is broken at the first entry out of place; a mere prefix only where the head is known."""
    in_place = next((n for n, position in enumerate(order) if position != n), len(order))
    found = verified([CHAIN[position] for position in order])
    assert found.entries == in_place
    assert bool(found.broken) == (in_place < len(order))
    if found.broken:
        assert found.broken.startswith(f"entry {in_place + 1} (here) is number {order[in_place] + 1}:")
    assert bool(verified([CHAIN[position] for position in order], CHAIN[-1].hash).broken) == (order != [*range(8)])


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_other_line_is_an_entry(line: bytes) -> None:
    """Whatever stands in a file, reading it raises nothing."""
    assert from_line(line) is None
    assert from_line(b"[" * 100_000) is None
