"""The package as a service installs and imports it: light, typed, and nothing but `sagascope`."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
import zipfile
from email import message_from_string
from importlib import import_module
from pathlib import Path
from statistics import median

import pytest

import sagascope

CHECKOUT = Path(__file__).parents[2]
DRIVERS = [
    *("aio_pika", "aiosqlite", "asyncpg", "duckdb", "elasticsearch", "fluss", "httpcore", "httpx", "kafka"),
    *("opensearchpy", "opentelemetry", "prometheus_client", "pyarrow", "pyflink", "redis", "sagaz", "tenacity"),
]
OF_SAGAZ = ["FanOutSaga", "SagazBridge"]


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout


def test_the_wheel_holds_sagascope_alone(tmp_path: Path) -> None:
    """What is published is the one package with its types and licence; no script, and msgspec and tenacity its only dependencies."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(CHECKOUT)]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    info = f"sagascope-{message_from_string(metadata)['Version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"sagascope", info}
    in_checkout = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "sagascope").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == in_checkout
    assert {"sagascope/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert f"{info}/entry_points.txt" not in names
    required = message_from_string(metadata).get_all("Requires-Dist", [])
    assert [requirement for requirement in required if "extra ==" not in requirement] == [
        "msgspec>=0.20",
        "tenacity>=9",
    ]


def test_importing_is_fast_and_loads_no_driver() -> None:
    """`import sagascope` takes less than 50 ms in a fresh process and loads nothing of what it may use later."""
    code = """
import json, sys, time
began = time.perf_counter()
import sagascope
print(json.dumps([time.perf_counter() - began, sorted(sys.modules)]))
"""
    runs = [json.loads(python(code)) for _ in range(5)]
    assert median(seconds for seconds, _ in runs) < 0.05
    for _, modules in runs:
        assert not {*DRIVERS, "asyncio", "msgspec"} & set(modules)
        assert [name for name in modules if name.startswith("sagascope")] == ["sagascope"]


@pytest.mark.parametrize("name", sorted(set(sagascope.__all__) - set(OF_SAGAZ)))
def test_using_a_name_loads_no_driver(name: str) -> None:
    """Every name but those of the bridge to sagaz can be used without any driver installed."""
    code = """
import json, sys, sagascope
getattr(sagascope, sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""
    assert not set(DRIVERS) & set(json.loads(python(code, name)))


@pytest.mark.parametrize("name", OF_SAGAZ)
def test_the_bridge_without_sagaz_names_the_extra(name: str) -> None:
    """Where sagaz is not installed, using the bridge says what to install."""
    code = """
import sys
sys.modules["sagaz"] = None
import sagascope
try:
    getattr(sagascope, sys.argv[1])
except ModuleNotFoundError as error:
    print(error)
"""
    assert "pip install 'sagascope[sagaz]'" in python(code, name)


@pytest.mark.parametrize("name", sagascope.__all__)
def test_every_name_resolves_to_its_home(name: str) -> None:
    """A name of the package is the object of its module, the same each time."""
    value = getattr(sagascope, name)
    assert value is getattr(import_module(sagascope._HOME[name]), name)
    assert getattr(sagascope, name) is value


def test_the_names_stand_in_three_places_and_agree() -> None:
    """`__all__`, what is loaded when a name is used, and what type checkers see are the same, and sorted."""
    tree = ast.parse((CHECKOUT / "sagascope" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen_by_type_checkers = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen_by_type_checkers == sagascope._HOME
    assert list(sagascope._HOME) == sagascope.__all__ == sorted(sagascope.__all__) == dir(sagascope)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="module 'sagascope' has no attribute 'Kafka'"):
        getattr(sagascope, "Kafka")  # noqa: B009 - mypy knows better than to let it pass


def test_the_examples_of_modules_are_python() -> None:
    """What a module's docstring shows can be pasted: it compiles, and names only what there is."""
    found = 0
    for path in sorted((CHECKOUT / "sagascope").rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        for block in re.findall(r"(?:^    .*\n?|^\n)+", text, re.MULTILINE):
            code = textwrap.dedent(block).strip()
            if not re.match(r"(async with|await|class|[a-z_, ]+ = |watch_|from |[A-Z]\w+\()", code):
                continue  # a table, or JSON
            tree = compile(code, str(path), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                if isinstance(call.func, ast.Name) and call.func.id == "FanOut":
                    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "listeners")]
                    assert isinstance(given[0], ast.List), f"{path.name}: FanOut takes a list"
            found += 1
    assert found > 15
