"""Twins: their descriptors, and the key of the configuration that names them."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from dora_core.config.method import EvaluateConfig
from dora_core.config.twins import TWINS, TwinName


def test_every_name_has_a_descriptor() -> None:
    assert tuple(TWINS) == get_args(TwinName)
    assert len({twin.title for twin in TWINS.values()}) == len(TWINS)
    assert TWINS["erm"].records == "all" and TWINS["golden_only"].equal == "steps" and TWINS["golden_only_epochs"].equal == "epochs"


def test_the_order_of_the_names_is_not_part_of_a_result() -> None:
    assert EvaluateConfig(twins=["golden_only", "erm"]) == EvaluateConfig(twins=["erm", "golden_only"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"erm_twin": True}, r"write instead: twins: \[erm, golden_only, golden_only_epochs\]"),
        ({"erm_twin": False}, r"write instead: twins: \[\]"),
        ({"twins": ["erm", "erm"]}, "names a twin twice"),
        ({"twins": ["golden"]}, "golden_only"),
    ],
)
def test_other_keys_and_names_are_refused_with_the_ones_to_write(given: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig.model_validate(given)
