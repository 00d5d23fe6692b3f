"""A lake of its own for each test, filled through PyIceberg."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.types import BooleanType, DoubleType, StringType

from dagster_project.lake import LakeResource
from warehouse.catalog import open_catalog
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table as StoredTable

    from warehouse.tables import Table


@dataclass
class Lake:
    """Real Iceberg tables below a temporary folder."""

    settings: Settings
    catalog: Catalog

    @property
    def resource(self) -> LakeResource:
        """The same lake, as Dagster gets it."""
        return LakeResource(environment=self.settings.environment())

    def stored(self, table: Table) -> StoredTable:
        """The table at its newest snapshot."""
        return self.catalog.load_table(table.identifier)

    def add(self, table: Table, *times: str) -> int:
        """Commit one row for each time (UTC), e.g. 2026-03-01T23:59; returns the snapshot."""
        stored = self.stored(table)
        rows = [_row(table, datetime.fromisoformat(time).replace(tzinfo=UTC)) for time in times]
        stored.append(pa.Table.from_pylist(rows, schema=schema_to_pyarrow(stored.schema(), include_field_ids=False)))
        snapshot = stored.current_snapshot()
        assert snapshot is not None
        return snapshot.snapshot_id


@pytest.fixture(scope="session")
def new_lake() -> Iterator[Callable[[Path], Lake]]:
    """Make a lake with empty tables below a folder."""
    with ExitStack() as opened:

        def make(folder: Path) -> Lake:
            settings = Settings(home=str(folder))
            return Lake(settings, opened.enter_context(open_catalog(settings)))

        yield make


@pytest.fixture
def lake(new_lake: Callable[[Path], Lake], tmp_path: Path) -> Lake:
    """A lake with empty tables."""
    return new_lake(tmp_path / "home")


def _row(table: Table, time: datetime) -> dict[str, Any]:
    """Any row at that time: every column that must have a value has one."""
    samples: dict[Any, Any] = {StringType(): "a", BooleanType(): False, DoubleType(): 0.5}
    row = {column.name: samples.get(column.type, 1) for column in table.columns if column.required}
    return row | {name: time for name in ("timestamp", "window_start", "window_end") if name in row}
