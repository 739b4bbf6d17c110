"""``tests/FAULTS.md`` against the list of faults and the marks in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import FAULTS, PAGE, marked, page


def test_the_page_is_generated_from_the_marks() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.faults"


def test_every_fault_is_made_by_a_test() -> None:
    tests = marked()
    assert [fault.number for fault in FAULTS] == list(range(1, 37)), "marks and reports name faults by these numbers"
    assert all(tests.values()), f"no test makes {[number for number in tests if not tests[number]]}"


def test_marks_of_functions_decorators_and_modules_count_and_unknown_ones_are_errors(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "test_a.py").write_text(
        "pytestmark = [pytest.mark.component, pytest.mark.fault(1)]\n"
        "@pytest.mark.fault(2, 3)\ndef test_x(): ...\n"
        "@pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.fault(4))])\ndef test_y(n): ...\n"
        "@pytest.mark.fault(5)\ndef helper(): ...\n"
    )
    found = {number: tests for number, tests in marked(tmp_path).items() if tests}
    x, y = "room/test_a.py::test_x", "room/test_a.py::test_y"
    assert found == {1: {x, y}, 2: {x}, 3: {x}, 4: {y}}
    (tmp_path / "test_b.py").write_text("@pytest.mark.fault(99)\ndef test_z(): ...\n")
    with pytest.raises(KeyError, match="99"):
        marked(tmp_path)
