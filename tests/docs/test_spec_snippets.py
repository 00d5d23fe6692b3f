"""The Python of docs/multi-sink-fanout.md, run from top to bottom in one namespace, against real servers.

A comment above each block gives its name and what it needs, which page_needs.py makes. `check_…` says what is to be
seen once the block has run.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import sagascope
from tests.docs.page_needs import MADE_BY, FileSink
from tests.servers.server import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


PAGE = CHECKOUT / "docs" / "multi-sink-fanout.md"
STORY = ["saga_started", "step_started", "step_completed", "saga_completed"]
_BLOCK = re.compile(r"^<!-- test: ([\w-]+)(?: needs ([\w ]+))? -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One block of Python."""

    name: str
    needs: Sequence[str]
    source: str
    line: int

    @property
    def code(self) -> Any:
        """Compiled so that a traceback shows the page's own line; may await at its top level."""
        return compile("\n" * (self.line - 1) + self.source, PAGE, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


TEXT = PAGE.read_text()
BLOCKS = [
    Block(found[1], (found[2] or "").split(), found[3], TEXT.count("\n", 0, found.start(3)) + 1)
    for found in _BLOCK.finditer(TEXT)
]


class Reader:
    """Somebody who runs the page: one namespace, one event loop, and what was made for it so far."""

    def __init__(self, runner: asyncio.Runner, folder: Path) -> None:
        self.namespace: dict[str, Any] = {"__name__": "page", "folder": folder}
        self.folder = folder
        self._runner = runner
        self._stack = AsyncExitStack()
        self._made: set[str] = set()

    def run(self, block: Block, request: pytest.FixtureRequest) -> None:
        """Make what the block needs, run it, check what it did."""
        makers = {name: MADE_BY[name] for name in block.needs if name not in self._made}
        servers = {n: request.getfixturevalue(m.fixture) if m.fixture else None for n, m in makers.items()}
        self._runner.run(
            self._read(block, {name: maker.made(servers[name], self.folder) for name, maker in makers.items()})
        )

    def close(self) -> None:
        """Close all clients."""
        self._runner.run(self._stack.aclose())

    async def _read(self, block: Block, making: dict[str, AbstractAsyncContextManager[dict[str, Any]]]) -> None:
        for name, made in making.items():
            self.namespace |= await self._stack.enter_async_context(made)
            self._made.add(name)
        done = eval(block.code, self.namespace)  # noqa: S307 - our own page
        if inspect.isawaitable(done):
            await done
        if check := CHECKS.get(block.name):
            await check(self.namespace)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """One for the whole page."""
    with asyncio.Runner() as runner:
        reader = Reader(runner, tmp_path_factory.mktemp("page"))
        yield reader
        reader.close()


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_the_page_does_what_it_says(block: Block, reader: Reader, request: pytest.FixtureRequest) -> None:
    """Each block runs as it stands, after those before it, and has the effect that the page claims."""
    reader.run(block, request)


def test_every_block_is_run() -> None:
    """No Python of the page goes unmarked, and what has an effect has a check."""
    assert len(BLOCKS) == TEXT.count("```python")
    assert {block.name for block in BLOCKS} == set(CHECKS) | {"order-saga"}
    assert {need for block in BLOCKS for need in block.needs} <= set(MADE_BY)


def test_the_page_has_the_specified_parts() -> None:
    """A reader of the specification finds each of its parts."""
    headings = [line.lstrip("# ").lower() for line in TEXT.splitlines() if line.startswith("#")]
    for part in (
        "overview",
        "architecture",
        "implementation",
        "registering multiple listeners",
        "custom sink listener template",
        "common sink implementations",
        "elasticsearch (search)",
        "redis (cache)",
        "webhook (external notification)",
        "best practices",
        "1. listener independence",
        "2. async all the way",
        "3. configure timeouts",
        "4. monitor listener health",
        "alternative: kafka consumer groups",
        "related documentation",
    ):
        assert part in headings
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert all((PAGE.parent / link).exists() for link in links)


async def check_registering(page: dict[str, Any]) -> None:
    """Every sink has the saga."""
    assert page["fan_out"].health().listeners
    assert all(counts.delivered == counts.accepted > 0 for counts in page["fan_out"].counts.values())
    assert page["spans"].get_finished_spans()
    assert sum(row["saga_id"] == "order-17" for row in await page["fluss_server"].rows("events_in")) == len(STORY)
    assert await page["redis"].hget("saga:order-17", "status") == "completed"
    assert await _found(page["elasticsearch"], "order-17") == len(STORY)
    assert await page["database"].fetchval("SELECT count(*) FROM sagascope_outbox WHERE saga_id = 'order-17'") == len(
        STORY
    )
    assert "order-17" in page["audit_path"].read_text()


async def check_any_executor(page: dict[str, Any]) -> None:
    """A listener is told of the same events, whoever runs the saga."""
    sink = FileSink(page["folder"] / "any-executor.jsonl")

    class Keep(sagascope.EventListener):
        async def write(self, events: Sequence[sagascope.SagaEvent]) -> None:
            for event in events:
                await sink.write(sagascope.encode(event))

    await page["run_order"]("order-30", Keep())
    assert sink.story("order-30") == STORY


async def check_hooks_template(page: dict[str, Any]) -> None:
    """Each hook of the template wrote its record."""
    written = page["sink_client"].written("order-18")
    assert [record["event_type"] for record in written] == ["saga_started", "step_completed", "saga_completed"]
    assert [record.get("step_name") for record in written] == [None, "charge", None]
    assert all(record["timestamp"].endswith("+00:00") for record in written)


async def check_failing_saga(page: dict[str, Any]) -> None:
    """The failure is told of, and a value of the saga's is not."""
    written = page["sink_client"].written("order-29")
    assert [record["event_type"] for record in written] == ["saga_started", "step_failed", "saga_rolled_back"]
    assert written[1]["error_type"] == "ValueError"
    assert "refused" in str(page["reason"])
    assert "refused" not in json.dumps(written)


async def check_elasticsearch(page: dict[str, Any]) -> None:
    """Each event is a document."""
    assert await _found(page["elasticsearch"], "order-20") == len(STORY)


async def check_redis(page: dict[str, Any]) -> None:
    """The hash has the saga's state, for an hour."""
    assert await page["redis"].hget("saga:order-21", "status") == "completed"
    assert 0 < await page["redis"].ttl("saga:order-21") <= 3_600


async def check_outbox(page: dict[str, Any]) -> None:
    """Each event is a row."""
    rows = await page["database"].fetch(
        "SELECT event_type FROM sagascope_outbox WHERE saga_id = 'order-22' ORDER BY position"
    )
    assert [row["event_type"] for row in rows] == STORY


async def check_prometheus(page: dict[str, Any]) -> None:
    """The saga is counted."""
    labels = {"saga_name": "order-processing", "status": "completed"}
    assert page["prometheus_registry"].get_sample_value("saga_execution_total", labels) >= 1


async def check_webhook(page: dict[str, Any]) -> None:
    """One request, of the saga's end, which the library of Standard Webhooks verifies."""
    (received,) = page["endpoint"].received
    assert received.verified
    assert (received.content["event"], received.content["saga_id"]) == ("saga_completed", "order-24")
    assert received.content["duration_ms"] >= 0


async def check_resilient(page: dict[str, Any]) -> None:
    """Delivered, so that there is no dead letter."""
    assert page["sink_client"].story("order-25") == STORY
    assert not page["dead_letters_path"].exists()


async def check_monitored(page: dict[str, Any]) -> None:
    """Calls are counted under the names that the page gives."""
    labels = {"listener": "custom", "hook": "write"}
    for metric in ("listener_success_total", "listener_duration_count"):
        assert page["prometheus_registry"].get_sample_value(metric, labels) >= 1
    assert page["sink_client"].story("order-28") == STORY


async def check_consumer_group(page: dict[str, Any]) -> None:
    """A batch of records' values is delivered by `write`."""
    sink = page["sink_client"]
    values = [json.dumps(record).encode() for record in sink.written("order-19")]
    await page["deliver"](values, page["CustomEventListener"](sink))
    assert sink.story("order-19") == STORY * 2


def _wrote(saga_id: str) -> Callable[[dict[str, Any]], Any]:
    async def check(page: dict[str, Any]) -> None:
        assert page["sink_client"].story(saga_id) == STORY

    return check


async def _found(elasticsearch: Any, saga_id: str) -> int:
    await elasticsearch.indices.refresh(index="saga-events")
    query = {"term": {"saga_id": saga_id}}
    return int((await elasticsearch.count(index="saga-events", query=query))["count"])


CHECKS = {
    "registering": check_registering,
    "any-executor": check_any_executor,
    "hooks-template": check_hooks_template,
    "events-template": _wrote("order-19"),
    "elasticsearch": check_elasticsearch,
    "redis": check_redis,
    "outbox": check_outbox,
    "prometheus": check_prometheus,
    "webhook": check_webhook,
    "resilient": check_resilient,
    "async": _wrote("order-26"),
    "timeout": _wrote("order-27"),
    "monitored": check_monitored,
    "failing-saga": check_failing_saga,
    "consumer-group": check_consumer_group,
}
