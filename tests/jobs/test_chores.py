"""What is done beside the stream, and what is said of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from jobs.chores import Chores

if TYPE_CHECKING:
    import pytest

    from warehouse.settings import Settings


def test_a_chore_that_fails_is_told_once_and_again_after_it_was_done(
    local: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same reason turn after turn is one line; another reason, or the same one after a success, is news."""
    broken = ["no room", "no room", "no room", "", "no room", "locked", "locked"]

    def tidy() -> None:
        if reason := broken.pop(0):
            raise OSError(reason)

    work = Chores(local)
    done = [work._try(tidy) for _ in range(len(broken))]
    assert done == [False, False, False, True, False, False, False]
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["chore"], line["reason"]) for line in said] == [
        ("tidy", "OSError: no room"),
        ("tidy", "OSError: no room"),
        ("tidy", "OSError: locked"),
    ]
