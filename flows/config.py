"""The one configuration of a realignment, as a YAML file, a Prefect parameter or ``--set a.b=v``.

Sections are the method's own models (``dora_core/config.py``); only the project, promotion and where things run are added
here. Left out: addresses of servers and the store, which are settings of the place, not of the run (``infra/settings.py``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dora_core.config import (
    NAME_PATTERN,
    AlignConfig,
    CalibrationConfig,
    ClassifierConfig,
    DataConfig,
    EvaluateConfig,
    Execution,
    GateConfig,
    ModelConfig,
    SftConfig,
    StrictModel,
    TextConfig,
)


class PromotionConfig(StrictModel):
    """Whether an aligned model that passes the gate becomes the champion."""

    mode: Literal["auto", "never"] = Field("auto", description="auto: promote when the gate passes; never: register as challenger only.")
    model_name: str | None = Field(None, pattern=NAME_PATTERN, description="Name in the MLflow model registry; null = the project's name.")


class ExecutionConfig(StrictModel):
    """Where and how wide each stage runs; a stage without its own section uses `default`. Never part of a digest."""

    default: Execution = Field(default_factory=Execution, description="For every stage without a section of its own.")
    classify: Execution | None = Field(None, description="Fitting the source classifiers.")
    calibrate: Execution | None = Field(None, description="Scoring responses with the classifiers.")
    sft: Execution | None = Field(None, description="Supervised start.")
    reference: Execution | None = Field(None, description="Reference log-probabilities.")
    align: Execution | None = Field(None, description="Alignment.")
    evaluate: Execution | None = Field(None, description="Evaluation.")

    def of(self, stage: str) -> Execution:
        return getattr(self, stage, None) or self.default


class RealignConfig(StrictModel):
    """Everything one realignment computes. Every key has a default except `data`."""

    project: str = Field("default", pattern=NAME_PATTERN, description="Name of the MLflow experiment and of the run history.")
    data: DataConfig = Field(description="Preference data.")
    text: TextConfig = Field(default_factory=TextConfig, description="Template and truncation.")
    policy: ModelConfig = Field(default_factory=ModelConfig, description="The model to align.")
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig, description="Source classifiers.")
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig, description="Calibration factors.")
    sft: SftConfig = Field(default_factory=SftConfig, description="Supervised start.")
    align: AlignConfig = Field(default_factory=AlignConfig, description="Alignment.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Evaluation.")
    gate: GateConfig = Field(default_factory=GateConfig, description="Promotion gate.")
    promotion: PromotionConfig = Field(default_factory=PromotionConfig, description="Promotion.")
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig, description="Resources per stage.")

    @model_validator(mode="after")
    def _check(self) -> RealignConfig:
        if self.policy.is_tiny and not self.sft.enabled:
            raise ValueError("policy.source=tiny has random weights and needs a supervised start: set sft.enabled=true or name a model")
        return self

    @property
    def model_name(self) -> str:
        return self.promotion.model_name or self.project

    @property
    def needs_calibration(self) -> bool:
        """erm, dro and dr_dpo never look at h, so nothing is scored for them."""
        return self.align.objective.name in {"reweight", "dora", "dora_outer", "dora_tilted"}
