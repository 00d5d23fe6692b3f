"""RedisCacheListener where something is wrong: another owner's keys, a server without memory, a cluster, a crash."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import redis.exceptions
from redis.asyncio.cluster import RedisCluster

from pipelines.ports import free_port
from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.listeners import redis_cache
from sagascope.listeners.redis_cache import RedisCacheListener
from tests.sagascope.listeners.contract import a_run, exceptions_of
from tests.sagascope.listeners.test_redis_cache import client_at, held, listening, port
from tests.servers.redis import redis_at

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["port"]  # a fixture


def test_a_server_that_forgot_the_script_is_told_again(port: int) -> None:
    """A server that was restarted, or failed over, knows no scripts: that is mended within the write."""

    async def main() -> None:
        async with listening(port) as (listener, client):
            for saga_id in ("order-1", "order-2"):
                await client.script_flush()
                await listener.write(a_run(saga_id))
                assert (await held(client, saga_id))["status"] == "completed"

    asyncio.run(main())


def test_a_key_of_another_type_costs_its_saga_alone(port: int) -> None:
    """Where the key of one saga holds something else, its events are rejected, and all others are taken."""
    good, bad = a_run("order-1"), a_run("order-2")

    async def main() -> None:
        async with listening(port) as (listener, client):
            await client.set("saga:order-2", "mine")
            with pytest.raises(PartialError, match="refused 4 of 8 events") as raised:
                await listener.write([*good[:2], *bad, *good[2:]])
            assert [event for event, _ in raised.value.rejected] == bad
            assert all(reason.startswith("WRONGTYPE") for _, reason in raised.value.rejected)
            assert raised.value.retry == []
            assert (await held(client, "order-1"))["status"] == "completed"
            assert await client.get("saga:order-2") == b"mine"
            with pytest.raises(PermanentError, match="WRONGTYPE"):
                await listener.get("order-2")

    asyncio.run(main())


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_saga_of_sagaz_own_storage_is_left_alone(port: int, ours_first: bool) -> None:  # noqa: FBT001 - a parameter
    """What sagaz's storage keeps below the same keys is neither overwritten nor expires; with a prefix both work."""
    from sagaz.core.storage.backends.redis.saga import RedisSagaStorage
    from sagaz.core.types import SagaStatus

    events = a_run("order-1")

    async def main() -> None:
        storage = RedisSagaStorage(f"redis://127.0.0.1:{port}")
        async with listening(port) as (listener, client):
            if ours_first:
                await listener.write(events[:1])
            await storage.save_saga_state("order-1", "order", SagaStatus.EXECUTING, [], {"amount": 3})
            with pytest.raises(PartialError) as raised:
                await listener.write(events)
            assert "set a key_prefix" in raised.value.rejected[0][1]
            state = await storage.load_saga_state("order-1")
            assert state["context"] == {"amount": 3}
            assert await client.pttl("saga:order-1") == -1
            if not ours_first:
                with pytest.raises(PermanentError, match="of another owner"):
                    await listener.get("order-1")
            apart = RedisCacheListener(client, key_prefix="sagascope:")
            await apart.write(events)
            saga = await apart.get("order-1")
            assert saga is not None
            assert saga.status == "completed"
        await storage._redis.aclose()

    asyncio.run(main())


def test_a_full_server_is_transient(port: int) -> None:
    """What the server has no memory for is tried again, and taken once there is some."""
    events = a_run("order-1")

    async def main() -> None:
        async with listening(port) as (listener, client):
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", 1)
            try:
                with pytest.raises(TransientError, match=r"refused 4 of 4 events; the first: .*used memory"):
                    await listener.write(events)
            finally:
                await client.config_set("maxmemory", 0)
            await listener.write(events)
            assert (await held(client, "order-1"))["status"] == "completed"

    asyncio.run(main())


def test_a_replica_is_transient(port: int) -> None:
    """During a failover the node that was the master refuses writes: tried again."""

    async def main() -> None:
        async with listening(port) as (listener, client):
            await client.config_set("replica-serve-stale-data", "yes")
            await client.replicaof("127.0.0.1", str(free_port()))
            try:
                with pytest.raises(TransientError, match=r"refused 4 of 4 events; the first: .*read only replica"):
                    await listener.write(a_run("order-1"))
            finally:
                await client.replicaof("NO", "ONE")
            await listener.write(a_run("order-1"))

    asyncio.run(main())


def test_a_node_of_a_cluster_keeps_its_own_and_names_the_rest_to_retry(redis_cluster: int) -> None:
    """A client that knows nothing of clusters is told MOVED for the other node's sagas: those are to be tried again."""
    events = [event for n in range(20) for event in a_run(f"order-{n}")]

    async def main() -> None:
        async with listening(redis_cluster) as (listener, _):
            with pytest.raises(PartialError, match=r"(?i)moved") as raised:
                await listener.write(events)
            assert 0 < len(raised.value.retry) < len(events)
            assert raised.value.rejected == []

    asyncio.run(main())


def test_a_cluster_takes_sagas_of_all_nodes(redis_cluster: int) -> None:
    """With a cluster's client a batch reaches every node, which knew no script before."""
    events = [event for n in range(20) for event in a_run(f"order-{n}")]

    async def main() -> None:
        async with RedisCluster(host="127.0.0.1", port=redis_cluster) as client, RedisCacheListener(client) as listener:
            await listener.write(events)
            sizes = [await client.dbsize(target_nodes=node) for node in client.get_primaries()]
            assert sum(sizes) == 20
            assert all(sizes)
            for n in range(20):
                saga = await listener.get(f"order-{n}")
                assert saga is not None
                assert saga.status == "completed"

    asyncio.run(main())


