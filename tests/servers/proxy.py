"""A small TCP proxy in the test's own event loop, to do to a connection what networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

LATENCY_SECONDS = 0.3


class Fault(Enum):
    """What happens to bytes from now on, on open connections too."""

    NONE = "none"
    LATENCY = "latency"
    """Each chunk takes 0.3 s, either way."""
    RESET = "reset"
    """The connection is reset (RST) at the next byte, and each new one at once."""
    TIMEOUT = "timeout"
    """Connections open, and nothing is ever carried."""
    HALF_OPEN = "half-open"
    """What the client says arrives; no answer comes back."""


class Proxy:
    """Listens on `port` of the loopback interface for the server on `target`."""

    def __init__(self, target: int) -> None:
        self.fault = Fault.NONE
        self.port = 0
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self.fault is Fault.RESET:
            _reset(writer)
            return
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers.add(server_writer)
        for task in (
            asyncio.create_task(self._carry(reader, server_writer, lambda: self.fault is Fault.TIMEOUT)),
            asyncio.create_task(
                self._carry(server_reader, writer, lambda: self.fault in (Fault.TIMEOUT, Fault.HALF_OPEN))
            ),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, swallowed: Callable[[], bool]
    ) -> None:
        try:
            while chunk := await reader.read(65_536):
                if self.fault is Fault.RESET:
                    for each in self._writers:
                        _reset(each)
                    return
                if self.fault is Fault.LATENCY:
                    await asyncio.sleep(LATENCY_SECONDS)
                if not swallowed():
                    writer.write(chunk)
                    await writer.drain()
        except OSError:
            pass
        finally:
            if not swallowed():
                writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
