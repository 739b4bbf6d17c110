"""``tests/FAULTS.md`` against the tests: every fault has its line, and every test that makes one is named there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.faults import FAULTS

TESTS = Path(__file__).parent
LINE = re.compile(r"^(\d+)\. ")
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def listed() -> dict[int, set[tuple[str, str]]]:
    """``{fault: {(module, test)}}`` of the page."""
    found: dict[int, set[tuple[str, str]]] = {}
    for line in (TESTS / "FAULTS.md").read_text(encoding="utf-8").splitlines():
        if match := LINE.match(line):
            found.setdefault(int(match[1]), set()).update(TEST.findall(line))
    return found


def marked() -> dict[int, set[tuple[str, str]]]:
    """The same of the marks in the tests."""
    found: dict[int, set[tuple[str, str]]] = {fault: set() for fault in FAULTS}
    for file in TESTS.rglob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        of_all = [fault for statement in tree.body if _sets_marks(statement) for fault in _faults(statement)]
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                for fault in [*of_all, *(fault for decorator in function.decorator_list for fault in _faults(decorator))]:
                    found[fault].add((file.name, function.name))
    return found


def _sets_marks(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in statement.targets)


def _faults(node: ast.AST) -> list[int]:
    marks = (n for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "fault")
    return [argument.value for mark in marks for argument in mark.args if isinstance(argument, ast.Constant)]


def test_the_page_names_every_fault_and_the_tests_that_make_it() -> None:
    page, tests = listed(), marked()
    assert sorted(page) == list(FAULTS)
    assert all(tests.values()), f"no test makes {[fault for fault in FAULTS if not tests[fault]]}"
    assert page == tests
