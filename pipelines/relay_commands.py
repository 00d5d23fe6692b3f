"""`sagascope relay`: from an outbox to Kafka or RabbitMQ; its status, and what it has parked."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import UUID

import msgspec
import typer

from pipelines.terminal import Format, make_console, print_rows
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from pipelines.relay.ends import Source, Target
    from pipelines.relay.figures import Figures
    from pipelines.relay.work import Pace

relay = typer.Typer(
    help="Carry events from an outbox to Kafka or RabbitMQ, until Ctrl-C: `sagascope relay --from … --to …`.",
    invoke_without_command=True,
)
parked = typer.Typer(help="Events that the broker will never take as they are.", no_args_is_help=True)
relay.add_typer(parked, name="parked")
console = make_console()

From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="URL",
        help="The outbox: postgresql://user:password@host:port/database, or sqlite:///path; or RabbitMQ, amqp://…?exchange=…. "
        "Default: SAGASCOPE_RELAY_FROM.",
    ),
]
FromSagaz = Annotated[
    bool,
    typer.Option("--from-sagaz", help="Follow sagaz's own outbox there (saga_outbox, outbox_events), read-only."),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="URL",
        help="kafka://host:port/topic, amqp://user:password@host:port/vhost?exchange=saga-events. Default: SAGASCOPE_RELAY_TO, "
        "else the Kafka and the topic of the settings.",
    ),
]
Table = Annotated[str | None, typer.Option(help="The outbox's table in PostgreSQL.")]
Port = Annotated[
    int | None, typer.Option("--metrics-port", metavar="PORT", help="Serve /metrics there, on the loopback interface.")
]
OnParked = Annotated[
    str | None,
    typer.Option(
        "--on-parked",
        metavar="block|pass",
        help="Whether what follows a parked event of a saga waits for it, or is sent all the same.",
    ),
]
Saga = Annotated[str | None, typer.Option("--saga", metavar="ID", help="Those of this saga.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="EVENT_ID…", help="Which, as `parked list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="All that are parked.")]
Output = Annotated[Format, typer.Option("--format", help="How rows are printed.")]
_AT_A_TIME = 1_000


class _Before(NamedTuple):
    """What was given before the name of the command."""

    settings: Settings
    from_sagaz: bool


@relay.callback()
def run(
    context: typer.Context,
    *,
    source: From = None,
    target: To = None,
    table: Table = None,
    metrics_port: Port = None,
    on_parked: OnParked = None,
    from_sagaz: FromSagaz = False,
) -> None:
    """Carry events from an outbox to Kafka or RabbitMQ, each at least once and those of a saga in order, until Ctrl-C.

    Several may share one outbox in PostgreSQL; one in SQLite has one relay, and the next waits. Prints its numbers as a
    line of JSON a minute. A broker or a database that is down is waited for. Exit code 1 where an end can't be used.

    Example: sagascope relay --from postgresql://shop:secret@db/orders --to kafka://broker:9092/saga-events
    """
    given = {
        "relay_from": source,
        "relay_to": target,
        "relay_table": table,
        "relay_metrics_port": metrics_port,
        "relay_parked": on_parked,
    }
    context.obj = _Before(_settings(given, None), from_sagaz)
    if context.invoked_subcommand is None:
        _relay(context.obj.settings, of_sagaz=from_sagaz)


@relay.command()
def status(
    context: typer.Context,
    source: From = None,
    table: Table = None,
    *,
    from_sagaz: FromSagaz = False,
    output: Output = Format.TABLE,
) -> None:
    """Depth (events not sent), lag (age of the eldest, in seconds), parked events, and what these block.

    Exit code 1 where something is parked.
    """

    async def ask(opened: Source) -> int:
        now = await opened.backlog()
        print_rows(
            ["depth", "lag_seconds", "parked", "blocked"], [now._replace(lag_seconds=round(now.lag_seconds, 1))], output
        )
        return now.parked

    if _with_source(
        _settings({"relay_from": source, "relay_table": table}, context.obj.settings),
        from_sagaz or context.obj.from_sagaz,
        ask,
    ):
        raise typer.Exit(1)


@parked.command("list")
def list_parked(
    context: typer.Context,
    source: From = None,
    table: Table = None,
    saga: Saga = None,
    *,
    from_sagaz: FromSagaz = False,
    output: Output = Format.TABLE,
) -> None:
    """What is parked, the eldest first, with why; a thousand at most."""

    async def ask(opened: Source) -> int:
        rows = await opened.parked(saga_id=saga, limit=_AT_A_TIME)
        names = ["event_id", "saga_id", "event_type", "attempts", "created_at", "reason"]
        print_rows(names, [tuple(row) for row in rows], output)
        return len(rows)

    _with_source(
        _settings({"relay_from": source, "relay_table": table}, context.obj.settings),
        from_sagaz or context.obj.from_sagaz,
        ask,
    )


@parked.command()
def retry(
    context: typer.Context,
    event_ids: Ids = None,
    *,
    source: From = None,
    table: Table = None,
    saga: Saga = None,
    every: All = False,
    from_sagaz: FromSagaz = False,
) -> None:
    """Send them again, in their old place: once the topic takes larger messages, say."""
    chosen = _Chosen(event_ids or [], saga, every)
    settings = _settings({"relay_from": source, "relay_table": table}, context.obj.settings)
    done = _with_source(
        settings, from_sagaz or context.obj.from_sagaz, lambda opened: chosen.change(opened, opened.retry_parked)
    )
    chosen.tell(done, "will be tried again")


@parked.command()
def discard(
    context: typer.Context,
    event_ids: Ids = None,
    *,
    source: From = None,
    table: Table = None,
    saga: Saga = None,
    every: All = False,
    from_sagaz: FromSagaz = False,
) -> None:
    """Delete them, unsent, and let what they block pass. This can't be undone."""
    chosen = _Chosen(event_ids or [], saga, every)
    settings = _settings({"relay_from": source, "relay_table": table}, context.obj.settings)
    done = _with_source(
        settings, from_sagaz or context.obj.from_sagaz, lambda opened: chosen.change(opened, opened.discard_parked)
    )
    chosen.tell(done, "are discarded")


