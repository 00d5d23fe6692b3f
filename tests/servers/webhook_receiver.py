"""A webhook endpoint as somebody else would run it: Starlette on uvicorn, a process of its own.

It keeps what it gets, judges the signature by the library of Standard Webhooks, and answers as it is told to:

    PUT    /plan       {"answers": [{"status": 503, "headers": {"Retry-After": "2"}}], "secret": …}
    GET    /received   what was POSTed since, oldest first
    POST   /…          takes a webhook

Each answer of a plan is given once; after the last one, and without a plan, the answer is 204.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pipelines.ports import free_port
from tests.servers.server import CHECKOUT, answers, running, state_folder

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response


class Received(NamedTuple):
    """One POST request."""

    path: str
    query: str
    headers: dict[str, str]
    """Names in lower case."""
    body: str
    verified: bool | None
    """What the library says of the signature; None where the plan has no secret."""

    @property
    def content(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


class Receiver:
    """The endpoint's process, as the tests see it."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, kill: Callable[[], None] | None = None) -> None:
        self.port = port
        self.kill = kill
        """Ends the process as `kill -9` does, where it is the test's own."""
        self._tls = tls

    def plan(self, *answers: dict[str, Any], secret: str | None = None) -> None:
        """Forget what was received, and answer the next requests so.

        Args:
            answers: `status`, `headers`, `bytes` (the size of the body), `seconds` (until the status is sent),
                `drip_seconds` (between the bytes of the body).
            secret: What the signatures are judged by, as the library takes it.
        """
        self._ask("PUT", "/plan", json.dumps({"answers": answers, "secret": secret}))

    @property
    def received(self) -> list[Received]:
        """What was POSTed since the last plan."""
        return [Received(*each) for each in json.loads(self._ask("GET", "/received"))]

    def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self._tls)
            if self._tls
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        )
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            assert answer.status < 300, answer.status
            return answer.read()
        finally:
            connection.close()


@contextmanager
def receiving(
    folder: Path,
    *,
    port: int | None = None,
    certificate: tuple[Path, Path] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Receiver]:
    """An endpoint on this port or a free one; with a certificate and its key it speaks TLS, and `tls` trusts it."""
    port = port or free_port()
    command = [sys.executable, "-m", "tests.servers.webhook_receiver", str(port), *map(str, certificate or ())]
    environment = {"PYTHONPATH": str(CHECKOUT)}
    with running(command, folder=folder, ready=lambda: answers(port), environment=environment) as process:
        yield Receiver(port, tls, process.kill)


@pytest.fixture(scope="session")
def webhook_process() -> Iterator[Receiver]:
    """An endpoint that lasts for all tests."""
    with receiving(state_folder("webhook")) as endpoint:
        yield endpoint


@pytest.fixture
def receiver(webhook_process: Receiver) -> Receiver:
    """The endpoint, with nothing received yet."""
    webhook_process.plan()
    return webhook_process


def application() -> Starlette:
    """What runs in the process."""
    from standardwebhooks import Webhook, WebhookVerificationError
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    received: list[Received] = []
    answers: list[dict[str, Any]] = []
    secrets: list[str] = []

    async def plan(request: Request) -> Response:
        told = await request.json()
        received.clear()
        answers[:] = told["answers"]
        secrets[:] = [told["secret"]] if told["secret"] else []
        return Response(status_code=204)

    async def show(request: Request) -> Response:
        return JSONResponse(received)

    async def take(request: Request) -> Response:
        body = (await request.body()).decode()
        headers = {name.lower(): value for name, value in request.headers.items()}
        received.append(Received(request.url.path, request.url.query, headers, body, verified(body, headers)))
        answer: dict[str, Any] = answers.pop(0) if answers else {"status": 204}
        await asyncio.sleep(answer.get("seconds", 0))
        if not answer.get("bytes"):
            return Response(status_code=answer["status"], headers=answer.get("headers"))
        return StreamingResponse(
            dripping(answer["bytes"], answer.get("drip_seconds", 0)), answer["status"], answer.get("headers")
        )

    def verified(body: str, headers: dict[str, str]) -> bool | None:
        if not secrets:
            return None
        try:
            Webhook(secrets[0]).verify(body, headers)
        except WebhookVerificationError:
            return False
        return True

    async def dripping(size: int, seconds: float) -> AsyncIterator[bytes]:
        chunk = 1 if seconds else 16_384
        for sent in range(0, size, chunk):
            yield b"x" * min(chunk, size - sent)
            await asyncio.sleep(seconds)

    return Starlette(
        routes=[
            Route("/plan", plan, methods=["PUT"]),
            Route("/received", show, methods=["GET"]),
            Route("/{path:path}", take, methods=["POST"]),
        ]
    )


if __name__ == "__main__":
    import uvicorn

    certificate, key = (*sys.argv[2:], None, None)[:2]
    uvicorn.run(
        application(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
