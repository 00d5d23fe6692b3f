"""sagaz's own worker, with all it publishes in one topic. Needs the extra `sagascope[sagaz]`.

    worker = OutboxWorker(storage, OneTopicBroker(KafkaBroker(config), topic="saga-messages"))

sagaz 1.5 takes each event's type for its topic, so that a reader would have to know them all. What is published stays
sagaz's own message, which is none of ours: for our events follow its outbox, `sagascope relay --from-sagaz`.
"""

from __future__ import annotations

from typing import Any


class OneTopicBroker:
    """Any broker of sagaz's, but for the topic: that of each event is this one, its key still the saga's id.

    Guarantee: that of the broker within; what its methods raise is raised here.
    """

    def __init__(self, inner: Any, topic: str = "saga-messages") -> None:
        """Do no I/O.

        Args:
            inner: A broker of sagaz's: KafkaBroker, RabbitMQBroker (where it is the routing key), RedisBroker …
            topic: Must exist, or the broker must create it. Not `saga-events`, whose readers expect events of ours.

        Raises:
            ValueError: no topic.
        """
        if not topic:
            msg = "topic: got ''; allowed: a topic's name"
            raise ValueError(msg)
        self.inner = inner
        self.topic = topic

    async def publish_event(self, event: Any, topic: str | None = None) -> None:
        """Publish one of sagaz's events to the topic, unless its caller names another."""
        await self.inner.publish_event(event, topic=topic or self.topic)

    def __getattr__(self, name: str) -> Any:
        """All else is the broker's own."""
        return getattr(self.inner, name)
