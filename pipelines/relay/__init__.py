"""The relay: events from an outbox to a topic of Kafka or an exchange of RabbitMQ. `sagascope relay`.

A source (`outbox`, `sagaz`, `amqp`) gives events that are committed, a target (`kafka`, `rabbitmq`) takes them, `work` runs between
the two: take, publish, and only then settle. Why it claims by sagas: docs/decisions/0018.
"""
