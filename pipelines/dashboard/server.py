"""The dashboard's server: one FastAPI app, one feed, one port."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse

import sagascope
from pipelines.dashboard import api, documents, history_api, pages
from pipelines.dashboard.access import Access, Gate
from pipelines.dashboard.feed import Feed
from pipelines.dashboard.problems import handle_problems
from pipelines.dashboard.questions import Questions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from warehouse.settings import Settings

GRACE_SECONDS = 1
"""How long an answer that is under way may take once the server is to end."""
BACKLOG = 128


class PortTakenError(OSError):
    """Somebody else listens there; names another one."""


class Dashboard:
    """What one server is made of. `app` is where pages are mounted."""

    def __init__(
        self, settings: Settings, access: Access, say: Callable[[str], None], *, has_pages: bool = False
    ) -> None:
        """A server that does not listen yet.

        Args:
            settings: Where the tables are.
            access: Who is let in.
            say: Gets a line where the tables can't be read.
            has_pages: It shows pages, too: one such in a process, see `pages.mount`.
        """
        self.feed = Feed(settings, say)
        self.questions = Questions(settings, self.feed)
        self.app = FastAPI(
            title="Sagascope",
            description="What sagas do, while they do it and long after.",
            version=getattr(sagascope, "__version__", "0"),
            docs_url=None,  # FastAPI's pages load their scripts from elsewhere
            redoc_url=None,
            lifespan=self._lifespan,
        )
        self.app.include_router(api.routes(self.feed))
        self.app.include_router(history_api.routes(settings, self.feed, self.questions))
        self.app.openapi = lambda: documents.describe(self.app)  # type: ignore[method-assign]  # as FastAPI documents it
        self.app.add_middleware(Gate, access=access)
        handle_problems(self.app)
        self._add_docs(is_first=not has_pages)
        if has_pages:
            pages.mount(self.app, settings)

    def end(self) -> None:
        """Let every stream and every question end, at once."""
        self.feed.end()
        self.questions.end()

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.feed.start()
        yield
        self.end()
        await asyncio.to_thread(self.feed.stop)

    def _add_docs(self, *, is_first: bool) -> None:
        if is_first:

            @self.app.get("/", include_in_schema=False)
            async def first() -> RedirectResponse:
                return RedirectResponse("/docs", 307)

        @self.app.get("/docs", include_in_schema=False)
        async def docs() -> HTMLResponse:
            return HTMLResponse(documents.page(self.app), headers={"Content-Security-Policy": documents.CSP})


class Server(uvicorn.Server):
    """uvicorn's, which first ends the streams: it waits for answers, and a stream is one that never ends."""

    def __init__(self, dashboard: Dashboard) -> None:
        config = uvicorn.Config(
            dashboard.app,
            log_level="warning",
            access_log=False,  # it would hold tokens that came in a URL
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
        super().__init__(config)
        self._dashboard = dashboard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._dashboard.end()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free.

    Raises:
        PortTakenError: somebody else does.
        OSError: the host is no address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    endpoint = socket.socket(family, kind, protocol)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        endpoint.bind(address)
        endpoint.listen(BACKLOG)
    except OSError as error:
        endpoint.close()
        if error.errno == errno.EADDRINUSE:
            msg = f"port {port} of {host} is taken: sagascope dashboard --port {port + 1}"
            raise PortTakenError(msg) from error
        msg = f"can't listen at {host} port {port} ({error.strerror}): --host takes an address of this machine"
        raise OSError(msg) from error
    return endpoint


def address_of(endpoint: socket.socket) -> str:
    """As one types it into a browser."""
    host, port, *_ = endpoint.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    settings: Settings, access: Access, port: int, say: Callable[[str], None], ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP comes; then end within two seconds.

    Args:
        settings: Where the tables are.
        access: Who is let in, and at which host.
        port: Where; 0: any that is free.
        say: Gets a line where the tables can't be read.
        ready: Gets the address, once it can be opened.

    Raises:
        PortTakenError: somebody else listens there.
    """
    with listen(access.host, port) as endpoint:
        server = Server(Dashboard(settings, access, say, has_pages=True))
        # uvicorn raises the signal once more when it has ended: it shall do no more than it has done.
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {
            number: signal.signal(number, lambda *_: server.handle_exit(signal.SIGTERM, None)) for number in handled
        }
        ready(address_of(endpoint))
        try:
            server.run(sockets=[endpoint])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
