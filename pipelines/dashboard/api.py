"""The routes of what is going on now: the frame, the stream of frames, running sagas, flows, metrics, health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import msgspec
from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from pipelines.dashboard.answers import Flow, FlowStep, Health
from pipelines.dashboard.documents import answered
from pipelines.dashboard.feed import Feed
from pipelines.dashboard.metrics import LiveMetrics
from pipelines.dashboard.problems import NotFoundError, UnusableError
from sagascope.definitions import StepDefinition
from warehouse.live_figures import SPANS, SlidingWindow, StepFigures
from warehouse.live_frame import Frame
from warehouse.live_running import SORTS, RunningPage

HEARTBEAT_SECONDS = 5.0
"""After so long without a frame a comment is sent, so that neither proxies nor browsers give up."""
MOST_RUNNING = 500

Window = Annotated[str, Query(description=f"The sliding window: {', '.join(SPANS)}.")]


class Json(Response):
    """JSON that is written already."""

    media_type = "application/json"


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


def routes(feed: Feed) -> APIRouter:
    """The routes over a feed."""
    router = APIRouter(default_response_class=Json)
    metrics = LiveMetrics(feed)

    @router.get("/api/v1/live", tags=["live"], responses=answered(Frame, "The newest frame"))
    async def live() -> Json:
        """All numbers of now: sliding windows, the series of the last hour, active sagas, freshness. Made at most twice a second."""
        return Json(feed.newest.json)

    @router.get(
        "/api/v1/stream",
        tags=["live"],
        response_class=EventStream,
        responses={
            200: {"description": "Events `frame`, each with a Frame as its data", "content": {"text/event-stream": {}}}
        },
    )
    async def stream() -> EventStream:
        """Each new frame as a server-sent event. Who is slow gets the newest one, never a queue; who connects again, too."""
        return EventStream(_messages(feed), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    @router.get("/api/v1/running", tags=["live"], responses=answered(RunningPage, "A page of running sagas"))
    async def running(
        *,
        search: Annotated[str, Query(description="Only where ids, name or current step have it.", max_length=200)] = "",
        saga: Annotated[str, Query(description="Only this kind of saga; empty: all.")] = "",
        sort: Annotated[str, Query(description=f"One of {', '.join(SORTS)}.")] = "age",
        descending: Annotated[bool, Query(description="The largest first.")] = True,
        limit: Annotated[int, Query(ge=1, le=MOST_RUNNING)] = 50,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Json:
        """Sagas that run now: age, current step, steps remaining by the definition, and when they may be done."""
        if sort not in SORTS:
            raise UnusableError("sort", sort, SORTS)
        found = await anyio.to_thread.run_sync(
            lambda: feed.live.running(search, sort, saga=saga, descending=descending, limit=limit, offset=offset)
        )
        return Json(msgspec.json.encode(found))

    @router.get("/api/v1/flows/{saga_name:path}", tags=["live"], responses=answered(Flow, "The saga as a graph"))
    async def flow(saga_name: Annotated[str, Path()], window: Window = "1h") -> Json:
        """A kind of saga as a graph: the steps of its newest definition, with p95 and failure rate of each."""
        if window not in SPANS:
            raise UnusableError("window", window, SPANS)
        known = await anyio.to_thread.run_sync(lambda: feed.live.definition(saga_name))
        return Json(msgspec.json.encode(_flow(saga_name, known, _window(feed, window))))

    @router.get("/metrics", tags=["health"], response_class=Response)
    async def metrics_text() -> Response:
        """The numbers of the newest frame as Prometheus text."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/healthz", tags=["health"], responses=answered(Health))
    async def healthz() -> Json:
        """The server answers."""
        return Json(msgspec.json.encode(Health(ok=True)))

    @router.get("/readyz", tags=["health"], responses=answered(Health))
    async def readyz() -> Json:
        """There are numbers to show, and nothing keeps newer ones from coming; else 503."""
        return Json(msgspec.json.encode(Health(ok=feed.is_ready)), 200 if feed.is_ready else 503)

    return router


async def _messages(feed: Feed) -> AsyncIterator[bytes]:
    number = -1
    with feed.viewing():
        while not feed.ended:
            newest = await feed.after(number, HEARTBEAT_SECONDS)
            if newest:
                number = newest.number
                yield newest.message
            elif not feed.ended:
                yield b": still here\n\n"


def _window(feed: Feed, name: str) -> SlidingWindow:
    return next(window for window in feed.newest.frame.windows if window.name == name)


def _flow(saga_name: str, known: tuple[str, str] | None, window: SlidingWindow) -> Flow:
    """Raises NotFoundError where neither a definition nor a step is known."""
    figures = {(step.step_name, step.phase): step for step in window.steps if step.saga_name == saga_name}
    if known:
        steps = msgspec.json.decode(known[1], type=list[StepDefinition])
    elif figures:
        steps = [StepDefinition(step_name=name) for name in dict.fromkeys(name for name, _ in figures) if name]
    else:
        raise NotFoundError("kind of saga", saga_name, "/api/v1/live names those of the last hour")
    return Flow(
        saga_name=saga_name,
        definition_id=known[0] if known else None,
        window=window.name,
        steps=[_flow_step(step, figures) for step in steps],
    )


def _flow_step(step: StepDefinition, figures: dict[tuple[str | None, str | None], StepFigures]) -> FlowStep:
    return FlowStep(
        step_name=step.step_name,
        depends_on=list(step.depends_on),
        compensable=step.compensable,
        pivot=step.pivot,
        timeout_seconds=step.timeout_seconds,
        step=figures.get((step.step_name, "step")),
        compensation=figures.get((step.step_name, "compensation")),
    )
