"""Targets of sagas and steps, out of a YAML file: how long they may take, how many may fail.

- saga: order*             # a pattern of names, with * and ?
  percentile: 95           # of all that ended; 99 where it is left out
  max_duration: 30s
  max_failure_rate: 0.02   # a share, from 0 to 1
- saga: order*
  step: charge             # a pattern, too; without it the target is the saga's own
  max_duration: 500ms
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
import yaml

from warehouse.errors import WarehouseError

if TYPE_CHECKING:
    from pathlib import Path

UNITS_MS = {"ms": 1.0, "s": 1_000.0, "m": 60_000.0, "h": 3_600_000.0, "d": 86_400_000.0}
_DURATION = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)(?P<unit>ms|s|m|h|d)")


class InvalidTargetsError(WarehouseError):
    """A file that holds no targets: says where, what is there, and what is allowed."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of sagas, or of their steps, of such names."""

    saga: str = "*"
    step: str | None = None
    """None: of the saga as a whole."""
    percentile: float = 99.0
    """The share of all, in percent, that `max_ms` is asked of."""
    max_ms: float | None = None
    max_failure_rate: float | None = None
    """From 0 to 1."""


def load(path: Path) -> list[Target]:
    """The targets of the file, in its order.

    Raises:
        InvalidTargetsError: it can't be read, is no YAML, or holds something that is no target.
    """
    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: the targets can't be read: {error}"
        raise InvalidTargetsError(msg) from error
    except yaml.YAMLError as error:
        msg = f"{path}: no YAML: {' '.join(str(error).split())}"
        raise InvalidTargetsError(msg) from error
    if not isinstance(document, yaml.SequenceNode) or not document.value:
        msg = f"{path}: no targets; write a list, each like `- {{saga: order*, percentile: 95, max_duration: 30s}}`"
        raise InvalidTargetsError(msg)
    return [_target(path, node) for node in document.value]


def _target(path: Path, node: yaml.Node) -> Target:
    if not isinstance(node, yaml.MappingNode):
        raise _error(path, node, "a target", "keys and values, like `saga: order*`")
    given: dict[str, object] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name not in _KEYS:
            raise _error(path, key, "a key", ", ".join(_KEYS))
        field, read, allowed = _KEYS[name]
        if field in given:
            raise _error(path, key, "a key of its own: it is there twice", "each key once")
        try:
            given[field] = read(value.value) if isinstance(value, yaml.ScalarNode) else None
        except ValueError:
            given[field] = None
        if given[field] is None:
            raise _error(path, value, name, allowed)
    if not {"max_ms", "max_failure_rate"} & given.keys():
        raise _error(path, node, "a target", "max_duration, max_failure_rate or both among its keys")
    return msgspec.convert(given, Target)


def _name(text: str) -> str | None:
    return text or None


def _percentile(text: str) -> float | None:
    number = float(text)
    return number if 0 < number <= 100 else None


def _share(text: str) -> float | None:
    number = float(text)
    return number if 0 <= number <= 1 else None


def _duration_ms(text: str) -> float | None:
    match = _DURATION.fullmatch(text)
    return float(match["number"]) * UNITS_MS[match["unit"]] if match else None


_KEYS = {
    "saga": ("saga", _name, "a pattern of names, like order*"),
    "step": ("step", _name, "a pattern of names, like charge"),
    "percentile": ("percentile", _percentile, "a number above 0, up to 100"),
    "max_duration": ("max_ms", _duration_ms, "a number with ms, s, m, h or d, like 500ms or 30s"),
    "max_failure_rate": ("max_failure_rate", _share, "a number from 0 to 1"),
}
"""Of each key: the field, how its value is read (None: it is none), and what is allowed."""


def _error(path: Path, node: yaml.Node, what: str, allowed: str) -> InvalidTargetsError:
    got = repr(node.value) if isinstance(node, yaml.ScalarNode) else f"a {node.id}"
    return InvalidTargetsError(f"{path}, line {node.start_mark.line + 1}: {got} is not {what}; allowed: {allowed}")
