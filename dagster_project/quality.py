"""The rules of `warehouse.rules` as asset checks: one a rule and table, judged day by day by `warehouse.quality`."""

import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from datetime import date

import dagster as dg

from dagster_project.lake import LakeResource
from dagster_project.partitions import DAYS
from warehouse import quality
from warehouse.rules import Severity, rules
from warehouse.settings import Settings
from warehouse.tables import COMPUTED, TABLES, Table

SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def specs_of(table: Table) -> list[dg.AssetCheckSpec]:
    """A check for each rule of a table, of each day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # that a check has partitions
        return [
            dg.AssetCheckSpec(rule.name, asset=table.name, description=rule.promise, partitions_def=DAYS)
            for rule in rules(table)
        ]


def judge(
    settings: Settings, table: Table, day: str, wanted: Collection[dg.AssetCheckKey]
) -> Iterator[dg.AssetCheckEvaluation]:
    """What was found of those of a table's checks that are wanted, on a day, e.g. 2026-03-01."""
    names = {key.name for key in wanted if key.asset_key == dg.AssetKey(table.name)}
    if names:
        for finding in quality.check(settings, table, date.fromisoformat(day)):
            if finding.rule in names:
                yield _evaluation(finding, day)


def days_of(run: dg.OpExecutionContext) -> Sequence[str]:
    """The partitions of a run.

    Raises:
        dagster.Failure: it has none.
    """
    if not (run.has_partition_key or run.has_partition_key_range):
        msg = "no day was chosen, and all of history is too much for one look: choose a partition, or launch judge_quality"
        raise dg.Failure(msg, allow_retries=False)
    return run.partition_keys


def checks_of(table: Table) -> dg.AssetChecksDefinition:
    """The checks of a table that Dagster does not make, as a step of their own."""

    @dg.multi_asset_check(
        name=f"quality_of_{table.name}",
        specs=specs_of(table),
        description=f"Whether the rows of {table.name} are what they should be, on one day.",
        can_subset=True,
    )
    def judge_days(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> Iterator[dg.AssetCheckEvaluation]:
        settings = lake.settings_or_fail()
        for day in days_of(context.op_execution_context):
            yield from judge(settings, table, day, context.selected_asset_check_keys)

    return judge_days


def _evaluation(finding: quality.Finding, day: str) -> dg.AssetCheckEvaluation:
    """What was found, with some of the rows that break the rule as a table."""
    metadata: dict[str, dg.MetadataValue] = {
        "failing": dg.MetadataValue.int(finding.failing),
        "rows": dg.MetadataValue.int(finding.rows),
    }
    if finding.sample:
        metadata["sample"] = dg.MetadataValue.table(
            [dg.TableRecord({"key": json.dumps(row.key), "what is wrong": row.what}) for row in finding.sample]
        )
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(finding.table),
        check_name=finding.rule,
        passed=finding.passed,
        severity=SEVERITIES[finding.severity],
        description=finding.promise if finding.passed else f"{finding.failing:,} of {finding.rows:,} break it",
        metadata=metadata,
        partition=day,
    )


CHECKS = [checks_of(table) for table in TABLES if table not in COMPUTED]
"""Those of the computed tables are in the step that computes them."""
