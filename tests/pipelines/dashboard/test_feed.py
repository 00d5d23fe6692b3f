"""One reader for all viewers: the same bytes for each, the newest for who is slow, and whatever becomes of the tables."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import msgspec

from pipelines.dashboard import api, feed
from tests.pipelines.dashboard.conftest import serving
from tests.warehouse.planted import append, event, events_of
from warehouse import catalog
from warehouse.catalog import open_catalog
from warehouse.live_frame import Frame
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from tests.pipelines.dashboard.conftest import Served
    from warehouse.settings import Settings

SOON_SECONDS = 3.0
"""A look and a frame are half a second each; the rest is for a machine that does more."""


def messages(lines: Iterator[str]) -> Iterator[list[str]]:
    """The messages of a stream, each as its lines."""
    message: list[str] = []
    for line in lines:
        if line:
            message.append(line)
        else:
            yield message
            message = []


def some_messages(served: Served, number: int, **headers: str) -> list[list[str]]:
    """The first messages of a new stream."""
    with httpx.stream("GET", served.address + "/api/v1/stream", headers=headers, timeout=30) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        found = messages(stream.iter_lines())
        return [next(found) for _ in range(number)]


def test_all_viewers_get_the_same_bytes(served: Served) -> None:
    """Of each number one message; a message has an id, a time to come again after, and a frame."""
    got: dict[int, list[list[str]]] = {}

    def view(number: int) -> None:
        got[number] = some_messages(served, 4)

    threads = [threading.Thread(target=view, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    by_id: dict[str, set[str]] = {}
    for stream in got.values():
        for number, kind, retry, data in stream:
            assert (kind, retry) == ("event: frame", "retry: 1000")
            assert msgspec.json.decode(data.removeprefix("data: "), type=Frame).windows
            by_id.setdefault(number, set()).add(data)
    assert all(len(texts) == 1 for texts in by_id.values())
    assert len(by_id) < 12, "streams of the same time share messages"


def test_who_connects_again_goes_on_with_the_newest(served: Served) -> None:
    """Whatever was seen last; numbers rise."""
    [first] = some_messages(served, 1)
    [second, third] = some_messages(served, 2, **{"Last-Event-ID": first[0].removeprefix("id: ")})
    numbers = [int(message[0].removeprefix("id: ")) for message in (first, second, third)]
    assert numbers[0] <= numbers[1] < numbers[2]


def test_a_slow_viewer_gets_the_newest_never_a_queue(local: Settings) -> None:
    """Frames that it was too slow for are left out, and nothing of them is kept."""
    now = datetime.now(UTC)
    open_catalog(local)
    ended = {"step_name": "s", "duration_ms": 7}
    append(
        local, EVENTS, [event(n, 0, "step_completed", now, **ended | {"step_name": f"step-{n}"}) for n in range(200)]
    )
    with serving(local) as served:
        served.await_frame(lambda frame: frame["windows"][-1]["steps_known"] == 200)
        address = urlsplit(served.address)
        with socket.create_connection((address.hostname, address.port or 80)) as slow:
            slow.sendall(f"GET /api/v1/stream HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            time.sleep(1.0)
            ours = served.dashboard.feed
            made = 0
            while made < 200:
                ours.make()
                made += 1
                time.sleep(0.002)
            last = ours.newest.number
            slow.settimeout(10)
            received = b""
            while b"id: %d\n" % last not in received and b"id: %d\n" % (last + 1) not in received:
                received += slow.recv(1 << 20)
        assert received.count(b"event: frame") < made / 2
        assert served.dashboard.feed.viewers <= 1


def test_a_stream_without_news_is_kept_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a comment, which browsers leave out."""
    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.05)
    found = [line for message in some_messages(served, 6) for line in message]
    assert ": still here" in found


def test_tables_that_come_and_go(local: Settings) -> None:
    """Without tables it serves and says so; it shows them when they come, and when they were deleted and made again."""
    with serving(local) as served:
        frame = served.await_frame(lambda frame: frame["problem"] and "no tables yet" in frame["problem"])
        assert "`sagascope analyze`" in frame["problem"]
        assert not local.catalog_file.exists(), "a reader makes none"
        assert served.get("/readyz").status_code == 503
        assert served.get("/api/v1/running").status_code == 503
        assert "no tables yet" in served.get("/api/v1/sagas").json()["error"]
        assert served.get("/api/v1/system").json()["tables"] == []
        for run in (0, 1):
            open_catalog(local)
            append(local, EVENTS, events_of(run, datetime.now(UTC) - timedelta(minutes=1)))
            frame = served.await_frame(lambda frame: frame["problem"] is None and frame["snapshot_id"])
            assert frame["windows"][-1]["all_sagas"]["completed"] == 1
            assert served.get("/readyz").status_code == 200
            shutil.rmtree(local.root / "lake")
            served.await_frame(lambda frame: frame["problem"] is not None)
        assert [line.partition(" in ")[0] for line in served.said][:2] == [
            "there are no tables yet",
            "the tables are read",
        ]


def test_new_events_are_seen_at_once(local: Settings) -> None:
    """Soon after their commit, and a stale table is told in plain words."""
    open_catalog(local)
    with serving(local) as served:
        frame = served.await_frame(lambda frame: frame["problem"] is None)
        assert "nothing was ever committed" in frame["freshness"]["stale"]
        for number, run in enumerate((0, 1, 3), start=1):
            append(local, EVENTS, events_of(run, datetime.now(UTC) - timedelta(seconds=5)))
            began = time.monotonic()
            while served.get("/api/v1/live").json()["windows"][0]["all_sagas"]["started"] < number:
                assert time.monotonic() - began < SOON_SECONDS
                time.sleep(0.05)
        assert served.await_frame(lambda frame: True)["freshness"]["stale"] is None


def test_a_locked_catalog_is_told(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says who may hold it; it goes on when the lock is gone."""
    monkeypatch.setattr(catalog, "BUSY_TIMEOUT_SECONDS", 0.2)
    open_catalog(local).close()
    with closing(sqlite3.connect(local.catalog_file, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with serving(local) as served:
            frame = served.await_frame(lambda frame: frame["problem"] and "locked" in frame["problem"])
            assert "another process has held it" in frame["problem"]
            other.execute("COMMIT")
            other.close()
            served.await_frame(lambda frame: frame["problem"] is None)
            assert ["locked" in line for line in served.said] == [True, False]


def test_a_reader_that_fails_goes_on(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was: it is told, and the next look may be better."""
    monkeypatch.setattr(feed, "BACK_OFF_SECONDS", 0.1)
    open_catalog(local)
    with serving(local) as served:
        served.await_frame(lambda frame: frame["problem"] is None)
        live = served.dashboard.feed.live

        def fail() -> bool:
            msg = "something new"
            raise ArithmeticError(msg)

        with monkeypatch.context() as patch:
            patch.setattr(live, "refresh", fail)
            frame = served.await_frame(lambda frame: frame["problem"] is not None)
            assert "ArithmeticError: something new" in frame["problem"]
        served.await_frame(lambda frame: frame["problem"] is None)
