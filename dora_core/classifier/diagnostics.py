"""Diagnostics of the source classifiers, on out-of-fold predictions only.

Beside AUC, log-loss and calibration error, three cheap checks of the cues that a classifier uses:

- *prompt only*: the AUC of the prompt part (``prompt.py``), before shrinkage. High where a source answers other prompts than people do;
  the ratio of (x, y) then compares prompts as well as responses.
- *given the prompt*: the AUC of the logits without the prompt part, over rows weighted such that prompts do not tell golden and source
  apart (``scaling.overlap_weights``).
- *within prompt*: how often the golden response of a prompt gets a higher logit than the source's response to the same prompt.
  No prompt cue can help here.
- *length only*: AUC of the response's length in characters, in whichever direction it is above ½ (one bit chosen on the data).

Legend: N rows, S heads, B bootstrap resamples, G distinct scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dora_core.classifier.model import GOLDEN, Examples
from dora_core.classifier.scaling import Scaling, log_loss, overlap_weights

Floats = NDArray[np.float64]
BINS = 10
RESAMPLES = 200
FAMILY_LEVEL = 0.05


# ---------------------------------------------------------------------------------------------------------- one head


def auc(scores: Floats, golden: NDArray[np.bool_], weights_BN: Floats | None = None) -> Floats:
    """P(score of a golden row > score of another), ties count ½; one value per row of weights, shape (B,) ((1,) without).

    NaN where a class has no weight.
    """
    weights_BN = np.ones((1, len(scores))) if weights_BN is None else weights_BN
    order = np.argsort(scores, kind="stable")
    starts_G = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0) if len(scores) else np.array([], dtype=int)
    if len(starts_G) == 0:
        return np.full(len(weights_BN), np.nan)
    sorted_BN, golden_N = weights_BN[:, order], golden[order]
    positive_BG = np.add.reduceat(sorted_BN * golden_N, starts_G, axis=1)
    negative_BG = np.add.reduceat(sorted_BN * ~golden_N, starts_G, axis=1)
    below_BG = np.cumsum(negative_BG, axis=1) - negative_BG
    wins = (positive_BG * (below_BG + 0.5 * negative_BG)).sum(axis=1)
    pairs = positive_BG.sum(axis=1) * negative_BG.sum(axis=1)
    values: Floats = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return values


def auc_resamples(
    scores: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64], seed: int = 0, weights: Floats | None = None
) -> Floats:
    """AUCs of rows with ``weights`` (default 1) in :data:`RESAMPLES` bootstrap samples of prompts (rows of one prompt are not independent);
    undefined ones are left out."""
    _, inverse = np.unique(prompts, return_inverse=True)
    rng, count = np.random.default_rng(seed), int(inverse.max(initial=-1)) + 1
    values = []
    for _ in range(RESAMPLES // 20):  # 20 at a time: memory stays at 20 numbers per row
        draws = rng.multinomial(count, np.full(count, 1 / count), size=20) if count else np.zeros((20, 0))
        draws_BN = draws[:, inverse].astype(np.float64)
        values.append(auc(scores, golden, draws_BN if weights is None else draws_BN * weights))
    finite = np.concatenate(values)
    return finite[np.isfinite(finite)]


def auc_interval(resamples: Floats) -> tuple[float, float]:
    """95 % percentile interval; NaN where no resample is defined."""
    if len(resamples) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(resamples, [0.025, 0.975])
    return float(low), float(high)


def family_interval(value: float, resamples: Floats, heads: int) -> tuple[float, float]:
    """Normal interval of an AUC at level 1 − 5 %/S (Bonferroni), with the bootstrap's standard error.

    A head counts as distinguished from golden (``told_apart``) if this lies above ½. If none of S sources differs, the probability that
    some head does so is at most 2.5 % for any number of heads (about: the error of the bootstrap is not in it).
    """
    spread = NormalDist().inv_cdf(1 - FAMILY_LEVEL / (2 * heads)) * float(np.std(resamples)) if len(resamples) else float("nan")
    return value - spread, value + spread


def within_prompt_auc(scores: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64]) -> float:
    """Mean over prompts that have both kinds of P(golden's score > the other's), ties ½; NaN where no prompt has both."""
    order = np.argsort(prompts, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1)
    values = [auc(scores[g], golden[g])[0] for g in groups if golden[g].any() and not golden[g].all()]
    return float(np.mean(values)) if values else float("nan")


def reliability(c: Floats, golden: NDArray[np.bool_]) -> tuple[float, dict[str, list[float]]]:
    """Expected calibration error Σ_b n_b/N·|accuracy_b − confidence_b| over ten equal-width bins, and the non-empty bins."""
    bins = np.minimum((c * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    used = count > 0
    confidence = np.bincount(bins, c, BINS)[used] / count[used]
    accuracy = np.bincount(bins, golden, BINS)[used] / count[used]
    error = float((count[used] / max(len(c), 1) * np.abs(accuracy - confidence)).sum())
    return error, {"confidence": confidence.tolist(), "accuracy": accuracy.tolist(), "count": count[used].tolist()}


# ------------------------------------------------------------------------------------------------------------- all heads


def diagnose(
    examples: Examples, sources: Sequence[str], logits_NS: Floats, scaling: Sequence[Scaling], prompt_NC: Floats, slope_C: Floats
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The table of ``result.json`` by source, and warnings in words. Undefined measures are ``None``.

    Args:
        logits_NS: out-of-fold logits of the response given the prompt, before scaling.
        scaling: one per head.
        prompt_NC: out-of-fold log-ratios of the prompt before shrinkage, (N, S + 1) as in ``prompt.py``.
        slope_C: their shrinkage.
    """
    table, warnings = {}, []
    length = np.array([len(r) for r in examples.responses], dtype=np.float64)
    golden_rows = int((examples.head_N == GOLDEN).sum())
    for i, source in enumerate(sources):
        rows = np.flatnonzero((examples.head_N == GOLDEN) | (examples.head_N == i))
        golden, prompts = examples.head_N[rows] == GOLDEN, examples.prompt_hash_N[rows]
        given, of_prompt = logits_NS[rows, i], prompt_NC[rows, i + 1] * slope_C[i + 1]
        raw = given + of_prompt  # ranks are judged before scaling: an isotonic map ties some
        logits = scaling[i](given) + of_prompt
        ece, bins = reliability(1 / (1 + np.exp(-logits)), golden)
        told = _told_apart(raw, golden, prompts, len(sources))
        by_length = float(auc(length[rows], golden)[0])
        facts = {
            "n": int((~golden).sum()),
            "gamma": float((~golden).sum() / golden_rows),
            **told,
            "within_prompt_auc": within_prompt_auc(raw, golden, prompts),
            "log_loss": log_loss(logits, golden),
            "ece": ece,
            "temperature": scaling[i].temperature,
            "prompt_slope": float(slope_C[i + 1]),
            "prompt_only_auc": float(auc(prompt_NC[rows, i + 1], golden)[0]),
            "length_only_auc": max(by_length, 1 - by_length),
            "reliability": bins,
        }
        weights = overlap_weights(of_prompt, golden)
        facts["given_prompt"] = told if slope_C[i + 1] == 0 else _told_apart(given, golden, prompts, len(sources), weights)
        table[source] = _finite(facts) | {"given_prompt": _finite(facts["given_prompt"])}
        warnings += _warnings(source, facts)
    return table, warnings


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in facts.items()}


