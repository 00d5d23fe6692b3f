"""The tables as assets. The streaming job writes all of them; those that are computed, a backfill can compute again."""

from datetime import timedelta

import dagster as dg

from dagster_project.partitions import DAYS
from warehouse.tables import COMPUTED, EVENTS, NAMESPACE, SAGA_DEFINITIONS, SAGA_RUNS, STATISTICS, TABLES, Table

IMPORTED = ("imported_sagaz_outbox", "imported_files")
"""The imports, which add to `events`."""
SOURCES = {
    EVENTS: [*IMPORTED],
    **{table: [EVENTS.name] for table in STATISTICS},
    SAGA_RUNS: [EVENTS.name, SAGA_DEFINITIONS.name],
}
"""What each table is made from, besides the stream."""
FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(minutes=5), fail_window=timedelta(hours=1))
"""Dagster measures it from the newest report, so it says how long no new rows were seen while Dagster ran."""


def asset_of(table: Table) -> dg.AssetSpec:
    """The table as an asset: its words, columns, days, and what it is derived from."""
    return dg.AssetSpec(
        table.name,
        deps=SOURCES.get(table),
        description=table.doc,
        metadata={
            "dagster/column_schema": columns_of(table),
            "dagster/table_name": ".".join(table.identifier),
            "partitioned by": f"{table.granularity} of {table.time_column}, UTC",
        },
        group_name=NAMESPACE,
        kinds={"iceberg", "flink"},
        partitions_def=DAYS,
        freshness_policy=FRESH if table is EVENTS or table in STATISTICS else None,  # the others may be quiet
        skippable=table in COMPUTED,  # a backfill reports each day by itself
    )


def columns_of(table: Table) -> dg.TableSchema:
    """The table's columns as Dagster shows them; Iceberg enforces no key, so it stands as a constraint in words."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                str(column.type),
                column.doc,
                dg.TableColumnConstraints(nullable=not column.required),
            )
            for column in table.columns
        ],
        constraints=dg.TableConstraints(other=[f"one row per {', '.join(table.key)}"]),
    )


WATCHED = [asset_of(table) for table in TABLES if table not in COMPUTED]
"""What only the stream writes: external assets."""
