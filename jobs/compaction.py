"""Compaction: small files become large ones, sorted. DuckDB sorts the rows, Iceberg's Java code commits."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from jobs.java_iceberg import jvm, load_java_table, open_java_catalog
from warehouse import maintenance
from warehouse.maintenance import Outcome
from warehouse.replace import ReplacedMeanwhileError, only_writer

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from pyiceberg.catalog import Catalog

    from warehouse.maintenance import Group
    from warehouse.settings import Settings
    from warehouse.tables import Table

TOGETHER = 50
"""So many groups of files at most are replaced by one commit: no more than their rewriting is lost by a kill."""


def compact(settings: Settings, catalog: Catalog, table: Table, now: datetime, dry_run: bool) -> Outcome:  # noqa: FBT001
    """Make large files of small ones; damaged ones stay as they are, and do not keep it from the others."""
    files, size = maintenance.files_and_bytes(catalog, table)
    stored = catalog.load_table(table.identifier)
    groups = maintenance.plan_compaction(settings, table, stored, now)
    if dry_run or not groups:
        after = files - sum(len(group.files) - 1 for group in groups)
        return Outcome(
            action="compact",
            table=table.name,
            files_before=files,
            files_after=after,
            bytes_before=size,
            bytes_after=size,
        )
    maintenance.forget_sorting(settings, now)
    left, reasons = 0, []
    for first in range(0, len(groups), TOGETHER):
        written: list[tuple[Group, Path]] = []
        try:
            for group in groups[first : first + TOGETHER]:
                try:
                    written.append((group, maintenance.write_sorted(settings, table, stored.schema(), group)))
                except maintenance.CanNotCompactError as error:
                    reasons.append(str(error))
        except OSError as error:
            _discard(written)
            msg = (
                f"{table.name}: large files can't be written ({error}): until its snapshots expire a table needs room for both the "
                f"small files and the large ones; make some in {settings.root}, and do it again"
            )
            raise maintenance.CanNotCompactError(msg) from error
        left += _replace_files(settings, catalog, table, written)
    files_after, size_after = maintenance.files_and_bytes(catalog, table)
    return Outcome(
        action="compact",
        table=table.name,
        files_before=files,
        files_after=files_after,
        bytes_before=size,
        bytes_after=size_after,
        left=left,
        reason="; ".join(reasons),
    )


def _replace_files(settings: Settings, catalog: Catalog, table: Table, written: list[tuple[Group, Path]]) -> int:
    """Put the written files in place of those they were made of, in one commit; how many were left, being replaced already.

    Who else removes files of the table (a recompute, `maintain dedup`, another upkeep) waits for it, and it for them. The
    stream's appends may come in between: Iceberg commits on top of them.
    """
    if not written:
        return 0
    with only_writer(settings, table):
        live = {task.file.file_path for task in catalog.load_table(table.identifier).scan().plan_files()}
        ready = [(group, output) for group, output in written if live.issuperset(group.files)]
        stale = [(group, output) for group, output in written if not live.issuperset(group.files)]
        _discard(stale)
        if ready:
            # What was written stays if this fails: it may have been committed for all that. If not, it is an orphan.
            with closing(open_java_catalog(settings)) as java_catalog:
                _commit(load_java_table(java_catalog, table), table, ready)
    return sum(len(group.files) for group, _ in stale)


def _commit(java_table: Any, table: Table, ready: list[tuple[Group, Path]]) -> None:
    iceberg = jvm().org.apache.iceberg
    expressions = iceberg.expressions.Expressions
    first, last = min(group.partition for group, _ in ready), max(group.partition for group, _ in ready)
    until = last + maintenance.WIDTHS[table.granularity]
    scan = java_table.newScan().ignoreResiduals()
    scan = scan.filter(expressions.greaterThanOrEqual(table.time_column, first.isoformat()))
    scan = scan.filter(expressions.lessThan(table.time_column, until.isoformat()))
    replaced = {file for group, _ in ready for file in group.files}
    found: dict[str, Any] = {}
    with closing(scan.planFiles()) as tasks:
        iterator = tasks.iterator()
        while iterator.hasNext():
            file = iterator.next().file()
            if (path := str(file.location())) in replaced:
                found[path] = file.copyWithoutStats()
    if len(found) < len(replaced):
        msg = (
            f"{table.name}: {len(replaced) - len(found)} files that were to be replaced are gone meanwhile: do it again"
        )
        raise ReplacedMeanwhileError(msg)
    rewrite = java_table.newRewrite().validateFromSnapshot(java_table.currentSnapshot().snapshotId())
    metrics = iceberg.MetricsConfig.forTable(java_table)
    for group, output in ready:
        for path in group.files:
            rewrite.deleteFile(found[path])
        file = java_table.io().newInputFile(f"{group.files[0].rpartition('/')[0]}/{output.name}")
        rewrite.addFile(
            iceberg.DataFiles.builder(java_table.spec())
            .withInputFile(file)
            .withFormat("parquet")
            .withPartition(found[group.files[0]].partition())
            .withMetrics(iceberg.parquet.ParquetUtil.fileMetrics(file, metrics))
            .build()
        )
    rewrite.commit()


def _discard(written: list[tuple[Group, Path]]) -> None:
    for _, output in written:
        output.unlink(missing_ok=True)
