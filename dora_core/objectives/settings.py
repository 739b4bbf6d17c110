"""Settings of the robust objective: its name, λ, and the scope of its normaliser. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, GetJsonSchemaHandler, model_validator

from dora_core.objectives.base import OBJECTIVES, find_objective
from dora_core.plugins import load_plugins
from dora_core.strict_model import StrictModel


def _known_objective(name: str) -> str:
    return find_objective(name).name


class _AnyObjective:
    """JSON schema of an objective's name: one of those registered."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        load_plugins()
        return {"type": "string", "enum": list(OBJECTIVES)}


class LambdaSchedule(StrictModel):
    """λ as a function of training progress, from ``start`` at the first step to ``end`` at the last."""

    start: float = Field(gt=0, description="λ at the first optimisation step.")
    end: float = Field(gt=0, description="λ at the last optimisation step.")
    shape: Literal["linear", "log"] = Field("log", description="linear in λ, or in log λ.")


class ObjectiveConfig(StrictModel):
    """How the losses ℓ and factors h of one optimisation step become one number, arXiv 2504.05831."""

    name: Annotated[str, AfterValidator(_known_objective), _AnyObjective()] = Field("dora", description="A registered robust objective.")
    lam: Annotated[float, Field(gt=0)] | LambdaSchedule | Literal["auto"] = Field(
        "auto",
        alias="lambda",
        description="λ of the log-mean-exp (β′ for dr_dpo, τ for kldpo), in units of h·ℓ: a number, a schedule {start, end, shape}, "
        "or auto: the smallest λ that keeps the effective sample size of the weights at ess_target (the paper has 1). Unused by erm and "
        "reweight.",
    )
    ess_target: float = Field(
        0.9, gt=0, lt=1, description="lambda auto: effective sample size of the step's weights as a fraction of that at λ = ∞."
    )
    scope: Literal["global", "rank", "micro"] = Field(
        "global", description="global: exact over the whole step; rank, micro: what other code bases do."
    )

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        if self.lam == "auto" and self.scope != "global" and find_objective(self.name).uses_lambda:
            raise ValueError(f"lambda auto needs scope global, got {self.scope}: give lambda a number, or leave scope at global")
        if self.scope != "global" and find_objective(self.name).looks_ahead:
            raise ValueError(f"{self.name} needs scope global, got {self.scope}: its weights are relative to the whole step")
        return self
