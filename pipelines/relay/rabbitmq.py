"""The exchange as a target, by RabbitMQListener."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pipelines.relay.ends import PUBLISH_SECONDS, Outcome, RelayError, Target, by_saga
from sagascope import RabbitMQListener, decode
from sagascope.errors import PartialError, PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.events import SagaEvent
    from sagascope.outbox.storage import ClaimedEvent


class RabbitMQTarget(Target):
    """Publishes to a durable topic exchange as RabbitMQListener does: its routing keys, headers and confirms.

    Of each saga one event is under way at a time, since a broker may confirm a later one and refuse an earlier.
    """

    def __init__(self, url: str, where: str, exchange: str = "saga-events", *, mandatory: bool = True) -> None:
        """Do no I/O yet.

        Args:
            url: amqp[s]://user:password@host:port/vhost.
            where: The same for people, without credentials.
            exchange: The topic exchange; declared where it is absent.
            mandatory: Whether an event that no queue is bound for waits until one is.

        Raises:
            ValueError: the URL is none.
        """
        self._listener = RabbitMQListener(url, exchange, mandatory=mandatory)
        self._where = where
        self._exchange = exchange

    def __str__(self) -> str:
        """Where it is, without credentials."""
        return f"exchange {self._exchange} of {self._where}"

    async def open(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._listener.open()
        except TimeoutError:
            msg = f"{self._where} does not answer within {PUBLISH_SECONDS:.0f} s"
            raise TransientError(msg) from None
        except TransientError as error:
            if is_refusal(error.__cause__):
                msg = (
                    f"{self._where} refuses ({error}): look at user, password and vhost of --to, and the user's rights"
                )
                raise RelayError(msg) from None
            raise

    async def publish(self, events: Sequence[ClaimedEvent], *, pass_on: bool) -> Outcome:
        outcome = Outcome()
        sagas = by_saga(events)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                while sagas:
                    sagas = await self._publish_first(sagas, outcome, pass_on=pass_on)
        except TimeoutError:
            outcome.failure = f"no confirm within {PUBLISH_SECONDS:.0f} s"
        known = {event.event_id for event in outcome.sent} | {event.event_id for event, _ in outcome.rejected}
        outcome.left = [event for event in events if event.event_id not in known]
        return outcome

    async def close(self) -> None:
        await self._listener.close()

    async def _publish_first(
        self, sagas: list[list[ClaimedEvent]], outcome: Outcome, *, pass_on: bool
    ) -> list[list[ClaimedEvent]]:
        """Send the first event of each saga; returns those that have more to send."""
        wave: dict[str, tuple[SagaEvent, list[ClaimedEvent]]] = {}
        rejected: dict[str, str] = {}
        retried: set[str] = set()
        for saga in sagas:
            try:
                wave[saga[0].event_id] = decode(saga[0].payload), saga
            except ValueError as error:
                rejected[saga[0].event_id] = f"no event: {error}"
        try:
            await self._listener.write([event for event, _ in wave.values()])
        except PartialError as error:
            outcome.failure = str(error) if error.retry else None
            retried = {event.event_id for event in error.retry}
            rejected |= {event.event_id: reason for event, reason in error.rejected}
        except PermanentError as error:
            rejected |= dict.fromkeys(wave, str(error))
        except TransientError as error:
            outcome.failure = str(error)
            return []
        left: list[list[ClaimedEvent]] = []
        for saga in sagas:
            first, *rest = saga
            if first.event_id in retried:
                continue
            if first.event_id in rejected:
                outcome.rejected.append((first, rejected[first.event_id]))
            else:
                outcome.sent.append(first)
            if rest and (pass_on or first.event_id not in rejected):
                left.append(rest)
        return left


def is_refusal(error: BaseException | None) -> bool:
    """Whether the broker answered, and does not let us in."""
    from aiormq.exceptions import (  # noqa: PLC0415 - a driver is imported when it is used
        AuthenticationError,
        ChannelAccessRefused,
        ChannelPreconditionFailed,
        ConnectionNotAllowed,
        ProbableAuthenticationError,
    )

    refusals = (
        AuthenticationError,
        ChannelAccessRefused,
        ChannelPreconditionFailed,
        ConnectionNotAllowed,
        ProbableAuthenticationError,
    )
    return isinstance(error, refusals)
