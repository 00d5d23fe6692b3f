"""`sagascope parity`: the tables against the topic, the statistics against the events; and what mends them."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from pipelines import batch_jobs, processes, stack
from pipelines.moments import parse_moment
from pipelines.terminal import make_console, rows_as_table
from sagascope.events import FARTHEST_AHEAD_MS
from warehouse.claims import job_pid
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warehouse.parity import Account
    from warehouse.windows import Comparison, TableDifferences

HOUR = timedelta(hours=1)

console = make_console()

Since = Annotated[
    datetime | None,
    typer.Option(
        parser=parse_moment,
        metavar="MOMENT",
        help="Only what came or happened from here: 2026-11-23T10:00, or 15m ago.",
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=parse_moment, metavar="MOMENT", help="Only windows that start before this moment."),
]


def parity(
    since: Since = None,
    until: Until = None,
    *,
    mend: Annotated[
        bool, typer.Option("--mend", help="Recompute the hours whose windows differ; then look again.")
    ] = False,
) -> None:
    """Compare the tables with the topic, record by record, and the statistics with the events, window by window.

    Exit code 0 when they are equal, and 1 on any difference; what the job has still to do is none.
    """
    from warehouse import windows  # noqa: PLC0415 - so that --help is there at once
    from warehouse.progress import read_progress  # noqa: PLC0415

    settings = Settings.from_environment(os.environ)
    settings = msgspec.structs.replace(settings, bootstrap_servers=stack.bootstrap_servers(settings))
    account = _look_at_topic(settings, since)
    _print_account(account)
    comparison = _look_at_windows(settings, since, until)
    _print_comparison(comparison)
    mended = True
    if mend and comparison.hours and _damaged(account):
        mended = False
        console.print("\nNot mended: it would compute right statistics anew from events that are missing or altered")
    elif mend and comparison.hours:
        ranges = hour_ranges(comparison.hours, read_progress(settings).watermark)
        outcomes = [_recompute(settings, first, last) for first, last in ranges]
        mended = all(outcomes)
        comparison = windows.compare(settings, since, until, comparison.closed)
        console.print("\nAfter the recompute:")
        _print_comparison(comparison)
    _print_cures(settings, account, comparison)
    whole = account.is_whole and comparison.is_whole and mended
    console.print(_verdict(account, comparison, mended=mended), style="bold green" if whole else "bold red")
    if not whole:
        raise typer.Exit(1)


def hour_ranges(hours: Iterable[datetime], watermark: datetime | None) -> list[tuple[datetime, datetime | None]]:
    """Hours, in order, as ranges [first, last) of neighbours; last is None where the stream has not closed all of it."""
    ranges: list[tuple[datetime, datetime]] = []
    for hour in hours:
        if ranges and ranges[-1][1] == hour:
            ranges[-1] = ranges[-1][0], hour + HOUR
        else:
            ranges.append((hour, hour + HOUR))
    return [(first, last if watermark and last <= watermark else None) for first, last in ranges]


def _look_at_topic(settings: Settings, since: datetime | None) -> Account:
    from warehouse import parity, topic  # noqa: PLC0415

    # An event of that moment is in no record older than this.
    begins = topic.offsets_at(settings, since - timedelta(milliseconds=FARTHEST_AHEAD_MS)) if since else None
    account = parity.audit(settings, begins)
    if account.is_whole or not _commits_come(settings):
        return account
    return parity.audit(settings, begins, account.lasts)


def _look_at_windows(settings: Settings, since: datetime | None, until: datetime | None) -> Comparison:
    from warehouse import windows  # noqa: PLC0415

    comparison = windows.compare(settings, since, until)
    if comparison.is_whole or not _commits_come(settings):
        return comparison
    return windows.compare(settings, since, until, comparison.closed)


def _commits_come(settings: Settings) -> bool:
    """Whether the job runs; if so, after two commits of it.

    It commits to one table after the other: what it has done to the first may for a moment be lacking in the next.
    """
    if job_pid(settings) is None:
        return False
    with console.status("the job runs: a second look after two commits"):
        time.sleep(2 * settings.checkpoint_interval_ms / 1000)
    return True


def _print_account(account: Account) -> None:
    names = (
        *("partition", "begin", "end", "before", "stored", "duplicates", "rejected"),
        *("expired", "missing", "lag", "doubled", "altered"),
    )
    console.print(
        rows_as_table(names, [tuple(getattr(partition, name) for name in names) for partition in account.partitions])
    )
    for finding in account.findings:
        console.print(f"partition {finding.partition}, offset {finding.offset}: {finding.what}", highlight=False)
    _print_rest(account.found, len(account.findings))
    for repeated in account.repeated:
        console.print(f"event id {repeated.event_id} is stored at {repeated.offsets}", highlight=False, markup=False)
    _print_rest(account.repeated_ids, len(account.repeated))


def _print_comparison(comparison: Comparison) -> None:
    if comparison.closed is None:
        console.print("\nno window is stored yet")
        return
    console.print(f"\nwindows that end by {comparison.closed:%Y-%m-%d %H:%M:%S} UTC", highlight=False)
    columns = ("table", "rows", "differing", "events not counted")
    console.print(rows_as_table(columns, [(one.table, one.rows, one.differing, one.late) for one in comparison.tables]))
    for one in comparison.tables:
        _print_windows(one)


def _print_windows(found: TableDifferences) -> None:
    for window in found.shown:
        console.print(
            f"{found.table} {window.window_start:%Y-%m-%d %H:%M:%S} {window.names}: {window.what}; "
            f"counts {window.counted:,} of {window.events:,} events",
            highlight=False,
            markup=False,
        )
    _print_rest(found.differing, len(found.shown))


def _print_rest(number: int, shown: int) -> None:
    if number > shown:
        console.print(f"… and {number - shown:,} more")


def _print_cures(settings: Settings, account: Account, comparison: Comparison) -> None:
    from pipelines.doctor.tables import afresh  # noqa: PLC0415

    if _damaged(account):
        cure = f"Missing and altered rows no recompute brings back, but the topic has them: {afresh(settings)}"
        console.print(cure, highlight=False, markup=False)
    if sum(one.doubled for one in account.partitions) or account.repeated_ids:
        console.print("Events that are stored twice: `sagascope maintain dedup` keeps the first row of each id")
    if not comparison.is_whole:
        console.print("Windows that differ: `sagascope parity --mend` recomputes their hours from `events`")


def _verdict(account: Account, comparison: Comparison, *, mended: bool) -> str:
    missing, doubled, altered, lag = (
        sum(getattr(one, name) for one in account.partitions) for name in ("missing", "doubled", "altered", "lag")
    )
    windows = sum(one.differing for one in comparison.tables)
    found = [
        f"{number:,} {what}"
        for number, what in (
            (missing, "records missing"),
            (doubled, "rows doubled"),
            (altered, "rows altered"),
            (windows, "windows differ"),
        )
        if number
    ]
    if not mended:
        found.append("a recompute did not succeed")
    behind = f"; {lag:,} records are still to do" if lag else ""
    return (f"DIFFERENT: {', '.join(found)}" if found else "WHOLE: the tables are what the topic says") + behind


def _recompute(settings: Settings, first: datetime, last: datetime | None) -> bool:
    """Run the batch job over [first, last); says whether it succeeded."""
    hours = ["--from", _hour(first), *(["--to", _hour(last)] if last else [])]
    what = f"recompute {' '.join(hours)}"
    ended = batch_jobs.run(settings, console, "recompute", hours, status=what)
    reasons = [line["reason"] for line in ended.said if line.get("reason")]
    why = "; ".join(reasons) or processes.last_lines(ended.log)
    console.print(f"{what}: {escape(f'did not succeed: {why}') if ended.code else 'done'}", highlight=False)
    return ended.code == 0


def _damaged(account: Account) -> int:
    return sum(one.missing + one.altered for one in account.partitions)


def _hour(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}"
