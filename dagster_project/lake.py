"""The lake as a resource: it is opened when an op or a sensor uses it, never at import."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import dagster as dg
from pydantic import Field
from pyiceberg.catalog import Catalog

from warehouse.catalog import open_catalog
from warehouse.settings import InvalidSettingError, Settings


class NoTablesError(Exception):
    """There is nothing to look at yet: says where was looked, and what makes it."""


class LakeResource(dg.ConfigurableResource):  # type: ignore[type-arg] # has no value of its own
    """The Iceberg catalog that the settings name."""

    environment: dict[str, str] = Field(default_factory=dict)
    """The settings as variables `SAGASCOPE_…`; empty: those of the process, read when the lake is opened."""

    def given(self) -> Settings:
        """The settings, whether there is a lake or not.

        Raises:
            InvalidSettingError: a variable can't be used.
        """
        return Settings.from_environment(self.environment or os.environ)

    def settings(self) -> Settings:
        """The settings of a lake that is there.

        Raises:
            NoTablesError: there is no catalog.
            InvalidSettingError: a variable can't be used.
        """
        settings = self.given()
        if not settings.catalog_file.exists():
            msg = f"no tables yet at {settings.catalog_file.parent}: run `make demo` or `sagascope seed` first"
            raise NoTablesError(msg)
        return settings

    def settings_or_fail(self) -> Settings:
        """The same for a step of a run, which is not tried again where there is nothing to work on.

        Raises:
            dagster.Failure: there is no catalog, or a variable can't be used.
        """
        try:
            return self.settings()
        except (NoTablesError, InvalidSettingError) as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    @contextmanager
    def open(self) -> Iterator[Catalog]:
        """The catalog, closed afterwards; it is not made where it is absent.

        Raises:
            NoTablesError: there is no catalog.
            InvalidSettingError: a variable can't be used.
        """
        with closing(open_catalog(self.settings())) as catalog:
            yield catalog
