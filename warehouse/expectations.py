"""Great Expectations over the facts of a day: a suite a table, a verdict a rule, Data Docs of them all.

Importing this imports Great Expectations, which takes two seconds: import it where it is used.
"""

from __future__ import annotations

import html
import shutil
from typing import TYPE_CHECKING

import great_expectations as gx
import pandas as pd
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.metadata_types import FailureSeverity

from warehouse.data_docs import JudgedDay, make_self_contained
from warehouse.rules import Rule, Severity, rules

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

    from warehouse.quality import Facts
    from warehouse.tables import Table

SITE = "quality"
SEVERITIES = {Severity.ERROR: FailureSeverity.CRITICAL, Severity.WARN: FailureSeverity.WARNING}
"""As Great Expectations names them."""


def suite(table: Table, facts: Facts | None = None) -> gx.ExpectationSuite:
    """An expectation for each rule of the table: that the facts count no row which breaks it.

    Args:
        table: Whose rules.
        facts: Rows that break a rule, to be shown with its expectation.
    """
    expectations = [
        ExpectColumnValuesToBeBetween(
            column=rule.name,
            min_value=0,
            max_value=0,
            severity=SEVERITIES[rule.severity],
            description=_described(rule, facts),
        )
        for rule in rules(table)
    ]
    return gx.ExpectationSuite(name=table.name, expectations=expectations)


class Judge:
    """Verdicts by Great Expectations, in memory; `build_docs` writes those given so far as a site."""

    def __init__(self) -> None:
        # Its own configuration: the default one makes a folder below /tmp and leaves it there.
        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
            analytics_enabled=False,
        )
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._lake = self._context.data_sources.add_pandas("lake")
        self._tables: dict[str, Table] = {}
        self._days: list[JudgedDay] = []

    def verdicts(self, table: Table, day: date, facts: Facts) -> dict[str, bool]:
        """Whether each rule of the table holds, by its name.

        Raises:
            RuntimeError: Great Expectations failed to judge; says how.
        """
        if table.name not in self._tables:
            self._lake.add_dataframe_asset(table.name)
            self._tables[table.name] = table
        asset = self._lake.get_asset(table.name)
        name = f"{table.name} {day}"
        definition = gx.ValidationDefinition(
            name=name,
            data=asset.add_batch_definition_whole_dataframe(str(day)),
            suite=self._context.suites.add_or_update(suite(table, facts)),
        )
        frame = pd.DataFrame([{"rows": facts.rows} | facts.failing], index=pd.Index([str(day)], name="day"))
        result = self._context.validation_definitions.add_or_update(definition).run(
            batch_parameters={"dataframe": frame},
            run_id=gx.RunIdentifier(run_name=str(day)),
        )
        verdicts: dict[str, bool] = {}
        for one in result.results:
            if one.expectation_config is None or one.exception_info.get("raised_exception"):
                msg = f"{name}: Great Expectations could not judge: {one.exception_info}"
                raise RuntimeError(msg)
            verdicts[one.expectation_config.kwargs["column"]] = bool(one.success)
        broken = [rule.severity for rule in rules(table) if not verdicts[rule.name]]
        errors = broken.count(Severity.ERROR)
        self._days.append(JudgedDay(table.name, day, facts.rows, len(verdicts), errors, len(broken) - errors))
        return verdicts

    def build_docs(self, folder: Path) -> None:
        """Write a static site, `index.html` its first page, in place of what the folder held.

        Raises:
            OSError: the folder can't be written.
        """
        for table in self._tables.values():
            self._context.suites.add_or_update(suite(table))  # the page of the suite is of no day
        fresh = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._context.add_data_docs_site(
            SITE,
            {
                "class_name": "SiteBuilder",
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(fresh)},
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        self._context.build_data_docs()
        make_self_contained(fresh, self._days)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def _described(rule: Rule, facts: Facts | None) -> str:
    """The rule's promise, with the rows that break it; what comes from rows is text in the page, never a part of it."""
    told = [
        f"{', '.join(f'{name} {value}' for name, value in row.key.items())}: {row.what}"
        for row in (facts.samples.get(rule.name, ()) if facts else ())
    ]
    return html.escape(rule.promise + (f". Breaking it: {'; '.join(told)}" if told else ""))
