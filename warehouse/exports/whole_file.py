"""A file that is there whole or not at all, and in place of nobody else's."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from warehouse.errors import WarehouseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ExportError(WarehouseError):
    """Nothing was exported: names the file or the span, and what to do. What the file held it still holds."""


@contextmanager
def replacing(path: Path, is_ours: Callable[[Path], bool], *, force: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well; a kill at any moment leaves the old file.

    It is in a folder of its own beside, which is gone afterwards; one that a killed export left is cleared away by the next.

    Args:
        path: Where the file is to be.
        is_ours: Whether a file is an export of this kind, and may be replaced.
        force: Replace any file.

    Raises:
        ExportError: no file can be there, or one is there that is not ours.
    """
    if not path.parent.is_dir():
        msg = f"{path} can't be written: there is no folder {path.parent}; make it first"
        raise ExportError(msg)
    if path.exists() and not path.is_file():
        msg = f"{path} is no file: name one that is to be written"
        raise ExportError(msg)
    if path.exists() and not force and not is_ours(path):
        msg = f"{path} is there and is no such export: name another file, or replace it with --force"
        raise ExportError(msg)
    prefix = f".{path.name}."
    for left in path.parent.glob(f"{prefix}*.partial"):
        _clear(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=path.parent))
    with _locked(folder):
        try:
            partial = folder / path.name
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """As long as this process lives, nobody takes the folder for left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Delete a folder that no living process holds."""
    with suppress(OSError), _locked(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
