"""Settings of self-training rounds: what a round learns from, when it stops, and when new data is too strange.

A round is generate → judge → mix → classify → calibrate → reference → align → evaluate (``flows/planning/rounds.py``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dora_core.config.method import OptimizationConfig
from dora_core.strict_model import StrictModel

Strategy = Literal["align", "raft", "selfie"]


class MixConfig(StrictModel):
    """How a round's lists are made of samples, and how much of the given data stays beside them."""

    lists: Literal["full", "top_bottom", "best_of_k"] = Field(
        "full", description="full: all samples of a prompt by score; top_bottom: best against worst; best_of_k: best against another one."
    )
    given: Literal["all", "golden"] = Field(
        "all", description="Given records that may stay beside the lists. golden: those with a response of a golden source."
    )
    given_fraction: float = Field(
        0.5, ge=0, lt=1, description="Share of the round's records that are given ones; where they are too few, lists are left out."
    )
    earlier_rounds: bool = Field(False, description="Keep the lists of earlier rounds too; false: those of this round alone.")
    min_score_gap: float = Field(0.0, ge=0, description="Drop a prompt whose best and worst score are not further apart than this.")
    seed: int = Field(0, ge=0, description="Which given records and which opponents are drawn.")


class GuardConfig(StrictModel):
    """When a round must stop. Each rule that is broken is named with its figure; null switches a rule off."""

    max_source_regression: float | None = Field(
        0.1,
        ge=0,
        le=1,
        description="Held-out ranking accuracy of the worst source may fall by at most this against the round before; what counts is the "
        "lower 95 % bound of the fall.",
    )
    min_source_prompts: int = Field(20, ge=1, description="Sources with fewer held-out prompts are not judged for it.")
    max_kl: float | None = Field(
        15.0,
        gt=0,
        description="KL(policy‖start of round 0) per response, nats, at most. It grows with the length of responses: on the known mixture "
        "(50 tokens) a learned judge was exploited at 20; a thousand tokens want more.",
    )
    min_distinct: float | None = Field(0.2, ge=0, le=1, description="Distinct bigrams of the samples against those of round 1, at least.")
    max_self_bleu: float | None = Field(0.95, ge=0, le=1, description="Self-BLEU of a prompt's samples, at most: 1 = all the same.")
    max_one_answer: float | None = Field(
        0.5, ge=0, le=1, description="Prompts whose most common sample is the most common one of all prompts, at most."
    )
    min_golden_share: float | None = Field(0.05, ge=0, le=1, description="Golden responses in the round's mixture, at least.")
    min_ess: float | None = Field(0.2, gt=0, le=1, description="Effective sample size of h, as a fraction, at least.")


class RoundsConfig(StrictModel):
    """Self-training: how many rounds, who writes, who labels, what is learned."""

    rounds: int = Field(3, ge=1, le=100, description="Rounds after the first alignment on the given data, which is round 0.")
    strategy: Strategy = Field(
        "align",
        description="align: preference alignment on lists labelled by `judge`; raft: supervised on each prompt's best sample (Dong et al. "
        "2023); selfie: as align, labelled by the policy's own implicit reward.",
    )
    prompts: int | None = Field(None, ge=1, description="Train prompts sampled per round, other ones each round; null = all.")
    optimization: OptimizationConfig | None = Field(
        None,
        description="Optimisation of a round; null = align.optimization. Samples labelled by a learned judge want smaller steps than given "
        "data: what is learned beyond the judge's accuracy is its errors.",
    )
    mix: MixConfig = Field(default_factory=MixConfig, description="From samples to training records.")
    guard: GuardConfig = Field(default_factory=GuardConfig, description="When to stop.")


class DriftConfig(StrictModel):
    """How far new data may move from the last run's before the classifiers are refitted, and before the run is refused.

    Every `refit_…` threshold lies below its `refuse_…`; null switches a rule off. All but growth apply to the distance beyond what samples
    of that size differ by chance (99 %).
    """

    refit_growth: float | None = Field(
        0.25, ge=0, description="Refit when the responses that are new since the fit exceed this share of those fitted."
    )
    refit_auc_drop: float | None = Field(0.05, ge=0, le=0.5, description="Refit when the AUC of a source falls by more on new rows.")
    refuse_auc_drop: float | None = Field(None, ge=0, le=0.5, description="Refuse when it falls by more than this.")
    refit_share_shift: float | None = Field(
        0.15, ge=0, le=1, description="Refit when the mixture's shares moved by more (total variation: ½ Σ |new − old|)."
    )
    refuse_share_shift: float | None = Field(0.6, ge=0, le=1, description="Refuse when they moved by more than this.")
    refit_h_shift: float | None = Field(
        0.2,
        ge=0,
        le=1,
        description="Refit when a source's h under the old classifiers is distributed otherwise on new rows by more "
        "(Kolmogorov-Smirnov distance).",
    )
    refit_length_shift: float | None = Field(
        0.3,
        ge=0,
        le=1,
        description="Refit when a source's new rows differ in length from its earlier ones by more (Kolmogorov-Smirnov distance).",
    )
    refuse_length_shift: float | None = Field(0.8, ge=0, le=1, description="Refuse when they differ by more than this.")

    @model_validator(mode="after")
    def _check(self) -> DriftConfig:
        for name in ("auc_drop", "share_shift", "length_shift"):
            refit, refuse = getattr(self, f"refit_{name}"), getattr(self, f"refuse_{name}")
            if refit is not None and refuse is not None and refuse < refit:
                raise ValueError(f"refuse_{name}={refuse} must not be below refit_{name}={refit}: a run would be refused before refitting")
        return self
