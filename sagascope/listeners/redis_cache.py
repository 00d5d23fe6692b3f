"""The newest state of each saga in Redis: one hash a saga, for fast look-ups.

Needs the extra `sagascope[redis]` (redis-py).

    client = Redis(socket_timeout=1, retry=Retry(NoBackoff(), 0))
    listener = RedisCacheListener(client)
    async with FanOut([listener]) as fan_out:
        await OrderSaga(listeners=[fan_out]).run(context)
    saga = await listener.get("order-17")
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime  # noqa: TC003 - msgspec reads the annotations
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sagascope.cloudevents import rfc3339
from sagascope.drivers import load
from sagascope.errors import DeliveryError, PartialError, PermanentError, TransientError
from sagascope.events import STEP_EVENTS, EventType, SagaEvent
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

Status = Literal["running", "compensating", "completed", "rolled_back", "failed"]

_STATUS: dict[EventType, tuple[int, Status]] = {
    EventType.SAGA_STARTED: (0, "running"),
    EventType.STEP_STARTED: (0, "running"),
    EventType.STEP_COMPLETED: (0, "running"),
    EventType.STEP_FAILED: (0, "running"),
    EventType.COMPENSATION_STARTED: (1, "compensating"),
    EventType.COMPENSATION_COMPLETED: (1, "compensating"),
    EventType.COMPENSATION_FAILED: (1, "compensating"),
    EventType.SAGA_COMPLETED: (2, "completed"),
    EventType.SAGA_ROLLED_BACK: (2, "rolled_back"),
    EventType.SAGA_FAILED: (2, "failed"),
}
"""What an event makes of a run, and how far along that is: a run goes forwards only, so the step that ends after its
saga did does not set it running again."""

_LAST_MILLISECOND = 253_402_300_799_999
"""The end of the year 9999, beyond which Python has no date: a producer that counts in microseconds gets there."""

_SCRIPT = """\
-- KEYS[1]: the hash. ARGV: ttl in ms, run_id, then registers: name, version, number of fields, field, value, ...
-- A register is a group of fields that are written together; the one of the highest version stays. So the hash is the
-- same in whatever order, and however often, the events of its run arrive.
local function later(one, other) -- by bytes: Lua's own `<` follows the server's locale
  for i = 1, math.min(#one, #other) do
    local a, b = one:byte(i), other:byte(i)
    if a ~= b then return a > b end
  end
  return #one > #other
end

local key, run = KEYS[1], ARGV[2]
local held = redis.pcall('HGET', key, 'run_id')
if type(held) == 'table' then return held end -- an error: the key is no hash
if redis.call('HEXISTS', key, 'data') == 1 or (not held and redis.call('EXISTS', key) == 1) then
  if held then redis.call('PERSIST', key) end -- written to after us: what we let expire is not ours alone
  return {err = 'WRONGTYPE the hash is of another owner (RedisSagaStorage?): set a key_prefix'}
end
if held and later(held, run) then return 0 end
local begins = held ~= run
local set, unset = {'run_id', run}, {}
local at = 3
while ARGV[at] do
  local register, version, last = '_' .. ARGV[at], ARGV[at + 1], at + 2 + 2 * ARGV[at + 2]
  local before = not begins and redis.call('HGET', key, register)
  if not before or later(version, before) then
    set[#set + 1], set[#set + 2] = register, version
    for field = at + 3, last, 2 do
      if ARGV[field + 1] == '' then
        unset[#unset + 1] = ARGV[field]
      else
        set[#set + 1], set[#set + 2] = ARGV[field], ARGV[field + 1]
      end
    end
  end
  at = last + 1
end
local reply = redis.pcall('HSET', key, unpack(set))
if type(reply) == 'table' then return reply end -- no memory, a replica …: only a script's first write is refused
if begins and held then
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(set))
end
if #unset > 0 then redis.call('HDEL', key, unpack(unset)) end
redis.call('PEXPIRE', key, ARGV[1])
return 1
"""
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class CachedSaga(msgspec.Struct, frozen=True, kw_only=True):
    """What the cache knows of a saga's latest run: the hash, field by field; what is unknown is None."""

    saga_id: str
    name: str
    status: Status
    run_id: str
    event_id: str
    """Of the newest event, by sequence; so are event_type, sequence and updated_at."""
    event_type: EventType
    sequence: int
    updated_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    duration_ms: int | None = None
    """Of the whole saga, once it ended."""
    step_name: str | None = None
    """The step of the newest event that was about one; so are step_event, step_attempt and step_duration_ms."""
    step_event: EventType | None = None
    step_attempt: int | None = None
    step_duration_ms: int | None = None
    error_type: str | None = None
    """Of the newest failure of a step, a compensation or the saga; gone once the saga completed."""
    error_message: str | None = None
    service: str | None = None
    parent_saga_id: str | None = None
    trace_id: str | None = None


class RedisCacheListener(EventListener):
    """Keeps one hash a saga, `saga:{saga_id}`, of the state that its events have brought it to.

    The hash's fields are those of `CachedSaga` but saga_id: text, times ISO-8601 in UTC with milliseconds, and no field
    where there is no value. `_newest`, `_status`, `_started`, `_step` and `_error` say which event wrote what, for the
    script's own use.

    Guarantee: at least once, converging. An event changes only what no later one has written: runs are ordered by
    run_id (UUIDv7: by when they began, as far as the hosts' clocks agree), events of a run by sequence. So events that
    arrive twice, out of order, or from several writers leave the same hash as each once and in order; an event of an
    earlier run changes nothing. Each event is one atomic script on one key, which Redis Cluster can place; a batch is
    one round trip. Where Redis is down, `write` raises TransientError, and nothing is held here. Redis acknowledges
    before it persists or replicates: what it forgets in a crash comes back with the saga's next event, in part. Each
    event of the latest run lets the hash live for `ttl` from then on; an event that comes later than that begins a hash
    of what it knows alone.

    sagaz's own RedisSagaStorage keeps its sagas in hashes below `saga:`, too. In one database with it, set
    `key_prefix`; without, the events of a saga that is stored there are rejected, and its state is left alone.

    redis-py itself tries again, recent versions up to ten times with pauses, and by default waits for an answer
    forever: give the client a socket_timeout and `retry=Retry(NoBackoff(), 0)`, so that whoever wraps the listener
    decides. A cancelled write closes its connection, and the next one opens another.
    """

    def __init__(self, redis_client: Redis | RedisCluster, ttl: float = 3600, *, key_prefix: str = "saga:") -> None:
        """Do no I/O yet.

        Args:
            redis_client: Of redis.asyncio, with or without decode_responses; its owner closes it.
            ttl: Seconds that a hash lives after the latest event.
            key_prefix: What its keys begin with; the saga_id follows.

        Raises:
            ValueError: a ttl below a millisecond.
        """
        if not ttl >= 0.001:
            msg = f"ttl: got {ttl!r}; allowed: seconds, at least 0.001"
            raise ValueError(msg)
        self._client = redis_client
        self._ttl_ms = int(ttl * 1000)
        self._key_prefix = key_prefix
        self._exceptions: ModuleType | None = None

    async def open(self) -> None:
        """Import the driver.

        Raises:
            ModuleNotFoundError: redis-py is not installed.
        """
        self._exceptions = _driver()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        exceptions = self._exceptions or _driver()
        try:
            replies = await self._run(exceptions, events)
        except _driver_errors(exceptions) as error:
            raise _explained(exceptions, error) from error
        self._raise_for(exceptions, list(zip(events, replies, strict=True)))

    async def get(self, saga_id: str) -> CachedSaga | None:
        """What the cache knows of a saga, or None where it knows nothing, or no longer.

        Raises:
            TransientError: Redis could not be asked.
            PermanentError: the key holds something else than a saga's state.
        """
        exceptions = self._exceptions or _driver()
        try:
            reply = await self._client.execute_command("HGETALL", self._key(saga_id))
        except _driver_errors(exceptions) as error:
            raise _explained(exceptions, error) from error
        if not reply:
            return None
        fields = {_text(field): _text(value) for field, value in reply.items()}
        try:
            return msgspec.convert(fields | {"saga_id": saga_id}, CachedSaga, strict=False)
        except msgspec.ValidationError as error:
            msg = f"the hash of saga {saga_id!r} is of another owner: {error}"
            raise PermanentError(msg) from error

    async def _run(self, exceptions: ModuleType, events: Sequence[SagaEvent]) -> list[Any]:
        """The reply to each event's script: a number, or the error that it is."""
        replies = await self._run_once(events)
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]
        if unknown:  # the server is new to it, or was restarted
            await self._client.script_load(_SCRIPT)
            again = await self._run_once([events[n] for n in unknown])
            for n, reply in zip(unknown, again, strict=True):
                replies[n] = reply
        return replies

    async def _run_once(self, events: Sequence[SagaEvent]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipeline:
            for event in events:
                # not .evalsha(), which redis-py's pipeline for clusters lacks
                pipeline.execute_command("EVALSHA", _SHA, 1, self._key(event.saga_id), *self._arguments(event))
            return await pipeline.execute(raise_on_error=False)

    def _key(self, saga_id: str) -> bytes:
        return f"{self._key_prefix}{saga_id}".encode("utf-8", "replace")

    def _arguments(self, event: SagaEvent) -> Iterator[bytes]:
        """What the script is called with; bytes, as the client's encoding need not be UTF-8."""
        yield b"%d" % self._ttl_ms
        yield event.run_id.encode("utf-8", "replace")
        for name, version, fields in _registers(event):
            yield name.encode()
            yield version.encode("utf-8", "replace")
            yield b"%d" % len(fields)
            for field, value in fields.items():
                yield field.encode()
                yield b"" if value is None else str(value).encode("utf-8", "replace")

    def _raise_for(self, exceptions: ModuleType, outcome: list[tuple[SagaEvent, Any]]) -> None:
        """Raise what became of the batch, unless all is well."""
        refused = [(event, reply) for event, reply in outcome if isinstance(reply, Exception)]
        if not refused:
            return
        rejected = [(event, str(reply)) for event, reply in refused if _is_permanent(exceptions, reply)]
        retry = [event for event, reply in refused if not _is_permanent(exceptions, reply)]
        msg = f"Redis refused {len(refused)} of {len(outcome)} events; the first: {_said(refused[0][1])}"
        if len(retry) == len(outcome):
            raise TransientError(msg)
        raise PartialError(msg, retry=retry, rejected=rejected)


def _registers(event: SagaEvent) -> Iterator[tuple[str, str, dict[str, object]]]:
    """The groups of fields that the event writes, each with its version: those of the highest version stay."""
    order = f"{event.sequence:019}{event.event_id}"  # as text in the order of the numbers, up to the largest sequence
    moment = _moment(event.timestamp)
    yield (
        "newest",
        order,
        {
            "name": event.saga_name,
            "event_id": event.event_id,
            "event_type": event.event_type.value,
            "sequence": event.sequence,
            "updated_at": moment,
            "service": event.service,
            "parent_saga_id": event.parent_saga_id,
            "trace_id": event.trace_id,
        },
    )
    phase, status = _STATUS[event.event_type]
    ended = phase == 2
    yield (
        "status",
        f"{phase}{order}",
        {
            "status": status,
            "ended_at": moment if ended else None,
            "duration_ms": event.total_duration_ms if ended else None,
        },
    )
    if event.event_type is EventType.SAGA_STARTED:
        yield "started", order, {"started_at": moment}
    if event.event_type in STEP_EVENTS:
        yield (
            "step",
            order,
            {
                "step_name": event.step_name,
                "step_event": event.event_type.value,
                "step_attempt": event.attempt,
                "step_duration_ms": event.duration_ms,
            },
        )
    if event.error_type or event.event_type is EventType.SAGA_COMPLETED:
        yield "error", order, {"error_type": event.error_type, "error_message": event.error_message}


def _driver() -> Any:
    return load("redis.exceptions", needed_by="RedisCacheListener", package="redis", extra="redis")


def _driver_errors(exceptions: ModuleType) -> tuple[type[Exception], ...]:
    """All that redis-py raises; its cluster client's errors are no RedisError."""
    return exceptions.RedisError, exceptions.RedisClusterException, OSError


_CODE = re.compile(r"(?:@user_script: \d+: -)?([A-Z]{2,})\b")
"""Redis before 7 says the script's line first."""


def _is_permanent(exceptions: ModuleType, error: Exception) -> bool:
    """Whether the same call will always fail.

    Redis begins an error with a code. ERR (which redis-py cuts off) and WRONGTYPE are about the call; every other one
    (LOADING, READONLY, OOM, MOVED, BUSY, MISCONF, NOPERM …) is about the state or the set-up of the server, which may
    change while the events wait. So may all that happens before there is an answer.
    """
    if isinstance(error, exceptions.DataError | exceptions.ModuleError | exceptions.ClusterCrossSlotError):
        return True
    if type(error) is not exceptions.ResponseError:  # classes of their own stand for codes
        return False
    code = _CODE.match(str(error))
    return code is None or code[1] == "WRONGTYPE"


def _explained(exceptions: ModuleType, error: Exception) -> DeliveryError:
    kind = PermanentError if _is_permanent(exceptions, error) else TransientError
    return kind(f"Redis: {_said(error)}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _moment(timestamp: int) -> str:
    return rfc3339(min(timestamp, _LAST_MILLISECOND))


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
