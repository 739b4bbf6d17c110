"""Descriptors of shapes: every shape of the configuration is found, and its fields exist there."""

from __future__ import annotations

import sys
from typing import get_args

import pytest

from dora_core.config.adapter import LABELS_OF_SHAPE, AdapterColumns, Shape
from dora_core.data.adapter.shapes import base
from dora_core.data.adapter.shapes.base import RowShape, shapes


def test_every_shape_of_the_configuration_has_a_descriptor() -> None:
    assert shapes().keys() == {*get_args(Shape), "mixed"}, "mixed is decided by the columns alone"


@pytest.mark.parametrize("name", sorted(shapes()))
def test_fields_are_those_of_the_configuration(name: str) -> None:
    shape = shapes()[name]
    assert set(shape.fields) <= AdapterColumns.model_fields.keys() and set(shape.needed) <= set(shape.fields)
    assert shape.two is None or set(shape.two) <= set(shape.fields)
    assert not shape.label_example or LABELS_OF_SHAPE[name], "a shape that needs a label can have one"


@pytest.mark.parametrize("shape", [None, RowShape("other", by_row=shapes()["pair"].by_row), RowShape("pair")])
def test_a_file_without_a_whole_descriptor_is_refused(shape: RowShape | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["dora_core.data.adapter.shapes.pair"], "SHAPE", shape)
    base.shapes.cache_clear()
    try:
        with pytest.raises(TypeError, match=r"shapes\.pair does not end with SHAPE = RowShape\('pair'"):
            shapes()
    finally:
        base.shapes.cache_clear()
