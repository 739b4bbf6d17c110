"""Imports within each package: no circles among files, and a bound on the longest chain.

A file that is ten imports deep cannot be read alone. Circles count imports inside functions too; chains count imports at module level,
which run when a file is imported. Imports under ``TYPE_CHECKING`` do not count. The directions between packages and folders are
contracts of import-linter in ``pyproject.toml``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dora_core", "infra", "tasks", "flows")

LONGEST = {"dora_core": 7, "infra": 5, "tasks": 6, "flows": 8}
"""Files in the longest chain. Where it grows: a type that several files need belongs in a file of its own (facts of a stage, canonical
rows), and files of one kind are found in their folder by a registry."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files(package: str) -> dict[str, Path]:
    return {module_name(path): path for path in (ROOT / package).rglob("*.py")}


def statements(node: ast.AST, *, in_function: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All imports below a node, and whether each is inside a function; bodies of ``if TYPE_CHECKING`` are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from statements(ast.Module(child.orelse, []), in_function=in_function)
        else:
            yield from statements(child, in_function=in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def imports(package: str, in_functions: bool) -> dict[str, set[str]]:
    """The files of the same package that each file imports."""
    known = files(package)

    def target(name: str) -> str | None:
        """The file that a dotted name belongs to: itself, or the module that defines it."""
        return name if name in known else name.rpartition(".")[0] if name.rpartition(".")[0] in known else None

    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for statement, in_function in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if in_function and not in_functions:
                continue
            prefix = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
            assert not (isinstance(statement, ast.ImportFrom) and statement.level), f"{name}: relative import"
            found[name] |= {at for alias in statement.names if (at := target(prefix + alias.name))} - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files that can all reach one another (strongly connected components of more than one file)."""

    @cache
    def reach(start: str) -> frozenset[str]:
        seen, left = set[str](), [start]
        while left:
            for other in graph[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return frozenset(seen)

    groups = {frozenset(other for other in reach(name) if name in reach(other)) for name in graph if name in reach(name)}
    return sorted(map(set, groups), key=min)


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    @cache
    def chain(name: str) -> tuple[str, ...]:
        return name, *max((chain(other) for other in graph[name]), key=len, default=())

    return list(max((chain(name) for name in graph), key=len))


def test_circles_and_chains_of_a_known_graph() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}, "e": {"a"}}
    assert circles(graph) == [{"b", "d"}]
    graph["d"] = {"c"}
    assert circles(graph) == []
    assert longest_chain(graph) == ["e", "a", "b", "d", "c"]


def test_imports_are_found_where_they_are() -> None:
    source = "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    from d import e\n"
    assert [(ast.unparse(s), lazy) for s, lazy in statements(ast.parse(source))] == [
        ("import a", False), ("import c", False), ("from d import e", True),
    ]  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES)
def test_files_do_not_import_in_circles(package: str) -> None:
    assert len(files(package)) > 10
    assert circles(imports(package, in_functions=True)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_chains_of_imports_are_short(package: str) -> None:
    chain = longest_chain(imports(package, in_functions=False))
    assert len(chain) <= LONGEST[package], " → ".join(chain)
