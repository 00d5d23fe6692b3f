"""Views and macros that are made once a query names them: each takes DuckDB milliseconds, and there are many."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import duckdb

_LISTS_NAMES = re.compile(r"show|information_schema|duckdb_|pg_catalog", re.IGNORECASE)
"""Is found in each query that asks which views and macros there are."""
_COMMENT = re.compile(r"--.*")
_WORD = re.compile(r"\w+")


class NamedViews:
    """What may be named in a query of one connection, by name."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, statements: Mapping[str, str]) -> None:
        """Make nothing yet.

        Args:
            connection: Where.
            statements: What makes each view or macro, by its name in small letters; each after those that it is made of.
        """
        self._connection = connection
        self._left = dict(statements)

    def create(self, query: str) -> None:
        """Make what the query names, and what that is made of; all where it asks what there is."""
        wanted = set(self._left) if _LISTS_NAMES.search(query) else self._named(query)
        names = list(self._left)
        for number in reversed(range(1, len(names))):  # the first one is made of none
            if names[number] in wanted:
                wanted |= self._named(_COMMENT.sub("", self._left[names[number]]))
        for name in names:
            if name in wanted:
                self._connection.execute(self._left.pop(name))

    def _named(self, text: str) -> set[str]:
        return {word for word in _WORD.findall(text.lower()) if word in self._left}
