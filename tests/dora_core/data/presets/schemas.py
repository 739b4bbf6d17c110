"""Every generated schema by the module that defines its preset, read in each way, for the tests of these modules."""

from __future__ import annotations

from types import ModuleType

import pytest

from dora_core.data.presets import registered_presets
from tests.dora_core.data import hub_cases  # noqa: F401  # registers its cases
from tests.dora_core.data.adapter.reading import assert_case, assert_expansion, assert_named
from tests.dora_core.data.cases import CASES

READINGS = {"by recognition": assert_case, "by name": assert_named, "written out in full": assert_expansion}


def presets_of(module: ModuleType) -> set[str]:
    """Names of the presets that a module defines."""
    return {name for name, preset in registered_presets().items() if preset.__module__ == module.__name__}


def schemas_of(module: ModuleType) -> list[str]:
    """Names of the cases that a preset of the module reads."""
    return [name for name, make in CASES.items() if make().preset in presets_of(module)]


def every_reading(module: ModuleType) -> pytest.MarkDecorator:
    """Parametrise a test with ``read`` and ``schema``: each schema of the module's presets, read in each way."""
    readings = [pytest.param(read, name, id=f"{name} {way}") for name in schemas_of(module) for way, read in READINGS.items()]
    return pytest.mark.parametrize(("read", "schema"), readings)


def assert_covered(module: ModuleType, *, golden: bool) -> None:
    """Each preset of the module has a schema, and is for trusted responses (``golden``) or for preferences."""
    assert {CASES[name]().preset for name in schemas_of(module)} == presets_of(module)
    assert {registered_presets()[name].golden for name in presets_of(module)} == {golden}
