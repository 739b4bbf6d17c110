"""Diagnostics of the source classifiers, on out-of-fold predictions only.

Beside AUC, log-loss and calibration error, three cheap checks of the cues that a classifier uses:

- *prompt only*: the AUC of a hashed n-gram model that sees the prompt alone, cross-fitted on the same folds. High where a source
  answers other prompts than people do; the ratio then compares prompts, not responses.
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
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dora_core.classifier.model import GOLDEN, Examples
from dora_core.classifier.scaling import Scaling, log_loss
from dora_core.classifier.wide import Design, Ngrams
from dora_core.models.ragged import Ragged

Floats = NDArray[np.float64]
BINS = 10
RESAMPLES = 200
PROMPT_PENALTY, PROMPT_TOKENS = 5.0, 256
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


def auc_resamples(scores: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64], seed: int = 0) -> Floats:
    """AUCs of :data:`RESAMPLES` bootstrap samples of prompts (rows of one prompt are not independent); undefined ones are left out."""
    _, inverse = np.unique(prompts, return_inverse=True)
    rng, count = np.random.default_rng(seed), int(inverse.max(initial=-1)) + 1
    values = []
    for _ in range(RESAMPLES // 20):  # 20 at a time: memory stays at 20 numbers per row
        draws = rng.multinomial(count, np.full(count, 1 / count), size=20) if count else np.zeros((20, 0))
        values.append(auc(scores, golden, draws[:, inverse].astype(np.float64)))
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


def prompt_only_logits(examples: Examples, heads: int, tokenizer: PreTrainedTokenizerBase, folds: int) -> Floats:
    """Cross-fitted logits (N, S) of a penalised n-gram model of the prompt's last 256 tokens. Costs seconds."""
    unique = {p: i for i, p in enumerate(dict.fromkeys(examples.prompts))}
    tokens = [ids[-PROMPT_TOKENS:] for ids in tokenizer(list(unique), add_special_tokens=False, verbose=False)["input_ids"]]
    ngrams, columns = Ngrams.of(Ragged.of([tokens[unique[p]] for p in examples.prompts])).shared()
    design = Design(ngrams, len(columns), torch.zeros(len(examples), 0))
    targets, mask = map(torch.from_numpy, examples.targets(heads))
    out = np.zeros((len(examples), heads))
    for fold in range(folds):
        held = torch.from_numpy(examples.fold_N == fold)
        theta = design.fit(targets, mask.float() * ~held[:, None], torch.full((heads,), PROMPT_PENALTY))
        out[held.numpy()] = design.logits(theta)[held].double().numpy()
    return out


# ------------------------------------------------------------------------------------------------------------- all heads


def diagnose(
    examples: Examples, sources: Sequence[str], logits_NS: Floats, scaling: Sequence[Scaling], prompt_NS: Floats
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The table of ``result.json`` by source, and warnings in words. Undefined measures are ``None``.

    Args:
        logits_NS: out-of-fold logits before scaling.
        scaling: one per head.
        prompt_NS: from :func:`prompt_only_logits`.
    """
    table, warnings = {}, []
    length = np.array([len(r) for r in examples.responses], dtype=np.float64)
    golden_rows = int((examples.head_N == GOLDEN).sum())
    for i, source in enumerate(sources):
        rows = np.flatnonzero((examples.head_N == GOLDEN) | (examples.head_N == i))
        golden, prompts = examples.head_N[rows] == GOLDEN, examples.prompt_hash_N[rows]
        raw = logits_NS[rows, i]  # ranks are judged before scaling: an isotonic map ties some
        logits = scaling[i](raw)
        ece, bins = reliability(1 / (1 + np.exp(-logits)), golden)
        reached, resamples = float(auc(raw, golden)[0]), auc_resamples(raw, golden, prompts)
        low, high = auc_interval(resamples)
        family_low, family_high = family_interval(reached, resamples, len(sources))
        by_length = float(auc(length[rows], golden)[0])
        facts = {
            "n": int((~golden).sum()),
            "gamma": float((~golden).sum() / golden_rows),
            "auc": reached,
            "auc_low": low,
            "auc_high": high,
            "auc_family_low": family_low,
            "auc_family_high": family_high,
            "told_apart": family_low > 0.5,
            "within_prompt_auc": within_prompt_auc(raw, golden, prompts),
            "log_loss": log_loss(logits, golden),
            "ece": ece,
            "temperature": scaling[i].temperature,
            "prompt_only_auc": float(auc(prompt_NS[rows, i], golden)[0]),
            "length_only_auc": max(by_length, 1 - by_length),
            "reliability": bins,
        }
        table[source] = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in facts.items()}
        warnings += _warnings(source, facts)
    return table, warnings


def _warnings(source: str, facts: dict[str, Any]) -> list[str]:
    found, reached = [], facts["auc"]
    if facts["n"] < 50:
        found.append(f"{source}: only {facts['n']} training responses; its ratio is unreliable")
    if not facts["told_apart"]:
        interval = f"[{facts['auc_family_low']:.2f}, {facts['auc_family_high']:.2f}]"
        found.append(
            f"{source}: cannot be distinguished from golden (AUC {reached:.2f}, family-wise interval {interval}); its ratio counts as 1"
        )
    if facts["prompt_only_auc"] > max(0.6, reached - 0.05):
        within = f"on one and the same prompt it reaches {facts['within_prompt_auc']:.2f}"
        found.append(f"{source}: the prompt alone reaches AUC {facts['prompt_only_auc']:.2f} of {reached:.2f}; {within}")
    if facts["length_only_auc"] > max(0.6, reached - 0.03):
        found.append(f"{source}: length alone reaches AUC {facts['length_only_auc']:.2f} of {reached:.2f}: mostly a length cue")
    if facts["ece"] > 0.1:
        found.append(f"{source}: calibration error {facts['ece']:.2f}; its ratio is off by more than noise")
    return found
