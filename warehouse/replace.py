"""Replaces rows of a table in one commit, while the stream goes on appending to it."""

from __future__ import annotations

import fcntl
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyiceberg.exceptions import CommitFailedException, ValidationException
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse.errors import WarehouseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table as StoredTable

    from warehouse.settings import Settings
    from warehouse.tables import Table

ATTEMPTS = 5
"""Each from a fresh load of the table; within each PyIceberg tries `commit.retry.num-retries` times by itself."""

logger = logging.getLogger(__name__)


class ReplacedMeanwhileError(WarehouseError):
    """Rows that were to be replaced were added or removed by somebody else meanwhile; names the table, and the cure."""


Properties = Callable[["StoredTable"], "dict[str, str]"]
"""What properties a table gets, given what it is before."""


def replace_rows(
    settings: Settings,
    catalog: Catalog,
    table: Table,
    rows: pa.Table,
    where: BooleanExpression,
    *,
    properties: Properties | None = None,
) -> None:
    """Put `rows` in the place of all rows that match `where`, in one commit; a partition left without rows is gone.

    One writer a table at a time: a second one waits. The stream's appends are no such writer, and none of them is lost:
    a commit of theirs in between lets this one be tried again on top. The snapshots before it stay, and with them what
    Flink's sink noted in their properties.

    Args:
        settings: Where the tables are.
        catalog: Opened from the same settings.
        table: Whose rows.
        rows: What is to be there afterwards, with the table's column names; may be empty.
        where: What is to go. The tighter it is, the fewer files are written anew, and the fewer appends conflict.
        properties: Of the table, to be set by the same commit.

    Raises:
        ReplacedMeanwhileError: rows that match `where` were added or removed since, or others committed before each of the
            attempts; nothing is replaced.
    """
    with only_writer(settings, table):
        for attempt in range(1, ATTEMPTS + 1):
            stored = catalog.load_table(table.identifier)
            try:
                _replace(stored, rows, where, properties(stored) if properties else {})
            except CommitFailedException as error:  # by its promise nothing has landed
                if attempt == ATTEMPTS:
                    msg = f"{table.name}: others committed before each of {ATTEMPTS} attempts to replace rows: do it again"
                    raise ReplacedMeanwhileError(msg) from error
                logger.warning("%s changes all the time: replacing rows of it is tried again", table.name)
            except ValidationException as error:
                msg = f"{table.name}: rows that were to be replaced have changed meanwhile ({error}): do it again"
                raise ReplacedMeanwhileError(msg) from error
            else:
                return


def change_properties(settings: Settings, catalog: Catalog, table: Table, properties: Properties) -> None:
    """Set properties of a table that follow from what it is, as its only writer."""
    with only_writer(settings, table):
        stored = catalog.load_table(table.identifier)
        if changes := {name: text for name, text in properties(stored).items() if stored.properties.get(name) != text}:
            with stored.transaction() as change:
                change.set_properties(changes)


def _replace(stored: StoredTable, rows: pa.Table, where: BooleanExpression, properties: dict[str, str]) -> None:
    schema = schema_to_pyarrow(stored.schema(), include_field_ids=False)
    with warnings.catch_warnings(), stored.transaction() as change:
        warnings.filterwarnings("ignore", message="Delete operation did not match any records")
        if rows.num_rows:
            change.overwrite(rows.select(schema.names).cast(schema), where)
        else:  # an overwrite with nothing would commit an empty append as well
            change.delete(where)
        if properties:
            change.set_properties(properties)


@contextmanager
def only_writer(settings: Settings, table: Table) -> Iterator[None]:
    """Be the only one that removes files from the table; awaits another one's end. Who only appends needs no such leave."""
    with (settings.catalog_file.parent / f"{table.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process replaces rows of %s (lock %s): waiting for it", table.name, lock.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
