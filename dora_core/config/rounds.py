"""Settings of self-training rounds: training data of a round, guard rails, and limits of drift in new data.

A round is generate → judge → mix → classify → calibrate → reference → align → evaluate (``flows/planning/rounds.py``).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dora_core.config.method import OptimizationConfig
from dora_core.strict_model import StrictModel

Strategy = Literal["align", "raft", "selfie"]


class MixConfig(StrictModel):
    """Construction of a round's lists from samples, and the share of given data kept beside them."""

    lists: Literal["full", "top_bottom", "best_of_k"] = Field(
        "full",
        description="full: all samples of a prompt by score; top_bottom: best against worst; best_of_k: best against a random one.",
    )
    given: Literal["all", "golden"] = Field(
        "all", description="Given records that may stay beside the lists. golden: those with a response of a golden source."
    )
    given_fraction: float = Field(
        0.5, ge=0, lt=1, description="Share of given records among the records of a round; with too few of them, lists are left out."
    )
    earlier_rounds: bool = Field(False, description="Keep the lists of earlier rounds too; false: only those of this round.")
    min_score_gap: float = Field(0.0, ge=0, description="Drop a prompt if its best and worst score differ by no more than this.")
    seed: int = Field(0, ge=0, description="Seed of the choice of given records and opponents.")
    vote_prior: float | None = Field(
        None,
        ge=0,
        le=1000,
        exclude_if=lambda prior: prior is None,
        description="Soft labels from verdicts of a language model that compares samples with each other: a list's label_probability is "
        "(v + prior)/(n + 2·prior), v of n verdicts on its best against its worst sample being for the best. null: labels are certain.",
    )


class GuardConfig(StrictModel):
    """Guard rails of a round. A violated rule stops the run and is named with its number; null disables a rule."""

    max_source_regression: float | None = Field(
        0.1,
        ge=0,
        le=1,
        description="Held-out ranking accuracy of the worst source may fall by at most this against the previous round; compared with the "
        "lower 95 % bound of the fall.",
    )
    min_source_prompts: int = Field(20, ge=1, description="Sources with fewer held-out prompts are exempt from this rule.")
    max_kl: float | None = Field(
        15.0,
        gt=0,
        description="Maximum of KL(policy‖start of round 0) per response, nats. It grows with response length: on the known mixture "
        "(50 tokens) a learned judge was exploited at 20; responses of a thousand tokens need a larger value.",
    )
    min_distinct: float | None = Field(0.2, ge=0, le=1, description="Minimum of the distinct bigrams of the samples, relative to round 1.")
    max_self_bleu: float | None = Field(0.95, ge=0, le=1, description="Maximum of the self-BLEU of a prompt's samples: 1 = all the same.")
    max_one_answer: float | None = Field(0.5, ge=0, le=1, description="Maximum share of prompts that have the same most common sample.")
    min_golden_share: float | None = Field(0.05, ge=0, le=1, description="Minimum share of golden responses in the round's mixture.")
    min_ess: float | None = Field(0.2, gt=0, le=1, description="Minimum effective sample size of h, as a fraction.")


class RoundsConfig(StrictModel):
    """Self-training: number of rounds, sampling, labelling, training data, guard rails."""

    rounds: int = Field(3, ge=1, le=100, description="Rounds after the first alignment on the given data, which is round 0.")
    strategy: Strategy = Field(
        "align",
        description="align: preference alignment on lists labelled by `judge`; raft: supervised on each prompt's best sample (Dong et al. "
        "2023); selfie: as align, labelled by the policy's own implicit reward.",
    )
    prompts: int | None = Field(None, ge=1, description="Train prompts sampled per round, different ones in each round; null = all.")
    optimization: OptimizationConfig | None = Field(
        None,
        description="Optimisation of a round; null = align.optimization. Samples labelled by a learned judge need smaller steps than given "
        "data: beyond the judge's accuracy the policy learns its errors.",
    )
    mix: MixConfig = Field(default_factory=MixConfig, description="From samples to training records.")
    guard: GuardConfig = Field(default_factory=GuardConfig, description="Guard rails.")


class DriftConfig(StrictModel):
    """Limits of drift against the data of the last run: classifiers are refitted beyond the first, the run is refused beyond the second.

    Every `refit_…` threshold lies below its `refuse_…`; null disables a rule. All but growth apply to the distance in excess of the
    difference by chance between samples of that size (99 %).
    """

    refit_growth: float | None = Field(
        0.25, ge=0, description="Refit when the number of new responses since the fit exceeds this share of the fitted ones."
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
        description="Refit when the distribution of a source's h under the old classifiers differs by more on new rows "
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
