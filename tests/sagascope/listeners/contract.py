"""The laws of every listener, as test classes to inherit from: what is true of one is asked of all.

    class TestRedisCache(NetworkedContract):
        name = "RedisCacheListener"
        ...

`ListenerContract` needs no server; `NetworkedContract` talks to the real one, through a proxy that harms the connection.
"""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from sagascope.delivery import TimeoutWrappedListener
from sagascope.errors import DeliveryError, PartialError, TransientError
from sagascope.events import EventType, SagaEvent, encode
from tests.sagascope.conftest import make_event
from tests.servers.proxy import Fault, Proxy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sagascope.listener import EventListener

TIMEOUT_MS = 1_500


async def settle(listener: EventListener, events: Sequence[SagaEvent]) -> None:
    """Write until all are taken, as a fan-out does."""
    async with asyncio.timeout(60):
        while events:
            try:
                await listener.write(events)
            except PartialError as error:
                if error.rejected:
                    raise
                events = error.retry
            except TransientError:
                await asyncio.sleep(0.1)
            else:
                return


def a_run(saga_id: str, saga_name: str = "order") -> list[SagaEvent]:
    """The events of one run that succeeds: start, one step, end; a millisecond apart."""
    life: list[tuple[EventType, dict[str, Any]]] = [
        (EventType.SAGA_STARTED, {"context_keys": ("amount", "order_id")}),
        (EventType.STEP_STARTED, {"step_name": "pay"}),
        (EventType.STEP_COMPLETED, {"step_name": "pay", "duration_ms": 12}),
        (EventType.SAGA_COMPLETED, {"total_duration_ms": 15}),
    ]
    run_id = make_event().run_id
    return [
        make_event(
            event_type=kind,
            saga_id=saga_id,
            saga_name=saga_name,
            run_id=run_id,
            sequence=n,
            timestamp=1_780_000_000_000 + n,
            **more,
        )
        for n, (kind, more) in enumerate(life)
    ]


