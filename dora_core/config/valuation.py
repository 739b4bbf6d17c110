"""Settings of the stage ``value``: trust in labels, and what a source's labels are worth in golden ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dora_core.strict_model import StrictModel

FeatureKind = Literal["text", "policy", "both"]


class TrustConfig(StrictModel):
    """Probability that a label is the one people would give, per source and per record (``dora_core/selection/label_trust.py``)."""

    method: Literal["auto", "overlap", "em", "reward_model", "off"] = Field(
        "auto",
        description="overlap: pairs that people and the source both labelled; reward_model: a model of golden labels; em: all labels among "
        "themselves; auto: the first of these that the data allow (overlap, reward_model, em); off: no trust.",
    )
    apply: Literal["off", "soft_label", "weight"] = Field(
        "off", description="Use in alignment. soft_label: the loss's label probability; weight: the record's h is multiplied by it."
    )
    labeller: str | None = Field(
        None,
        min_length=1,
        description="Carried column (data.train[].carry) that names a label's annotator or judge; golden are those of data.golden_sources. "
        "Null: the source of the responses.",
    )
    min_overlap: int = Field(50, ge=2, description="auto: least number of prompts with labels of both for the method overlap.")
    min_golden: int = Field(50, ge=2, description="auto: least number of golden-labelled prompts for the method reward_model.")

    @model_validator(mode="after")
    def _check(self) -> TrustConfig:
        if self.method == "off" and self.apply != "off":
            raise ValueError(f"apply={self.apply} needs an estimate: set method to auto, or apply to off")
        return self


class ExchangeConfig(StrictModel):
    """Exchange rate of every source's labels in golden ones (``dora_core/selection/exchange.py``)."""

    enabled: bool = Field(False, description="Estimate exchange rates; the result is a report, not a change of the training.")
    max_labels: int = Field(3000, ge=100, le=20_000, description="Labels per source that are used, chosen by hash of the prompt.")
    max_sources: int = Field(8, ge=1, le=32, description="Sources with a rate of their own, by number of labels; the rest is pooled.")
    few_prompts: int = Field(100, ge=0, description="With fewer golden prompts the smallest rate within one standard error is chosen.")
    folds: int = Field(5, ge=2, le=20, description="Cross-fitting folds; a prompt's fold is a hash of the prompt.")
    buckets: int = Field(256, ge=16, le=448, description="Hashed n-gram features beside the text statistics.")
    features: FeatureKind = Field(
        "text",
        exclude_if=lambda features: features == "text",
        description="Features of the proxy. text: n-grams and statistics, no model is loaded; policy: log-probabilities and mean hidden "
        "state of the policy before alignment; both.",
    )
    bootstrap_samples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples, over golden prompts.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals, those of trust included.")
    seed: int = Field(0, ge=0, description="Seed of samples of labels and of the bootstrap.")


class RaceConfig(StrictModel):
    """Race of ``objective: auto`` (``dora_core/selection/race.py``); samples, folds and features are those of ``exchange``."""

    objectives: list[str] = Field(
        default_factory=lambda: ["dora", "dora_tilted"], description="Robust objectives that run beside the weightings; may be empty."
    )
    seed: int = Field(0, ge=0, description="Seed of the Bayesian bootstrap.")
    by: Literal["proxy", "training"] = Field(
        "proxy",
        exclude_if=lambda by: by == "proxy",
        description="proxy: its choice is trained; training: its choice and the other finalists are trained for a while, as `tune` says, "
        "and the one whose policy orders held-out golden preferences best is trained in full.",
    )
    finalists: int = Field(
        4,
        ge=2,
        le=4,
        exclude_if=lambda finalists: finalists == 4,
        description="by training: the first so many of: the proxy's choice, the best of the other kind, golden only, erm.",
    )
    minutes: float | None = Field(
        None, gt=0, exclude_if=lambda minutes: minutes is None, description="by training: budget of the trials together; null = no limit."
    )
