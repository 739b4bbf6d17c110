"""Canonical fields: the path that is mapped, else the column of that name, unless the name may mean something else."""

from __future__ import annotations

import pytest

from dora_core.config.adapter import Adapter
from dora_core.data.adapter.fields import Fields


@pytest.mark.parametrize(
    ("columns", "name", "text"),
    [
        ({}, "prompt", "prompt"),
        ({"prompt": "q.text"}, "prompt", "q.text"),
        ({"prompt": False}, "prompt", None),
        ({}, "chosen", None),
        ({}, "weight", None),
        ({"weight": "weight"}, "weight", "weight"),
    ],
)
def test_path_of_a_field(columns: dict[str, object], name: str, text: str | None) -> None:
    fields = Fields(Adapter.model_validate({"columns": columns}), ["prompt", "q", "weight"])
    path = fields.path(name)
    assert (path.text if path else None) == text
    assert fields.needed(name).text == (text or name)


def test_a_column_with_the_text_of_a_path_is_taken_whole() -> None:
    assert Fields(Adapter(), ["info.post"]).compile("info.post").get({"info.post": "x"}) == "x"
