"""Imports of history as assets, a day a partition: a backfill of a range is one run, and reads its source once."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime

import dagster as dg

from dagster_project.assets import IMPORTED
from dagster_project.lake import LakeResource
from dagster_project.partitions import DAYS, START
from warehouse.errors import WarehouseError
from warehouse.imports.days import DayImport, open_import, recompute_of
from warehouse.imports.files import EventFiles, patterns_in
from warehouse.imports.outbox import outbox_at
from warehouse.imports.source import DAY, Loaded, Source, Span
from warehouse.settings import PREFIX, Settings
from warehouse.tables import NAMESPACE


def sagaz_of(settings: Settings) -> Source:
    """The outbox that the settings name.

    Raises:
        dg.Failure: they name none.
    """
    _require(
        settings.import_url, "IMPORT_URL", "postgresql://user:password@host/database, or the path of a SQLite file"
    )
    return outbox_at(settings.import_url)


def files_of(settings: Settings) -> Source:
    """The files that the settings name.

    Raises:
        dg.Failure: they name none.
    """
    _require(
        settings.import_files, "IMPORT_FILES", "paths and patterns of Parquet and JSON lines files, parted by colons"
    )
    return EventFiles(patterns_in(settings.import_files))


def _require(value: str, variable: str, allowed: str) -> None:
    if not value:
        msg = f"nothing to import from: set {PREFIX}{variable} to {allowed}, where Dagster runs, then start it again"
        raise dg.Failure(msg, allow_retries=False)


def _asset(name: str, doc: str, kind: str, source_of: Callable[[Settings], Source]) -> dg.AssetsDefinition:
    # skippable: each day is reported when it is stored, so that a run that fails keeps those it has done
    spec = dg.AssetSpec(name, description=doc, group_name=NAMESPACE, kinds={kind, "iceberg"}, skippable=True)

    @dg.multi_asset(
        name=name,
        specs=[spec],
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def imported(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[dg.MaterializeResult[None]]:
        days = [date.fromisoformat(key) for key in context.partition_keys]
        try:
            settings = lake.given()
            _import(context, settings, source_of(settings), days)
        except (WarehouseError, ValueError) as error:  # the input, or the settings: no retry helps
            raise dg.Failure(str(error), allow_retries=False) from error
        yield from ()

    return imported


def _import(context: dg.AssetExecutionContext, settings: Settings, source: Source, days: list[date]) -> None:
    now = datetime.now(UTC)
    changed: set[date] = set()
    with open_import(settings, source, Span(min(days), max(days) + DAY), now=now) as opened:
        if None in opened.days():
            told = opened.store(None)
            refused = told.invalid + told.unclassified
            context.log.warning("%d rows without a time are kept in rejected_events: %s", refused, _some(told))
        for day in days:
            told = opened.store(day)
            context.log_event(
                dg.AssetMaterialization(context.asset_key, partition=day.isoformat(), metadata=_metadata_of(told))
            )
            if told.imported:
                changed.add(day)
    _tell_rest(context, opened.loaded)
    for command in recompute_of(changed, now.date()):
        context.log.info("stored statistics do not count what is imported; compute them again: %s", command)
    if opened.loaded.damaged:
        msg = "the other files are imported; damaged are: " + "; ".join(opened.loaded.damaged)
        raise dg.Failure(msg, allow_retries=False)


def _tell_rest(context: dg.AssetExecutionContext, loaded: Loaded) -> None:
    if loaded.before:
        cure = f"Days before {START} have no partition: to import them move START back in dagster_project/partitions.py"
        context.log.warning("%d rows are of days before those of this run, and were left out. %s", loaded.before, cure)
    if loaded.after:
        context.log.warning("%d rows are of days after those of this run, and were left out", loaded.after)


def _metadata_of(told: DayImport) -> dict[str, dg.MetadataValue]:
    counts = {name: getattr(told, name) for name in told._fields if name not in ("day", "reasons")}
    return {
        **{name: dg.MetadataValue.int(count) for name, count in counts.items()},
        **({"reasons": dg.MetadataValue.text(_some(told))} if told.reasons else {}),
    }


def _some(told: DayImport) -> str:
    return "\n".join(told.reasons)


_OUTBOX, _FILES = IMPORTED
IMPORTS = [
    _asset(
        _OUTBOX,
        f"What sagaz's outbox ({PREFIX}IMPORT_URL) tells of its sagas, in `events`.",
        "postgres",
        sagaz_of,
    ),
    _asset(_FILES, f"Files of events ({PREFIX}IMPORT_FILES), in `events`.", "file", files_of),
]
