"""Every schema of ``tests/dora_core/data/cases.py`` is read as its truth says: with the preset recognised, by name, and written out in
full."""

from __future__ import annotations

import pytest
import yaml

from dora_core.config.adapter import Adapter
from tests.dora_core.data.adapter.reading import assert_case
from tests.dora_core.data.cases import CASES, Case


@pytest.mark.parametrize("name", CASES)
def test_schema_is_read_right_by_recognition(name):
    assert_case(CASES[name]())


@pytest.mark.parametrize("name", CASES)
def test_expansion_reads_the_same_without_its_preset(name):
    case = CASES[name]()
    resolved = assert_case(case).resolved
    written = yaml.safe_load(resolved.text)
    assert Adapter.model_validate({**written, "preset": "none"}) == resolved.adapter
    assert_case(Case(case.name, case.rows, case.truth, None, {**written, "preset": "none"}, case.golden))


@pytest.mark.parametrize("name", [name for name, make in CASES.items() if make().preset is not None])
def test_preset_by_name_equals_recognition(name):
    case = CASES[name]()
    found = assert_case(case).resolved
    named = assert_case(Case(case.name, case.rows, case.truth, case.preset, {**case.adapter, "preset": case.preset}, case.golden)).resolved
    assert named.adapter == found.adapter and found.recognised and not named.recognised
