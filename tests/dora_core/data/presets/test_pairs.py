"""Presets of pairs: every generated schema is read right by recognition, by name, and written out in full."""

from __future__ import annotations

import pytest

from dora_core.data.presets import pairs, registered_presets
from tests.dora_core.data.adapter.reading import assert_case, assert_expansion, assert_named
from tests.dora_core.data.cases import CASES
from tests.dora_core.data.presets.schemas import presets_of, schemas_of

SCHEMAS = schemas_of(pairs)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_read_right_by_recognition(name):
    assert_case(CASES[name]())


@pytest.mark.parametrize("name", SCHEMAS)
def test_expansion_reads_the_same_without_its_preset(name):
    assert_expansion(CASES[name]())


@pytest.mark.parametrize("name", SCHEMAS)
def test_preset_by_name_equals_recognition(name):
    assert_named(CASES[name]())


def test_every_preset_of_the_file_has_a_schema():
    assert {CASES[name]().preset for name in SCHEMAS} == presets_of(pairs)
    assert {registered_presets()[name].golden for name in presets_of(pairs)} == {False}
