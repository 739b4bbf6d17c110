"""A loss among the parameters of another: its schema does not contain itself, and some losses cannot be there."""

from __future__ import annotations

from dora_core.losses import LOSSES, parse_loss
from dora_core.losses.nested import stands_alone


def test_the_schema_of_a_nested_loss_is_a_name_and_its_parameters() -> None:
    base = LOSSES["lcpo"].model_json_schema()["properties"]["base"]
    assert base["properties"]["name"]["enum"] == sorted(LOSSES) and base["additionalProperties"]


def test_losses_that_need_more_than_a_record_do_not_stand_alone() -> None:
    assert {name for name in LOSSES if not stands_alone(parse_loss(name))} == {"lcpo", "wpo", "aot", "dpo_pro"}
