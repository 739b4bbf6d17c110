"""Facts of the stage ``classify``: quality of every head on held-out prompts, and curves of the fits."""

from __future__ import annotations

from pydantic import Field

from dora_core.classifier.golden_share import GoldenShare
from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.spec import StageRef


class Reliability(StrictModel):
    """Reliability curve: one entry per non-empty bin of the predicted probability."""

    confidence: list[float] = Field(description="Mean prediction.")
    accuracy: list[float] = Field(description="Share of golden responses.")
    count: list[int]


class GivenPrompt(StrictModel):
    """How well a head's logits of the response given the prompt separate, over rows weighted such that prompts tell nothing."""

    auc: float | None
    auc_low: float | None = Field(description="95 % bootstrap interval over prompts.")
    auc_high: float | None
    auc_family_low: float | None = Field(description="Interval at the level of all heads together.")
    auc_family_high: float | None
    told_apart: bool = Field(description="The family-wise interval lies above ½.")


class HeadFacts(StrictModel):
    """Quality of one head, its source against golden, on held-out prompts (``dora_core/classifier/diagnostics.py``). Null: undefined."""

    n: int = Field(description="Responses of the source in the fit.")
    gamma: float = Field(description="Responses of the source per golden response.")
    auc: float | None
    auc_low: float | None = Field(description="95 % bootstrap interval over prompts.")
    auc_high: float | None
    auc_family_low: float | None = Field(description="Interval at the level of all heads together.")
    auc_family_high: float | None
    told_apart: bool = Field(description="The family-wise interval lies above ½.")
    within_prompt_auc: float | None = Field(description="Against golden responses to the same prompt.")
    log_loss: float | None
    ece: float | None = Field(description="Expected calibration error.")
    temperature: float | None
    prompt_only_auc: float | None = Field(description="Of a model that reads the prompt alone.")
    prompt_slope: float = Field(0.0, description="Shrinkage of that model's log-ratio; 0: the prompt tells nothing beyond noise.")
    given_prompt: GivenPrompt | None = Field(None, description="Without the prompt's part; absent before that was measured.")
    length_only_auc: float | None = Field(description="Of the response's length.")
    reliability: Reliability


class CurvePoint(StrictModel):
    """Losses of a fold at an optimisation step."""

    fold: int
    step: int
    loss: float
    validation_loss: float


class Facts(BaseFacts):
    """Facts of the stage ``classify``."""

    classifier: StageRef = Field(description="The stage output to score with: this one, or the one that is kept.")
    reused: bool
    reason: str = Field(description="Why the classifiers were fitted or kept.")
    seconds_fit: float
    sources: dict[str, HeadFacts]
    unlabelled: GoldenShare | None = Field(description="Golden share among unlabelled responses, at most; null without such responses.")
    deep_folds: int = Field(description="Folds whose encoder is used.")
    encoder: str = Field("", description="Whether the encoder was tried and is used, in words; empty in results of earlier releases.")
    curve: list[CurvePoint]
