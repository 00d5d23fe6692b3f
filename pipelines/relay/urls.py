"""The two ends out of what --from and --to say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from kafka import KafkaProducer

from pipelines import stack
from pipelines.relay.amqp import RabbitMQSource
from pipelines.relay.ends import RelayError
from pipelines.relay.kafka import KafkaTarget
from pipelines.relay.outbox import PostgresSource, SQLiteSource
from pipelines.relay.rabbitmq import RabbitMQTarget

if TYPE_CHECKING:
    from pipelines.relay.ends import Source, Target
    from warehouse.settings import Settings

_POSTGRESQL = ("postgresql", "postgres")
_SOURCES = "postgresql://user:password@host:port/database, sqlite:///path or amqp://user:password@host:port/vhost"
_TARGETS = "kafka://host:port/topic or amqp://user:password@host:port/vhost"
_OURS_OF_AMQP = ("exchange", "mandatory", "queue")


def source_of(settings: Settings, *, of_sagaz: bool = False) -> Source:
    """What the settings take events from. Nothing is opened yet.

    Raises:
        RelayError: the URL is none of a source.
    """
    url = settings.relay_from
    if not url:
        msg = f"where from? Give --from, or set SAGASCOPE_RELAY_FROM: {_SOURCES}"
        raise RelayError(msg)
    scheme, separator, rest = url.partition("://")
    pass_on = settings.relay_parked == "pass"
    if scheme in _POSTGRESQL and separator:
        where = f"PostgreSQL at {place_of(url)}"
        if of_sagaz:
            from pipelines.relay.sagaz import PostgresFollower  # noqa: PLC0415 - brings DuckDB

            return PostgresFollower(url, where, settings.relay_folder, pass_on=pass_on)
        return PostgresSource(
            url, where, table=settings.relay_table, lease_seconds=settings.relay_lease_seconds, pass_on=pass_on
        )
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        path = Path(unquote(rest[1:]))
        if of_sagaz:
            from pipelines.relay.sagaz import SQLiteFollower  # noqa: PLC0415 - brings DuckDB

            return SQLiteFollower(path, settings.relay_folder, pass_on=pass_on)
        return SQLiteSource(path, lease_seconds=settings.relay_lease_seconds, pass_on=pass_on)
    if scheme in {"amqp", "amqps"} and not of_sagaz:
        return _queue(url, settings.topic)
    msg = f"--from {scheme + separator if separator else url!r}… is no source of the relay; allowed: {_SOURCES}"
    raise RelayError(msg)


def target_of(settings: Settings) -> Target:
    """What the settings publish to: --to, else the Kafka and the topic of the other settings. Nothing is opened yet.

    Raises:
        RelayError: the URL is none of a target.
    """
    url = settings.relay_to
    if not url:
        return KafkaTarget(stack.bootstrap_servers(settings), settings.topic)
    scheme, separator, _ = url.partition("://")
    try:
        if scheme == "kafka":
            return _kafka(url, settings.topic)
        if scheme in {"amqp", "amqps"}:
            return _rabbitmq(url, settings.topic)
    except ValueError as error:
        msg = f"--to: {error}"
        raise RelayError(msg) from None
    msg = f"--to {scheme + separator if separator else url!r}… is no target of the relay; allowed: {_TARGETS}"
    raise RelayError(msg)


def place_of(url: str) -> str:
    """host:port/path, without user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that can't be read"
    return f"{parts.netloc.rpartition('@')[2] or 'its usual place'}{parts.path}"


def _kafka(url: str, default_topic: str) -> KafkaTarget:
    parts = urlsplit(url)
    credentials, _, servers = parts.netloc.rpartition("@")
    if not servers:
        msg = "kafka:// without a host; allowed: kafka://host:port/topic"
        raise ValueError(msg)
    options = {name: _option(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True)}
    if credentials:
        user, _, password = credentials.partition(":")
        options = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": unquote(user),
            "sasl_plain_password": unquote(password),
        } | options
    return KafkaTarget(servers, unquote(parts.path.strip("/")) or default_topic, options)


def _option(name: str, value: str) -> Any:
    """An option of kafka-python's producer, of the kind that its default has."""
    known = KafkaProducer.DEFAULT_CONFIG
    if name not in known:
        msg = f"{name!r} is no option of kafka-python's producer; some are security_protocol, sasl_mechanism, ssl_cafile, compression_type"
        raise ValueError(msg)
    default = known[name]
    if isinstance(default, bool):
        return value.lower() in {"1", "true", "yes"}
    return type(default)(value) if isinstance(default, int | float) else value


def _rabbitmq(url: str, default_exchange: str) -> RabbitMQTarget:
    plain, ours = _parted(url)
    return RabbitMQTarget(
        plain,
        f"RabbitMQ at {place_of(url)}",
        ours.get("exchange", default_exchange),
        mandatory=ours.get("mandatory", "true").lower() in {"1", "true", "yes"},
    )


def _queue(url: str, default_exchange: str) -> RabbitMQSource:
    plain, ours = _parted(url)
    exchange, queue = ours.get("exchange", default_exchange), ours.get("queue", "sagascope-relay")
    return RabbitMQSource(plain, f"RabbitMQ at {place_of(url)}", exchange, queue)


def _parted(url: str) -> tuple[str, dict[str, str]]:
    """The URL as aio-pika takes it, and what of its query is ours."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    ours = {name: query.pop(name) for name in _OURS_OF_AMQP if name in query}
    return parts._replace(query=urlencode(query)).geturl(), ours
