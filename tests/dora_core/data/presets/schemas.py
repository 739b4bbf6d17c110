"""Generated schemas by the module that defines their preset."""

from __future__ import annotations

from types import ModuleType

from dora_core.data.presets import registered_presets
from tests.dora_core.data import hub_cases  # noqa: F401  # registers its cases
from tests.dora_core.data.cases import CASES


def presets_of(module: ModuleType) -> set[str]:
    """Names of the presets that a module defines."""
    return {name for name, preset in registered_presets().items() if preset.__module__ == module.__name__}


def schemas_of(module: ModuleType) -> list[str]:
    """Names of the cases that a preset of the module reads."""
    return [name for name, make in CASES.items() if make().preset in presets_of(module)]
