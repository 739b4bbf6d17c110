"""Presets of one response per row: every generated schema is read right by recognition, by name, and written out in full."""

from __future__ import annotations

from dora_core.data.presets import single_rows
from tests.dora_core.data.cases import CASES
from tests.dora_core.data.presets.schemas import assert_covered, every_reading


@every_reading(single_rows)
def test_schema_is_read_right(read, schema):
    read(CASES[schema]())


def test_every_preset_of_the_file_has_a_schema():
    assert_covered(single_rows, golden=False)
