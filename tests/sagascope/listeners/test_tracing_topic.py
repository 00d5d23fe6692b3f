"""TracingSagaListener on events of a topic, with their own times, and spans on the wire."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from sagascope.events import EventType, SagaEvent
from sagascope.listeners.tracing import TracingSagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run
from tests.sagascope.listeners.test_tracing import Tracing, attributes, make_tracing, nothing_is_logged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


__all__ = ["nothing_is_logged"]  # a fixture


def from_topic(events: Sequence[SagaEvent], batch: int = 500) -> Tracing:
    """What is exported of events that come from a topic, in batches."""
    tracing = make_tracing()

    async def main() -> None:
        with tracing.tracer.start_as_current_span("consumer"):
            for start in range(0, len(events), batch):
                await tracing.listener.write(events[start : start + batch])
            await tracing.listener.close()

    asyncio.run(main())
    return tracing


def times(tracing: Tracing) -> dict[tuple[str, str], tuple[int, int]]:
    """Begin and end of each span, by saga_id and name, in milliseconds."""
    return {
        (attributes(s)["saga.id"], s.name): ((s.start_time or 0) // 1_000_000, (s.end_time or 0) // 1_000_000)
        for s in tracing.spans
        if s.name != "consumer"
    }


BEGAN = 1_780_000_000_000


RUNS = [*a_run("o-1"), *a_run("t-1", "trip")]


WHOLE = {
    ("o-1", "saga.execute.order"): (BEGAN, BEGAN + 3),
    ("o-1", "saga.step.action.pay"): (BEGAN + 1, BEGAN + 2),
    ("t-1", "saga.execute.trip"): (BEGAN, BEGAN + 3),
    ("t-1", "saga.step.action.pay"): (BEGAN + 1, BEGAN + 2),
}


@given(st.permutations(RUNS), st.lists(st.sampled_from(RUNS), max_size=5))
def test_events_of_a_topic_become_traces_of_their_own_time(events: list[SagaEvent], again: list[SagaEvent]) -> None:
    """Events that nobody traced make the same spans in any order within a batch, and a duplicate makes none."""
    tracing = from_topic([*events, *again])
    assert times(tracing) == WHOLE
    assert len(tracing.spans) == len(WHOLE) + 1
    assert tracing.tree == {
        "saga.execute.order": {"saga.step.action.pay": {}},
        "saga.execute.trip": {"saga.step.action.pay": {}},
        "consumer": {},
    }


def test_events_that_were_traced_make_no_spans() -> None:
    """An event with a trace_id has its span already, made where it happened."""
    traced = [make_event(event_type=e.event_type, step_name=e.step_name, trace_id="0af7" * 8) for e in RUNS]
    assert times(from_topic(traced)) == {}


def test_batches_go_on_with_what_others_began() -> None:
    """A run whose events come one by one is one trace, and its end seen again makes no other."""
    assert times(from_topic([*RUNS, *RUNS], batch=1)) == WHOLE


def test_an_event_after_the_end_of_its_run_is_too_late() -> None:
    """A step's end that is read after its run's, in another batch, neither ends that span again nor begins a trace."""
    start, began, ended, end = a_run("o-1")
    tracing = from_topic([start, began, end, ended], batch=3)
    assert times(tracing) == {
        ("o-1", "saga.execute.order"): (BEGAN, BEGAN + 3),
        ("o-1", "saga.step.action.pay"): (BEGAN + 1, BEGAN + 3),
    }
    assert attributes(tracing.named("saga.step.action.pay"))["saga.step.status"] == "abandoned"


def test_a_reader_that_joins_midway_sees_what_it_can() -> None:
    """Of a run whose start was not read, spans begin as long before the events as these say."""
    events = [
        make_event(event_type=EventType.STEP_COMPLETED, step_name="pay", duration_ms=40, timestamp=1_000, run_id="r"),
        make_event(
            event_type=EventType.SAGA_ROLLED_BACK,
            error_type="OSError",
            error_message="gone",
            total_duration_ms=90,
            timestamp=1_050,
            sequence=1,
            run_id="r",
        ),
    ]
    tracing = from_topic(events)
    assert times(tracing) == {
        ("order-17", "saga.step.action.pay"): (960, 1_000),
        ("order-17", "saga.execute.order"): (960, 1_050),
    }
    assert tracing.named("saga.execute.order").status.description == "OSError: gone"


class Receiver:
    """A receiver of OTLP over HTTP, which keeps the spans of what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        receiver.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        """Where to send to."""
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


def test_spans_arrive_over_otlp() -> None:
    """By the wire's own protocol the trace arrives whole, with its parents, errors and odd characters."""
    with receiving() as receiver:
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(receiver.endpoint, compression=None)))
        listener = TracingSagaListener(provider.get_tracer("test"))

        async def main() -> None:
            async with saga_scope("o-\ud800-ö\0", "order\n", listeners=[listener]) as saga:
                await saga.started({})
                await saga.step_started("pay")
                await saga.step_failed("pay", ValueError("x " * 500_000 + "\ud800"))
                await saga.failed(ValueError("\ud800"))

        asyncio.run(main())
        provider.shutdown()
    step, run = sorted(receiver.spans, key=lambda span: str(span.name), reverse=True)
    assert (step.name, run.name) == ("saga.step.action.pay", "saga.execute.order\n")
    assert step.parent_span_id == run.span_id
    assert step.trace_id == run.trace_id
    assert step.status.message.startswith("ValueError: x x ")
    assert len(step.status.message) < 9_000
    assert {a.key: a.value.string_value for a in run.attributes}["saga.id"] == "o-?-ö\0"
