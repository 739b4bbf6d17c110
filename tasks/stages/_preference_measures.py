"""Measures of the ``evaluate`` stage on held-out preference pairs and labelled responses, from scores of policy, start and twins.

Accuracy and margin read the implicit reward log π − log π_start, which is identically 0 for the start; ranking reads the likelihood per
token, which all models have. Every number has a bootstrap interval over prompts; lifts are paired differences.

Without a pair (unpaired records of which no prompt has both labels) the measures of pairs are missing: ``parts``, groups and ``lift`` are
empty, ``reward_calibration`` is null. Without labelled responses ``labels`` is missing.

Shape legend: P preference pairs, N responses, L labelled responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dora_core.config.method import EvaluateConfig
from dora_core.evaluation.groups import RowGroups
from dora_core.evaluation.labels import label_accuracy, label_auc
from dora_core.evaluation.metrics import (
    Interval,
    Pairs,
    cluster_bootstrap,
    correct,
    padded,
    paired_difference,
    reward_calibration,
    reward_confidence,
    spearman_within,
    worst_group,
)
from tasks.stages._evaluate_facts import (
    ByModel,
    CarriedGroups,
    Group,
    LabelMeasures,
    Lift,
    MarginHistogram,
    Part,
    PreferenceMeasures,
    RewardCalibration,
    RewardCorrelation,
)

Scores = dict[str, np.ndarray]
HISTOGRAM_BINS = 30


@dataclass(frozen=True)
class Labelled:
    """Held-out labelled responses.

    Attributes:
        response_L: flat position among all responses.
        desirable_L: the label.
        prompt_L: hash of each response's prompt.
        pairs: pairs that they make with each other.
    """

    response_L: np.ndarray
    desirable_L: np.ndarray
    prompt_L: np.ndarray
    pairs: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs and the scores of every model on them.

    Attributes:
        implicit_N: log π − log π_start per response, of policy and twins.
        likelihood_N: log-likelihood per token and response, of policy, twins and start.
        prompt_P: hash of each pair's prompt.
        golden_P: whether a trusted response takes part in the pair.
        groups: group of each pair by grouping; None where it has none.
        columns: groups of the records by carried column.
        labelled: None without unpaired records.
    """

    pairs: Pairs
    implicit_N: Scores
    likelihood_N: Scores
    prompt_P: np.ndarray
    golden_P: np.ndarray
    groups: Mapping[str, np.ndarray]
    evaluate: EvaluateConfig
    labelled: Labelled | None = None
    columns: Mapping[str, RowGroups] = field(default_factory=dict)

    @property
    def margins(self) -> Scores:
        return {name: lr[self.pairs.winner_P] - lr[self.pairs.loser_P] for name, lr in self.implicit_N.items()}

    @property
    def rankings(self) -> Scores:
        return {name: lp[self.pairs.winner_P] - lp[self.pairs.loser_P] for name, lp in self.likelihood_N.items()}

    @property
    def parts(self) -> Scores:
        """Masks of the parts that have pairs."""
        masks = {"all": np.ones(len(self.golden_P), dtype=bool), "golden": self.golden_P, "synthetic": ~self.golden_P}
        return {name: mask for name, mask in masks.items() if mask.any()}

    def mean(self, values_P: np.ndarray, mask: np.ndarray) -> Interval:
        return cluster_bootstrap(values_P[mask], self.prompt_P[mask], *_bootstrap(self.evaluate))


def measure(held_out: HeldOut, beta: float, kl: Interval | None, correlation: RewardCorrelation) -> PreferenceMeasures:
    """Measure the held-out pairs.

    Args:
        beta: scale of the policy's implicit reward.
    """
    margins, tables, columns = held_out.margins, by_group(held_out), by_column(held_out)
    estimates = {by: {name: group.accuracy for name, group in table.items()} for by, table in tables.items()}
    for by, found_groups in columns.items():
        estimates[f"column {by}" if by in tables else by] = {name: group.accuracy for name, group in found_groups.groups.items()}
    found = None
    if len(held_out.prompt_P):
        calibration = reward_calibration(beta * margins["policy"], held_out.prompt_P, *_bootstrap(held_out.evaluate))
        found = RewardCalibration(beta=beta, **dict(calibration))
    more: dict[str, Any] = {} if held_out.labelled is None else {"labels": label_measures(held_out, held_out.labelled)}
    more |= {"by_column": columns} if columns else {}
    return PreferenceMeasures(
        parts=by_part(held_out),
        margins=margin_histogram(margins),
        reward_confidence=reward_confidence(margins["policy"], held_out.pairs.gap_P),
        by_source=tables["source"],
        by_task=tables["task"],
        worst_group=worst_group(estimates, held_out.evaluate.min_group),
        reward_calibration=found,
        reward_correlation=correlation,
        lift=lifts(held_out),
        kl=kl,
        **more,
    )


