"""A loss as a parameter of another loss."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, GetJsonSchemaHandler, SerializeAsAny

from dora_core.losses.base import PreferenceLoss, parse_loss, registered_losses


class _AnyName:
    """JSON schema: a name and that loss's parameters. Not the list of all their schemas, which would contain itself."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        name = {"type": "string", "enum": list(registered_losses())}
        return {"title": "Loss", "type": "object", "properties": {"name": name}, "required": ["name"], "additionalProperties": True}


NestedLoss = Annotated[SerializeAsAny[PreferenceLoss], BeforeValidator(parse_loss), _AnyName()]
"""A registered loss with its own parameters, written like ``align.loss``."""


def stands_alone(loss: PreferenceLoss) -> bool:
    """Whether ℓ needs nothing that alignment computes for its sake: only such a loss can be part of another."""
    return not (loss.estimates_noise or loss.matches_records or loss.reads_collisions or loss.needs_label_probability)