class _Chosen:
    """Which of the parked events a command is about."""

    def __init__(self, event_ids: list[str], saga: str | None, every: bool) -> None:  # noqa: FBT001 - as Typer gives it
        if sum(map(bool, (event_ids, saga, every))) != 1:
            msg = "which? Give event ids, or --saga ID, or --all"
            raise typer.BadParameter(msg)
        for event_id in event_ids:
            try:
                UUID(event_id)
            except ValueError:
                msg = f"{event_id!r} is no event id: give UUIDs, as `parked list` shows them"
                raise typer.BadParameter(msg) from None
        self._ids = set(event_ids)
        self._saga = saga

    async def change(self, opened: Source, change: Callable[[Collection[str]], Awaitable[int]]) -> int:
        """Have it done to them; returns to how many it was."""
        if self._ids:
            return await change(self._ids)
        done = 0
        while rows := await opened.parked(saga_id=self._saga, limit=_AT_A_TIME):
            changed = await change([row.event_id for row in rows])
            done += changed
            if changed < _AT_A_TIME:  # that was all; what a relay has parked anew meanwhile is not meant
                break
        return done

    def tell(self, done: int, what: str) -> None:
        """Say to how many; exit code 1 where one that was named was not parked."""
        console.print(f"{done:,} events {what}")
        if done < len(self._ids):
            console.print(f"{len(self._ids) - done:,} of those given were not parked")
            raise typer.Exit(1)


def _settings(given: Mapping[str, object], before: Settings | None) -> Settings:
    """Those of the environment, or of the command before, with what was given on the command line."""
    said = {name: value for name, value in given.items() if value is not None}
    if "relay_parked" in said and said["relay_parked"] not in {"block", "pass"}:
        msg = f"--on-parked {said['relay_parked']!r}; allowed: block, pass"
        raise typer.BadParameter(msg)
    return msgspec.structs.replace(before or Settings.from_environment(os.environ), **said)


def _with_source(settings: Settings, of_sagaz: bool, ask: Callable[[Source], Awaitable[int]]) -> int:  # noqa: FBT001 - as given
    """Ask a source that may be in use by a relay."""
    from pipelines.relay.urls import source_of  # noqa: PLC0415 - so that --help is there at once
    from sagascope.errors import DeliveryError  # noqa: PLC0415

    async def main() -> int:
        source = source_of(settings, of_sagaz=of_sagaz)
        try:
            await source.look()
            return await ask(source)
        finally:
            await source.close()

    try:
        return asyncio.run(main())
    except DeliveryError as error:
        raise OSError(str(error)) from error  # which the command line tells in a line


def _relay(settings: Settings, *, of_sagaz: bool) -> None:
    from pipelines.relay.figures import Figures  # noqa: PLC0415 - so that --help is there at once
    from pipelines.relay.urls import source_of, target_of  # noqa: PLC0415
    from sagascope.errors import DeliveryError  # noqa: PLC0415

    logging.getLogger("sagascope").setLevel(logging.INFO)
    for driver in ("aiormq", "aio_pika"):
        logging.getLogger(driver).setLevel(
            logging.CRITICAL
        )  # tracebacks of who is not there; the relay says it in a line
    source, target, figures = source_of(settings, of_sagaz=of_sagaz), target_of(settings), Figures()
    with ExitStack() as cleanup:
        if settings.relay_metrics_port:
            cleanup.callback(figures.serve(settings.relay_metrics_port))
        try:
            asyncio.run(_run(source, target, figures, pace_of(settings)))
        except (DeliveryError, ModuleNotFoundError) as error:
            raise OSError(str(error)) from error  # which the command line tells in a line


async def _run(source: Source, target: Target, figures: Figures, pace: Pace) -> None:
    from pipelines.relay.work import Relay  # noqa: PLC0415

    worker = Relay(source, target, figures, pace, tell=_say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, worker.stop)
    await worker.run()


def pace_of(settings: Settings) -> Pace:
    """How the settings have a relay work."""
    from pipelines.relay.work import Pace  # noqa: PLC0415

    return Pace(
        batch_size=settings.relay_batch_size,
        poll_seconds=settings.relay_poll_ms / 1000,
        pass_on=settings.relay_parked == "pass",
        retention_seconds=settings.relay_retention_hours * 3600.0,
    )


def _say(line: str) -> None:
    """To standard output, whole and at once: whoever reads it may be a pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