def label_measures(held_out: HeldOut, labelled: Labelled) -> LabelMeasures:
    """Measure the labelled responses."""
    options, desirable_L, prompt_L = _bootstrap(held_out.evaluate), labelled.desirable_L, labelled.prompt_L
    right = {name: label_accuracy(lr[labelled.response_L], desirable_L) for name, lr in held_out.implicit_N.items()}

    def share(mask_L: np.ndarray) -> ByModel | None:
        if not mask_L.any():
            return None
        return ByModel.of({name: cluster_bootstrap(values[mask_L], prompt_L[mask_L], *options) for name, values in right.items()})

    def auc(scores: Scores) -> ByModel | None:
        areas = {name: label_auc(score[labelled.response_L], desirable_L, prompt_L, *options) for name, score in scores.items()}
        defined = {name: area for name, area in areas.items() if area is not None}
        return ByModel.of(defined) if defined else None  # all or none: it depends on the labels

    whole = share(np.ones(len(desirable_L), dtype=bool))
    assert whole is not None, "there is a labelled response"
    return LabelMeasures(
        desirable=int(desirable_L.sum()),
        undesirable=int((~desirable_L).sum()),
        prompts=len(np.unique(prompt_L)),
        pairs=labelled.pairs,
        auc=auc(held_out.implicit_N),
        accuracy=whole,
        accuracy_desirable=share(desirable_L),
        accuracy_undesirable=share(~desirable_L),
        auc_likelihood=auc(held_out.likelihood_N),
    )


def by_part(held_out: HeldOut) -> dict[str, Part]:
    """Accuracy, margin and ranking of every part."""
    margins, rankings = held_out.margins, held_out.rankings
    return {
        part: Part(
            accuracy=ByModel.of({name: held_out.mean(correct(m), mask) for name, m in margins.items()}),
            margin=ByModel.of({name: held_out.mean(m, mask) for name, m in margins.items()}),
            ranking=ByModel.of({name: held_out.mean(correct(m), mask) for name, m in rankings.items()}),
        )
        for part, mask in held_out.parts.items()
    }


def margin_histogram(margins: Scores) -> MarginHistogram:
    if not len(margins["policy"]):
        return MarginHistogram(edges=[], policy=[], twins={name: [] for name in margins if name != "policy"})
    edges = np.histogram_bin_edges(np.concatenate(list(margins.values())), bins=HISTOGRAM_BINS)
    counts = {name: np.histogram(m, edges)[0].tolist() for name, m in margins.items()}
    return MarginHistogram(edges=edges.tolist(), policy=counts.pop("policy"), twins=counts)


def by_group(held_out: HeldOut) -> dict[str, dict[str, Group]]:
    """Measures by source of the better response and by task; pairs without one are left out."""
    return {by: _groups(held_out, names_P, sorted({*names_P} - {None})) for by, names_P in held_out.groups.items()}


def by_column(held_out: HeldOut) -> dict[str, CarriedGroups]:
    """Measures by the values of carried columns of the pair's record; a group without a pair is left out."""
    found = {}
    for column, groups in held_out.columns.items():
        name_P = groups.name_R[held_out.pairs.record_P]
        there = [name for name in groups.order if name in {*name_P}]
        without = sum(name is None for name in name_P)
        found[column] = CarriedGroups(groups=_groups(held_out, name_P, there), without=without, merged=groups.merged)
    return found


def _groups(held_out: HeldOut, name_P: np.ndarray, names: Sequence[str]) -> dict[str, Group]:
    margin_P, rankings = held_out.margins["policy"], held_out.rankings
    found = {}
    for name in names:
        mask = np.array(name_P == name, dtype=bool)
        found[name] = Group(
            accuracy=held_out.mean(correct(margin_P), mask),
            accuracy_policy=float(correct(margin_P[mask]).mean()),
            ranking_policy=float(correct(rankings["policy"][mask]).mean()),
            ranking_start=float(correct(rankings["start"][mask]).mean()),
            n=int(mask.sum()),
        )
    return found


def lifts(held_out: HeldOut) -> Lift:
    """Ranking of policy minus start on every part, accuracy of policy minus each twin overall."""
    margins, rankings, prompt_P = held_out.margins, held_out.rankings, held_out.prompt_P
    policy_P, start_P = correct(rankings["policy"]), correct(rankings["start"])
    options = _bootstrap(held_out.evaluate)
    found = {
        f"start_{part}": paired_difference(policy_P[mask], start_P[mask], prompt_P[mask], *options) for part, mask in held_out.parts.items()
    }
    ours_P = correct(margins["policy"])
    others = {name: margin_P for name, margin_P in margins.items() if name != "policy"} if len(prompt_P) else {}
    return Lift(**found, twins={name: paired_difference(ours_P, correct(theirs), prompt_P, *options) for name, theirs in others.items()})


def rank_correlation(
    score_N: np.ndarray, rewards: list[list[float | None]], prompt_R: np.ndarray, evaluate: EvaluateConfig
) -> Interval | None:
    """Spearman's ρ of a score with the measured rewards of a record's responses, averaged over prompts; None where no record has two
    different rewards and scores.
    """
    record_N = np.repeat(np.arange(len(rewards)), [len(row) for row in rewards])
    reward_N = np.array([np.nan if value is None else value for row in rewards for value in row])
    record_R, row_N = np.unique(record_N[~np.isnan(reward_N)], return_inverse=True)
    rho_R = spearman_within(padded(score_N[~np.isnan(reward_N)], row_N), padded(reward_N[~np.isnan(reward_N)], row_N))
    known = ~np.isnan(rho_R)
    if not known.any():
        return None
    return cluster_bootstrap(rho_R[known], prompt_R[record_R[known]], *_bootstrap(evaluate))


def _bootstrap(evaluate: EvaluateConfig) -> tuple[int, float, int]:
    """Resamples, confidence and seed."""
    return evaluate.bootstrap_samples, evaluate.confidence, evaluate.seed
