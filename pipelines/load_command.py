"""The command `sagascope workload`: real sagas that report to the topic and, if asked, to a fan-out of sinks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pipelines import stack
from pipelines.durations import InvalidDurationError, parse_duration
from pipelines.terminal import make_console
from warehouse.settings import Settings

if TYPE_CHECKING:
    from pipelines.workload import WorkloadReport
    from sagascope import KafkaListener, SagaListener

console = make_console()


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except InvalidDurationError as error:
        raise typer.BadParameter(str(error)) from error


For = Annotated[
    float | None,
    typer.Option(
        "--for", parser=_duration, metavar="DURATION", help="End after so long, e.g. 60s, 5m; else at Ctrl-C."
    ),
]
Rate = Annotated[float, typer.Option(min=0.1, help="Sagas started a second.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same sagas with the same fates.")]
ScaleTime = Annotated[float, typer.Option(min=1, help="How many times faster than modelled the sagas live.")]


def workload(
    seconds: For = None,
    rate: Rate = 50,
    seed: Seed = 7,
    scale_time: ScaleTime = 20,
    *,
    describe: Annotated[
        bool, typer.Option("--describe", help="Print what is true of the load, and run nothing.")
    ] = False,
    fan_out: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Tell more sinks than the topic: metrics, an audit log, and those whose server answers (Redis, Elasticsearch, "
            "RabbitMQ, Fluss, a webhook; see the settings). Serves /healthz and /metrics at this port.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the outcome to this file as JSON.")] = None,
    with_parent: Annotated[bool, typer.Option("--with-parent", hidden=True)] = False,
) -> None:
    """Run realistic sagas (real ones, executed by sagaz) that report to the topic.

    Exit code 1 when an event could not be sent.
    """
    from pipelines import workload as workload_module
    from sagascope import KafkaListener

    if describe:
        workload_module.print_truth(console, workload_module.Truth(), scale_time)
        return
    settings = Settings.from_environment(os.environ)
    listener = KafkaListener(
        stack.bootstrap_servers(settings),
        settings.topic,
        buffer_events=100_000,
        definitions_topic=settings.definitions_topic,
    )
    arguments = {"rate": rate, "seconds": seconds, "seed": seed, "scale_time": scale_time, "prefix": _run_prefix()}
    outcome, sinks = asyncio.run(_run(settings, listener, fan_out, arguments, with_parent=with_parent))
    counts = listener.counts
    facts = {
        "sent": counts.sent,
        "failed": counts.failed,
        "sagas": msgspec.to_builtins(outcome.total),
        "seconds": outcome.seconds,
        "achieved_rate": outcome.achieved_rate,
        "notes": list(outcome.notes),
        "sinks": sinks,
    }
    if report:
        report.write_bytes(msgspec.json.encode(facts))
    total = outcome.total
    console.print(
        f"{total.started:,} sagas in {outcome.seconds:.1f} s: {total.completed:,} completed, "
        f"{total.rolled_back:,} rolled back, {total.failed:,} failed, {total.cancelled:,} cancelled; "
        f"{counts.sent:,} events sent, {counts.failed:,} not"
    )
    for note in outcome.notes:
        console.print(f"[yellow]{note}")
    if counts.failed:
        raise typer.Exit(1)


async def _run(
    settings: Settings, kafka: KafkaListener, port: int | None, arguments: dict[str, Any], *, with_parent: bool
) -> tuple[WorkloadReport, list[dict[str, Any]]]:
    """Run the load; what became of its events at each sink besides the topic."""
    from pipelines import workload as workload_module

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if with_parent:
        threading.Thread(target=_stop_at_end_of_input, args=(loop, stop), daemon=True).start()
    async with AsyncExitStack() as cleanup:
        listeners: list[SagaListener] = [kafka]
        if port is None:
            await cleanup.enter_async_context(kafka)
            return await workload_module.run_workload(listeners, stop=stop, **arguments), []
        from pipelines import sinks

        joined = await sinks.join(settings, kafka, port, cleanup)
        outcome = await workload_module.run_workload([joined.fan_out], stop=stop, **arguments)
        await joined.fan_out.aclose()
        return outcome, joined.facts()


def _run_prefix() -> str:
    """Keeps the saga ids of one run apart from those of another with the same seed."""
    return f"{datetime.now(UTC):%H%M%S}-"


def _stop_at_end_of_input(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """The parent is gone when standard input ends."""
    while os.read(0, 4096):
        pass
    with suppress(RuntimeError):  # the loop has ended too
        loop.call_soon_threadsafe(stop.set)