def _told_apart(
    scores: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64], heads: int, weights: Floats | None = None
) -> dict[str, Any]:
    """AUC, its intervals, and whether the family-wise one lies above ½."""
    reached = float(auc(scores, golden, None if weights is None else weights[None])[0])
    resamples = auc_resamples(scores, golden, prompts, weights=weights)
    low, high = auc_interval(resamples)
    family_low, family_high = family_interval(reached, resamples, heads)
    intervals = {"auc_low": low, "auc_high": high, "auc_family_low": family_low, "auc_family_high": family_high}
    return {"auc": reached} | intervals | {"told_apart": family_low > 0.5}


def _warnings(source: str, facts: dict[str, Any]) -> list[str]:
    found, reached = [], facts["auc"]
    if facts["n"] < 50:
        found.append(f"{source}: only {facts['n']} training responses; its ratio is unreliable")
    if not facts["told_apart"]:
        interval = f"[{facts['auc_family_low']:.2f}, {facts['auc_family_high']:.2f}]"
        found.append(
            f"{source}: cannot be distinguished from golden (AUC {reached:.2f}, family-wise interval {interval}); its ratio counts as 1"
        )
    elif not facts["given_prompt"]["told_apart"]:
        given = f"given the prompt the AUC is {facts['given_prompt']['auc']:.2f}"
        found.append(f"{source}: differs from golden in its prompts alone ({given}); its conditional ratio counts as 1")
    if facts["prompt_only_auc"] > max(0.6, reached - 0.05):
        given = f"given the prompt it is {facts['given_prompt']['auc']:.2f}; calibration.ratio: joint would weight prompts"
        found.append(f"{source}: the prompt alone reaches AUC {facts['prompt_only_auc']:.2f} of {reached:.2f}; {given}")
    if facts["length_only_auc"] > max(0.6, reached - 0.03):
        found.append(f"{source}: length alone reaches AUC {facts['length_only_auc']:.2f} of {reached:.2f}: mostly a length cue")
    if facts["ece"] > 0.1:
        found.append(f"{source}: calibration error {facts['ece']:.2f}; its ratio is off by more than noise")
    return found
