"""`sagascope doctor`: looks at all that Sagascope stands on, and says what is wrong and how to cure it. Changes nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape

from pipelines import stack
from pipelines.doctor import job as of_job
from pipelines.doctor import kafka as of_kafka
from pipelines.doctor import machine as of_machine
from pipelines.doctor import tables as of_tables
from pipelines.doctor.findings import Finding, Level, fault, ok
from pipelines.terminal import plain_table
from warehouse.settings import PREFIX, InvalidSettingError, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rich.console import Console
    from rich.table import Table

WIDEST = 100
COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAULT: "bold red"}

Check = tuple[str, "Callable[[], list[Finding]]"]


def diagnose(environ: Mapping[str, str]) -> list[Finding]:
    """What `examine` finds; where a setting is wrong, that and what needs no settings."""
    try:
        settings = Settings.from_environment(environ)
    except InvalidSettingError as error:
        return [
            fault("settings", str(error), "set it to what is allowed, or unset it"),
            *_all_of(_without_settings()),
            ok("settings", "not looked at until it is cured: home, jars, Kafka, topic, catalog, tables, job"),
        ]
    given = sorted(key for key in environ if key.startswith(PREFIX))
    return [ok("settings", f"set: {', '.join(given)}" if given else "all as they are by default"), *examine(settings)]


def examine(settings: Settings) -> list[Finding]:
    """Look at everything. A check that fails by itself is a finding, too, and stops no other.

    Takes a few seconds; up to half a minute where a broker or the catalog is there, but does not answer.
    """
    findings = _all_of(
        [
            *_without_settings(),
            ("jars", partial(of_machine.jars, settings.jars)),
            ("home", partial(of_machine.home, settings)),
        ]
    )
    if not of_machine.nearest(settings.root).is_dir():
        return [*findings, ok("home", "not looked at until it is a folder: catalog, tables, job, Kafka, topic")]
    findings += _look("catalog", partial(of_tables.catalog, settings))
    opens = not any(one.area == "catalog" and one.level is Level.FAULT for one in findings)
    if opens:
        findings += _look("tables", partial(of_tables.tables, settings))
    findings += _all_of(
        [
            ("job", partial(of_job.running, settings)),
            ("job", partial(of_job.owed, settings)),
        ]
    )
    kafka = _look("kafka", partial(of_kafka.broker, settings))
    findings += kafka
    if any(one.level is not Level.OK for one in kafka):
        return [
            *findings,
            ok("topic", "not looked at, as no Kafka answers: topic, fingerprint, clocks of the services"),
        ]
    located = msgspec.structs.replace(settings, bootstrap_servers=stack.bootstrap_servers(settings))
    findings += _look("topic", partial(of_kafka.topics, located))
    if opens:
        findings += _look("topic", partial(of_kafka.offsets, located))
        findings += _look("fingerprint", partial(of_job.fingerprint, located))
    return findings + _look("clock", partial(of_kafka.clocks, located))


def run(environ: Mapping[str, str], console: Console) -> int:
    """Print the findings for people; 1 where there is a fault."""
    with console.status("looking at everything"):
        findings = diagnose(environ)
    console.print(as_table(findings), width=min(console.width, WIDEST))
    faults, warnings = (sum(one.level is level for one in findings) for level in (Level.FAULT, Level.WARNING))
    told = f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    console.print(told if faults or warnings else "all is well", style=COLOURS[worst(findings)])
    return exit_code(findings)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of them."""
    return max((one.level for one in findings), key=list(Level).index, default=Level.OK)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 where there is a fault, else 0."""
    return int(worst(findings) is Level.FAULT)


def as_table(findings: Iterable[Finding]) -> Table:
    """One row each; a cure on lines of its own below what it cures."""
    table = plain_table()
    for column in ("area", "level", "found"):
        table.add_column(column, overflow="fold")
    for one in findings:
        colour = COLOURS[one.level]
        cure = f"\n[{colour if one.level is not Level.OK else 'dim'}]→ {escape(one.cure)}[/]" if one.cure else ""
        table.add_row(one.area, f"[{colour}]{one.level}[/]", escape(one.what) + cure)
    return table


def _without_settings() -> list[Check]:
    return [
        ("python", of_machine.python),
        ("python", of_machine.packages),
        ("java", of_machine.java),
        ("clock", of_machine.clock_kept),
        ("ports", of_machine.dagster_port),
        ("jars", of_machine.pyflink),
    ]


def _all_of(checks: Iterable[Check]) -> list[Finding]:
    return [finding for area, check in checks for finding in _look(area, check)]


def _look(area: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - the others are looked at, whatever one meets
        what = f"could not be looked at: {type(error).__name__}: {str(error).strip()}"
        return [fault(area, what, "cure the other faults first; if it stays, it is a bug: report it with this line")]
