"""Every module has its test file in the mirrored folder: the tests of ``<folder>/<name>.py`` are in ``tests/<folder>/test_<name>.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dora_core", "tasks", "flows", "infra")
NOT_TESTED_ALONE = {"__init__.py", "__main__.py"}
"""Packages re-export, and programs start what other modules define."""
EXCEPTIONS: dict[str, str] = {}
"""Module → reason why it has no test file of its own."""
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name not in NOT_TESTED_ALONE
)


def mirror_of(module: str) -> Path:
    path = Path(module)
    return Path("tests") / path.parent / f"test_{path.stem.lstrip('_')}.py"


def test_modules_are_found_and_mirrored_by_name() -> None:
    assert len(MODULES) > 200 and {module.partition("/")[0] for module in MODULES} == set(PACKAGES)
    assert mirror_of("infra/store/locks.py") == Path("tests/infra/store/test_locks.py")
    assert mirror_of("tasks/stages/_mix.py") == Path("tests/tasks/stages/test_mix.py")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_test_file(module: str) -> None:
    file = ROOT / mirror_of(module)
    if module in EXCEPTIONS:
        assert not file.exists(), f"{module} has a test file: take it out of EXCEPTIONS"
        return
    assert file.exists(), f"{module} has no tests: write {mirror_of(module)}"
    assert "def test_" in file.read_text(encoding="utf-8"), f"{mirror_of(module)} has no test"


def test_two_modules_do_not_share_a_test_file() -> None:
    mirrors = [mirror_of(module) for module in MODULES]
    assert {str(mirror) for mirror in mirrors if mirrors.count(mirror) > 1} == set()


def test_exceptions_are_modules_with_a_reason() -> None:
    assert EXCEPTIONS.keys() <= set(MODULES) and all(EXCEPTIONS.values())
