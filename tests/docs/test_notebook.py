"""The notebook of the docs runs as it stands, on a small history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

from tests.servers.server import CHECKOUT
from tests.warehouse.planted import append, events_of, fill
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    import pytest

    from warehouse.settings import Settings

NOTEBOOK = CHECKOUT / "docs" / "notebooks" / "saga_history.ipynb"


def test_the_notebook_runs(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell, in a kernel of its own; the last expression of a cell shows rows, and a chart; none is kept in the file."""
    from datetime import UTC, datetime, timedelta

    open_catalog(local).close()
    fill(local)
    append(local, EVENTS, events_of(7, datetime.now(UTC) - timedelta(days=1)))
    for name, value in local.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call] # has no types
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(
        notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(Path.cwd())}}
    ).execute()
    shown = [output.data for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "order" in shown[0]["text/plain"]
    assert "pay" in shown[1]["text/plain"]
    assert "application/vnd.plotly.v1+json" in shown[-1]
