"""The house's plan: what may import what, without a circle, in few floors. See docs/architecture.md.

Imports inside functions count as much as those at the top of a file: a function that imports what is above it
is a circle all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The lowest first. A folder or top-level file of the package imports only what lies in a layer below its own.
LAYERS = (
    ("controls", "errors", "files", "identity", "packages", "operations", "families", "queries", "terminal"),
    ("protocol", "validation", "models", "store"),
    ("datasets", "prompts", "engine", "results"),
    ("evaluations", "vectors", "scoring", "host", "cluster"),
    ("analysis", "grid", "mechanism"),
    ("report", "plan"),
    ("run",),
    ("api", "bench", "serve"),
    ("vsteer",),
    ("cli",),
    ("__main__",),
)
FLOOR = {part: floor for floor, layer in enumerate(LAYERS) for part in layer}
# Folders beside vsteer/ that are imported as vsteer.NAME. The overrides of vLLM are a part of the engine.
BESIDE = {"patches": "engine", "queries": "queries"}
# The engine must not know what a grid or a row on disk is, and the store knows nothing of vLLM or of grids.
ALLOWED = {
    "engine": {
        "errors",
        "identity",
        "packages",
        "operations",
        "terminal",
        "families",
        "protocol",
        "validation",
        "models",
    },
    "store": {"controls", "errors", "files", "identity", "packages", "operations"},
}
FOREIGN = {
    "vllm": {"engine", "serve"},
    "ray": {"cluster"},
}


def named(file: Path) -> str:
    """The dotted name under which a file is imported."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in BESIDE:
        parts.insert(0, "vsteer")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The folder or top-level file of the package that a module belongs to; `vsteer` is its `__init__`."""
    part = module.split(".")[1] if "." in module else module
    return BESIDE.get(part, part)


@cache
def sources() -> dict[str, ast.Module]:
    files = (file for folder in ("vsteer", *BESIDE) for file in (ROOT / folder).rglob("*.py"))
    return {named(file): ast.parse(file.read_text()) for file in files}


def imported(module: str) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(sources()[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in sources() else node.module


@cache
def graph() -> dict[str, frozenset[str]]:
    return {
        module: frozenset(name for name in imported(module) if name in sources() and name != module)
        for module in sources()
    }


@cache
def parts_graph() -> dict[str, frozenset[str]]:
    return {
        part: frozenset(
            part_of(name)
            for module, names in graph().items()
            if part_of(module) == part
            for name in names
            if part_of(name) != part
        )
        for part in map(part_of, sources())
    }


def test_the_reading_of_imports_sees_them() -> None:
    """Against imports that were read by eye: at the top, of a module from a package, inside a function."""
    assert "vsteer.errors" in graph()["vsteer.protocol"]
    assert "vsteer.packages" in graph()["vsteer"]
    assert "vsteer.cli" in graph()["vsteer.__main__"]
    assert "engine" in parts_graph()["run"]
    assert any(name.split(".")[0] == "vllm" for name in imported("vsteer.patches.block_hash"))


def test_every_part_of_the_package_has_a_layer() -> None:
    assert set(parts_graph()) <= set(FLOOR)


def test_nobody_imports_upwards() -> None:
    upwards = [
        f"{module} imports {name}"
        for module, names in sorted(graph().items())
        for name in sorted(names)
        if part_of(name) != part_of(module) and FLOOR[part_of(name)] >= FLOOR[part_of(module)]
    ]
    assert upwards == []


def test_no_circle_of_files() -> None:
    """What is left after every file whose imports are all gone has been taken away lies on a circle."""
    left = {module: set(names) for module, names in graph().items()}
    while free := {module for module, names in left.items() if not names & set(left)}:
        left = {module: names for module, names in left.items() if module not in free}
    # and what only stands above a circle is no part of it
    while above := set(left) - {name for names in left.values() for name in names}:
        left = {module: names for module, names in left.items() if module not in above}
    assert sorted(left) == []


@pytest.mark.parametrize("part", ALLOWED)
def test_what_a_part_may_know(part: str) -> None:
    assert parts_graph()[part] <= ALLOWED[part]


@pytest.mark.parametrize("package", FOREIGN)
def test_who_may_import_what_is_heavy(package: str) -> None:
    importers = {
        part_of(module)
        for module in sources()
        if package in {name.split(".")[0] for name in imported(module)}
    }
    assert importers <= FOREIGN[package]


def test_the_engine_knows_no_parquet_and_no_sql() -> None:
    known = {
        name.split(".")[0] for module in sources() if part_of(module) == "engine" for name in imported(module)
    }
    assert not known & {"pyarrow", "duckdb", "yaml"}


def floors(part: str) -> int:
    """The length of the longest chain of imports that starts at a part, over parts."""
    return 1 + max((floors(lower) for lower in parts_graph()[part]), default=0)


def test_the_picture_of_the_imports_has_at_most_ten_floors() -> None:
    assert max(map(floors, parts_graph())) <= 10
