"""The rules of `warehouse.rules` as asset checks: one a rule and table, judged day by day by `warehouse.quality`."""

import json
import warnings
from collections.abc import Iterator
from datetime import date

import dagster as dg

from dagster_project.lake import LakeResource, NoTablesError
from dagster_project.partitions import DAYS
from warehouse import quality
from warehouse.rules import Severity, rules
from warehouse.tables import TABLES, Table

SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def checks_of(table: Table) -> dg.AssetChecksDefinition:
    """All rules of a table, as checks of its asset, which one step judges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # that a check has partitions
        specs = [
            dg.AssetCheckSpec(rule.name, asset=table.name, description=rule.promise, partitions_def=DAYS)
            for rule in rules(table)
        ]

    @dg.multi_asset_check(
        name=f"quality_of_{table.name}",
        specs=specs,
        description=f"Whether the rows of {table.name} are what they should be, on one day.",
        can_subset=True,
    )
    def judge(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
        try:
            settings = lake.settings()
        except NoTablesError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        wanted = {key.name for key in context.selected_asset_check_keys}
        for finding in quality.check(settings, table, date.fromisoformat(context.op_execution_context.partition_key)):
            if finding.rule in wanted:
                yield _result(finding)

    return judge


def _result(finding: quality.Finding) -> dg.AssetCheckResult:
    """What was found, with some of the rows that break the rule as a table."""
    metadata: dict[str, dg.MetadataValue] = {
        "failing": dg.MetadataValue.int(finding.failing),
        "rows": dg.MetadataValue.int(finding.rows),
    }
    if finding.sample:
        metadata["sample"] = dg.MetadataValue.table(
            [dg.TableRecord({"key": json.dumps(row.key), "what is wrong": row.what}) for row in finding.sample]
        )
    return dg.AssetCheckResult(
        asset_key=finding.table,
        check_name=finding.rule,
        passed=finding.passed,
        severity=SEVERITIES[finding.severity],
        description=finding.promise if finding.passed else f"{finding.failing:,} of {finding.rows:,} break it",
        metadata=metadata,
    )


CHECKS = [checks_of(table) for table in TABLES]
