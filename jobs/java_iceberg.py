"""Iceberg as its Java code has it, in the JVM that PyFlink has, or starts: for what PyIceberg lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from warehouse.catalog import BUSY_TIMEOUT_SECONDS, CATALOG_NAME, CatalogError

if TYPE_CHECKING:
    from warehouse.settings import Settings
    from warehouse.tables import Table


def open_java_catalog(settings: Settings) -> Any:
    """The catalog as Iceberg's Java code has it, `org.apache.iceberg.catalog.Catalog`; close it after use.

    Raises:
        CatalogError: it can't be opened.
    """
    machine = jvm()
    catalog = machine.org.apache.iceberg.jdbc.JdbcCatalog()
    catalog.setConf(machine.org.apache.hadoop.conf.Configuration())
    options = {
        "uri": f"jdbc:sqlite:{settings.catalog_file}?busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
        "warehouse": settings.warehouse_folder.as_uri(),
        "jdbc.schema-version": "V1",
    }
    try:
        catalog.initialize(CATALOG_NAME, options)
    except Exception as error:
        msg = f"the catalog {settings.catalog_file} can't be opened by Iceberg's Java code ({first_line(error)})"
        raise CatalogError(msg) from error
    return catalog


def load_java_table(catalog: Any, table: Table) -> Any:
    """The table as Iceberg's Java code has it, `org.apache.iceberg.Table`."""
    return catalog.loadTable(jvm().org.apache.iceberg.catalog.TableIdentifier.parse(".".join(table.identifier)))


def first_line(error: Exception) -> str:
    """What went wrong, on one line: of a Java exception that Py4J wrapped its class, its message, and its innermost cause."""
    thrown = getattr(error, "java_exception", None)
    if thrown is None:
        return f"{type(error).__name__}: {error}".split("\n", 1)[0]
    cause = thrown
    while cause.getCause() is not None:
        cause = cause.getCause()
    lines = [str(one.toString()).split("\n", 1)[0] for one in (thrown, cause)]
    return "; because of ".join(dict.fromkeys(lines))


def jvm() -> Any:
    """Its classes, by their names."""
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

    return get_gateway().jvm
