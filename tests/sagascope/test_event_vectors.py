"""`decode` against the vectors that the job's parser is judged by, too."""

from __future__ import annotations

import pytest

from sagascope.events import InvalidEventError, decode
from tests.event_vectors import VECTORS, Vector


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_vector(vector: Vector) -> None:
    """A valid event is read; for another record the field that is wrong is named."""
    if vector.wrong is None:
        decode(vector.value, vector.record_time)
        return
    with pytest.raises(InvalidEventError) as caught:
        decode(vector.value, vector.record_time)
    assert caught.value.field == vector.wrong