def test_a_cluster_that_is_gone_is_transient() -> None:
    """The cluster client's own errors count, too."""

    async def main() -> None:
        client = RedisCluster(host="127.0.0.1", port=free_port())
        with pytest.raises(TransientError):
            await RedisCacheListener(client).write(a_run("order-1"))
        await client.aclose()

    asyncio.run(main())


def test_a_server_killed_and_restarted(tmp_path: Path) -> None:
    """A crash fails writes as transient; once a server is there again the next event builds what it can of the hash."""
    port = free_port()
    events = a_run("order-1")

    async def main() -> None:
        async with client_at(port) as client, RedisCacheListener(client) as listener:
            with redis_at(port, tmp_path) as process:
                await listener.write(events[:3])
                process.kill()
                process.wait()
            with pytest.raises(TransientError):
                await listener.write(events[3:])
            with redis_at(port, tmp_path):
                await listener.write(events[3:])
                saga = await listener.get("order-1")
                assert saga is not None
                assert (saga.status, saga.started_at, saga.step_name) == ("completed", None, None)

    asyncio.run(main())


def test_a_password_is_never_said(port: int) -> None:
    """A wrong password is transient, as it may be set right while events wait, and no message has it."""

    async def main() -> None:
        async with listening(port) as (_, admin):
            await admin.execute_command("ACL", "SETUSER", "shop", "on", ">right", "~*", "+@all")
            try:
                wrong: Any = {"username": "shop", "password": "wr0ng-s3cret"}
                async with listening(port, **wrong) as (listener, _):
                    with pytest.raises(TransientError, match="AuthenticationError") as raised:
                        await listener.write(a_run("order-1"))
                assert "s3cret" not in str(raised.value)
                await admin.execute_command("ACL", "SETUSER", "shop", "-evalsha")
                async with listening(port, username="shop", password="right") as (listener, _):  # noqa: S106 - made up
                    with pytest.raises(TransientError, match="NoPermissionError"):
                        await listener.write(a_run("order-1"))
            finally:
                await admin.execute_command("ACL", "DELUSER", "shop")

    asyncio.run(main())


TRANSIENT, PERMANENT = False, True
CLASSES = {
    "AskError": TRANSIENT,
    "AuthenticationError": TRANSIENT,
    "AuthenticationWrongNumberOfArgsError": TRANSIENT,
    "AuthorizationError": TRANSIENT,
    "BusyLoadingError": TRANSIENT,
    "ChildDeadlockedError": TRANSIENT,
    "ClusterCrossSlotError": PERMANENT,
    "ClusterDownError": TRANSIENT,
    "ClusterError": TRANSIENT,
    "ConnectionError": TRANSIENT,
    "CrossSlotTransactionError": TRANSIENT,
    "DataError": PERMANENT,
    "ExecAbortError": TRANSIENT,
    "ExternalAuthProviderError": TRANSIENT,
    "IncorrectPolicyType": TRANSIENT,
    "InvalidPipelineStack": TRANSIENT,
    "InvalidResponse": TRANSIENT,
    "LockError": TRANSIENT,
    "LockNotOwnedError": TRANSIENT,
    "MasterDownError": TRANSIENT,
    "MaxConnectionsError": TRANSIENT,
    "ModuleError": PERMANENT,
    "MovedError": TRANSIENT,
    "NoPermissionError": TRANSIENT,
    "NoScriptError": TRANSIENT,
    "NoSuchFieldsetError": TRANSIENT,
    "OutOfMemoryError": TRANSIENT,
    "PubSubError": TRANSIENT,
    "ReadOnlyError": TRANSIENT,
    "RedisClusterException": TRANSIENT,
    "RedisError": TRANSIENT,
    "ResponseError": PERMANENT,
    "SlotNotCoveredError": TRANSIENT,
    "TimeoutError": TRANSIENT,
    "TryAgainError": TRANSIENT,
    "WatchError": TRANSIENT,
}


def test_every_exception_of_the_driver_has_a_rule() -> None:
    """Each class that redis-py names is transient or permanent; one that is new fails here until it is decided."""
    classes = exceptions_of(redis.exceptions)
    assert {kind.__name__ for kind in classes} <= set(CLASSES)
    for kind in classes:
        error: Any = kind("17 127.0.0.1:6379") if issubclass(kind, redis.exceptions.AskError) else kind("it says so")
        assert redis_cache._is_permanent(redis.exceptions, error) is CLASSES[kind.__name__], kind


@pytest.mark.parametrize(
    ("reply", "permanent"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
        ("unknown command 'EVALSHA'", True),
        ("Error running script (call to f_0): @user_script:1: it is wrong", True),
        ("@user_script: 20: -OOM command not allowed when used memory > 'maxmemory'.", False),
        ("BUSY Redis is busy running a script.", False),
        ("MISCONF Redis is configured to save RDB snapshots", False),
        ("NOREPLICAS Not enough good replicas to write.", False),
        ("MOVED 3999 127.0.0.1:6381", False),
        ("CLUSTERDOWN Hash slot not served", False),
        ("TRYAGAIN Multiple keys request during rehashing of slot", False),
        ("UNKILLABLE Sorry the script already executed write commands", False),
    ],
)
def test_the_code_of_a_reply_decides(reply: str, permanent: bool) -> None:  # noqa: FBT001 - a parameter
    """ERR, which redis-py cuts off, and WRONGTYPE are about the call; other codes are about the server's state."""
    assert redis_cache._is_permanent(redis.exceptions, redis.exceptions.ResponseError(reply)) is permanent
