"""Settings of alignment: a preference loss under a robust objective. Imports no torch.

The loss's parameters are a class of ``dora_core/losses``, the objective's are ``dora_core/objectives/settings.py``; both registries
include the user's plug-ins.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, SerializeAsAny

from dora_core.config.method import OptimizationConfig
from dora_core.losses.base import PreferenceLoss, parse_loss, registered_losses
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.strict_model import StrictModel


class _AnyLoss:
    """JSON schema of a loss: any registered one with its own parameters. Prefect's form displays it and its API enforces it."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # Resolved: a loss with others among its parameters would be a reference, which is no choice in the form.
        schemas = (handler.resolve_ref_schema(handler(loss.__pydantic_core_schema__)) for loss in registered_losses().values())
        return {"title": "Loss", "anyOf": list(schemas)}


Loss = Annotated[SerializeAsAny[PreferenceLoss], BeforeValidator(parse_loss), _AnyLoss()]


class AlignConfig(StrictModel):
    """Alignment: a preference loss under a robust objective."""

    loss: Loss = Field(  # type: ignore[assignment]  # parsed: validate_default
        default={"name": "dpo"}, description="A registered loss and its parameters, e.g. {name: dpo, beta: 0.1}."
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="The robust objective.")
    label_probability: Literal["use", "ignore"] = Field(
        "use",
        description="The records' probabilities that their labels are right (data.train[i].columns.label_probability): use: as soft "
        "labels, by losses on pairs; ignore: every label counts as certain.",
    )
    drop_hardest: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training records left out: those with the lowest label_probability (Selective DPO, arXiv 2502.09650). "
        "Unaffected by label_probability: ignore.",
    )
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig, description="Optimisation.")
    max_responses: int = Field(
        8,
        ge=2,
        le=64,
        description="Responses per record used in training; a longer list keeps the best, the worst and evenly spaced ranks.",
    )