class ListenerContract(ABC):
    """Laws that hold without a server."""

    name: ClassVar[str]
    """The class's name, also in `sagascope`."""
    drivers: ClassVar[Sequence[str]] = ()
    """The packages that are imported when it opens, not before."""
    extra: ClassVar[str | None] = None
    """What brings them: pip install 'sagascope[extra]'."""

    @abstractmethod
    def unopened(self, tmp_path: Path) -> EventListener:
        """One whose server can't be reached."""

    def test_constructing_does_no_io(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A listener can be made anywhere, at import too: it opens no socket, and runs in no event loop yet."""

        def refuse(*arguments: object, **options: object) -> None:
            pytest.fail("constructing opened a socket")

        with monkeypatch.context() as patched:
            patched.setattr("socket.socket.connect", refuse)
            self.unopened(tmp_path)

    def test_close_is_safe_before_open_and_twice(self, tmp_path: Path) -> None:
        """Nothing was opened, so nothing is to be closed."""

        async def main() -> None:
            listener = self.unopened(tmp_path)
            await listener.close()
            await listener.close()

        asyncio.run(main())

    def test_an_empty_batch_is_nothing(self, tmp_path: Path) -> None:
        """No events need no server."""

        async def main() -> None:
            listener = self.unopened(tmp_path)
            await listener.write(())
            await listener.close()

        asyncio.run(main())

    def test_the_docstring_states_the_guarantee(self) -> None:
        """A class's docstring tells the key, what a duplicate does, and what happens where the sink is down."""
        text = (inspect.getdoc(self._class()) or "").lower()
        assert "guarantee:" in text, "say it in a paragraph that begins `Guarantee:`"
        assert "twice" in text or "duplicate" in text

    def test_using_the_name_loads_no_driver(self) -> None:
        """The class can be imported without its driver."""
        code = f"import sys, sagascope\nsagascope.{self.name}\nprint(*sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert not set(self.drivers) & set(ran.stdout.split())

    def test_a_missing_driver_names_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without its driver, opening says what to install."""
        if not self.drivers:
            assert self.extra is None
            return

        async def main() -> None:
            listener = self.unopened(tmp_path)
            for driver in self.drivers:
                monkeypatch.setitem(sys.modules, driver, None)
            with pytest.raises(ModuleNotFoundError, match=rf"pip install 'sagascope\[{self.extra}\]'"):
                await listener.open()
            await listener.close()

        asyncio.run(main())

    def _class(self) -> type[EventListener]:
        return getattr(__import__("sagascope"), self.name)  # type: ignore[no-any-return]


class NetworkedContract(ListenerContract):
    """Laws that hold on the real server and the wire to it."""

    idempotent: ClassVar[bool] = True
    """Whether the same event twice is once at the sink."""

    def expected(self, events: Sequence[SagaEvent]) -> list[str]:
        """Of these events written, in order, the ids that `stored` then has."""
        return [event.event_id for event in events]

    @abstractmethod
    def at(self, port: int) -> AbstractAsyncContextManager[EventListener]:
        """A listener for the server at this port of the loopback interface, and its client, closed at the end.

        All listeners of one test write to the same place, which is empty when the test begins.
        """

    @abstractmethod
    async def stored(self, port: int) -> list[str]:
        """The event ids that the server at this port has, read with a client of its own, past the listener."""

    @pytest.fixture(autouse=True)
    @abstractmethod
    def server(self) -> int:
        """The real server's port. Also prepares an empty place to write to."""

    def test_each_event_is_stored_once(self, server: int) -> None:
        """What write returned from is at the server, unchanged in memory, and the same batch again is no second one."""
        events = a_run("order-1") + a_run("order-ö/2")

        async def main() -> None:
            before = [encode(event) for event in events]
            async with self.at(server) as listener:
                await listener.write(events)
                assert sorted(await self.stored(server)) == sorted(self.expected(events))
                await listener.write(events)
                stored = await self.stored(server)
                assert len(stored) == len(self.expected(events)) * (1 if self.idempotent else 2)
                await listener.close()
                await listener.close()
            assert [encode(event) for event in events] == before

        asyncio.run(main())

    @pytest.mark.parametrize("fault", [Fault.RESET, Fault.TIMEOUT, Fault.HALF_OPEN])
    @pytest.mark.parametrize("warm", [False, True], ids=["at once", "while in use"])
    def test_a_broken_wire_is_transient(self, server: int, fault: Fault, warm: bool) -> None:  # noqa: FBT001
        """No fault of the wire hangs a write beyond its timeout or is taken for success; once mended, the batch arrives."""
        first, events = a_run("order-0"), a_run("order-1")

        async def main() -> None:
            async with Proxy(server) as proxy, self.at(proxy.port) as inner:
                listener = TimeoutWrappedListener(inner, timeout_ms=TIMEOUT_MS)
                if warm:
                    await listener.write(first)
                proxy.fault = fault
                async with asyncio.timeout(TIMEOUT_MS / 1000 + 5):
                    with pytest.raises(TransientError):
                        await listener.write(events)
                proxy.fault = Fault.NONE
                await _written(listener, events)
                wanted = set(self.expected((first if warm else []) + events))
                stored = await self.stored(server)
                assert set(stored) == wanted
                if self.idempotent:
                    assert len(stored) == len(wanted)
                async with asyncio.timeout(10):
                    await inner.close()

        asyncio.run(main())

    def test_latency_only_takes_time(self, server: int) -> None:
        """A slow wire is no fault."""
        events = a_run("order-1")

        async def main() -> None:
            async with Proxy(server) as proxy, self.at(proxy.port) as listener:
                proxy.fault = Fault.LATENCY
                await listener.write(events)
                assert sorted(await self.stored(server)) == sorted(self.expected(events))

        asyncio.run(main())

    def test_nobody_there_is_transient(self, server: int) -> None:
        """A server that is down refuses connections: that is said in time, as something that may pass."""

        async def main() -> None:
            async with Proxy(server) as gone:
                port = gone.port
            async with self.at(port) as inner:
                listener = TimeoutWrappedListener(inner, timeout_ms=TIMEOUT_MS)
                async with asyncio.timeout(TIMEOUT_MS / 1000 + 5):
                    with pytest.raises(TransientError):
                        await listener.write(a_run("order-1"))

        asyncio.run(main())

    def test_a_cancelled_write_leaves_it_usable(self, server: int) -> None:
        """Cancelling a write is no harm: the next one works, and so does close."""
        events = a_run("order-1")

        async def main() -> None:
            async with Proxy(server) as proxy, self.at(proxy.port) as listener:
                proxy.fault = Fault.TIMEOUT
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await listener.write(events)
                proxy.fault = Fault.NONE
                await _written(listener, events)
                stored = await self.stored(server)
                assert set(stored) == set(self.expected(events))
                async with asyncio.timeout(10):
                    await listener.close()

        asyncio.run(main())

    def test_the_first_writes_may_come_at_once(self, server: int) -> None:
        """Several tasks may write, also before it is open: all of it is stored, and it is opened once or safely twice."""
        runs = [a_run(f"order-{n}") for n in range(8)]

        async def main() -> None:
            async with self.at(server) as listener:
                await asyncio.gather(*(listener.write(run) for run in runs))
                stored = await self.stored(server)
                assert sorted(stored) == sorted(self.expected([event for run in runs for event in run]))
                async with asyncio.timeout(10):
                    await listener.close()

        asyncio.run(main())

    def test_it_may_be_opened_again(self, server: int) -> None:
        """After a close a write opens it anew."""
        one, two = a_run("order-1"), a_run("order-2")

        async def main() -> None:
            async with self.at(server) as listener:
                await listener.open()
                await listener.open()
                await listener.write(one)
                await listener.close()
                await listener.write(two)
                assert sorted(await self.stored(server)) == sorted(self.expected(one + two))

        asyncio.run(main())


async def _written(listener: EventListener, events: Sequence[SagaEvent]) -> None:
    """Tried again as a fan-out does: a client may have to notice first that its connection is gone."""
    deadline = asyncio.get_running_loop().time() + 90
    while True:
        try:
            await listener.write(events)
        except DeliveryError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.25)
        else:
            return


def exceptions_of(*modules: Any, base: type[BaseException] = Exception) -> set[type[BaseException]]:
    """Every exception class that these modules of a driver name."""
    return {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base)
    }
