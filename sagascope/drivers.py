"""Drivers and client libraries: each is an extra, and is imported when something first needs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(module: str, *, needed_by: str, package: str, extra: str) -> Any:
    """A module of a driver.

    Args:
        module: Its name.
        needed_by: Who says so where it is missing.
        package: What is missing then.
        extra: Ours that brings it.

    Raises:
        ModuleNotFoundError: it is not installed; names what to install.
    """
    try:
        import_module(module.partition(".")[0])  # a module below may be loaded where its package is barred
        return import_module(module)
    except ModuleNotFoundError as error:
        msg = f"{needed_by} needs {package}: pip install 'sagascope[{extra}]'"
        raise ModuleNotFoundError(msg) from error
