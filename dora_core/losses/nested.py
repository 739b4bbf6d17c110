"""A loss as a parameter of another loss."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, SerializeAsAny

from dora_core.losses.base import PreferenceLoss, parse_loss, registered_losses


class _AnyName:
    """JSON schema: a name and that loss's parameters. Not the list of all their schemas, which would contain itself."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        name = {"type": "string", "enum": list(registered_losses())}
        return {"title": "Loss", "type": "object", "properties": {"name": name}, "required": ["name"], "additionalProperties": True}


NestedLoss = Annotated[SerializeAsAny[PreferenceLoss], BeforeValidator(parse_loss), _AnyName()]
"""A registered loss with its own parameters, written like ``align.loss``."""


class LossOnBase(PreferenceLoss):
    """Base class of losses that change one loss on pairs; which ones they can is a validator of ``base``."""

    base: NestedLoss = Field(  # type: ignore[assignment]  # parsed: validate_default
        default={"name": "dpo"}, description="A loss on pairs and its parameters."
    )

    @property
    def nested(self) -> list[PreferenceLoss]:
        return [self.base]

    @property
    def reads_pairs_only(self) -> bool:
        return self.base.reads_pairs_only


def stands_alone(loss: PreferenceLoss) -> bool:
    """Whether ℓ needs nothing that alignment computes for its sake: only such a loss can be part of another."""
    return not (loss.estimates_noise or loss.matches_records or loss.reads_collisions or loss.needs_label_probability)
