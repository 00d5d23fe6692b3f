"""Tables with known rows in them, written through PyIceberg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path


@pytest.fixture
def lake(tmp_path: Path) -> Settings:
    """Settings with empty tables."""
    settings = Settings(home=str(tmp_path / "home"), topic="t")
    open_catalog(settings)
    return settings


@pytest.fixture
def add_events(lake: Settings) -> Callable[..., None]:
    """Append events at the given moments, as records of partition 0 from `offset` on."""

    def add(*moments: datetime, offset: int = 0) -> None:
        table = open_catalog(lake).load_table(EVENTS.identifier)
        rows: list[dict[str, Any]] = [
            {
                "event_id": f"e{offset + n}",
                "event_type": "saga_started",
                "saga_id": f"s{n}",
                "saga_name": "order",
                "run_id": f"r{n}",
                "sequence": 0,
                "timestamp": moment,
                "attempt": 1,
                "duration_derived": False,
                "schema_version": 1,
                "context_keys": ["a"],
                "attributes": [("k", "v")],
                "source_topic": "t",
                "source_partition": 0,
                "source_offset": offset + n,
            }
            for n, moment in enumerate(moments)
        ]
        table.append(pa.Table.from_pylist(rows, schema=schema_to_pyarrow(table.schema(), include_field_ids=False)))

    return add
