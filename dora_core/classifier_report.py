"""How good the source classifiers are, judged on out-of-fold predictions only (DESIGN section 2).

Beside AUC, log-loss and calibration error, three cheap questions about *what* a classifier reads:

- *prompt only*: the AUC of a hashed n-gram model that sees the prompt alone, cross-fitted on the same folds. High where a source
  answers other prompts than people do; the ratio then compares prompts, not responses.
- *within prompt*: how often the golden response of a prompt gets a higher logit than the source's response to the same prompt.
  No prompt cue can help here.
- *length only*: AUC of the response's length in characters, in whichever direction it is above ½ (one bit chosen on the data).

Legend: N rows, S heads, B bootstrap resamples, G distinct scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dora_core.classifier import GOLDEN, Examples, HashedNgrams

Floats = NDArray[np.float64]
BINS = 10
RESAMPLES = 200
PROMPT_EPOCHS, PROMPT_RATE, PROMPT_TOKENS = 3, 0.02, 256


# -------------------------------------------------------------------------------------------------------- measures of one


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
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def auc_interval(scores: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap over prompts: rows of one prompt are not independent. NaN where the AUC is."""
    _, inverse = np.unique(prompts, return_inverse=True)
    rng, count = np.random.default_rng(seed), int(inverse.max(initial=-1)) + 1
    values = []
    for _ in range(RESAMPLES // 20):  # 20 at a time: memory stays at 20 numbers per row
        draws = rng.multinomial(count, np.full(count, 1 / count), size=20) if count else np.zeros((20, 0))
        values.append(auc(scores, golden, draws[:, inverse].astype(np.float64)))
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    return (float("nan"), float("nan")) if len(finite) == 0 else tuple(map(float, np.quantile(finite, [0.025, 0.975])))  # type: ignore[return-value]


def within_prompt_auc(scores: Floats, golden: NDArray[np.bool_], prompts: NDArray[np.uint64]) -> float:
    """Mean over prompts that have both kinds of P(golden's score > the other's), ties ½; NaN where no prompt has both."""
    order = np.argsort(prompts, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(prompts[order])) + 1)
    values = [auc(scores[g], golden[g])[0] for g in groups if golden[g].any() and not golden[g].all()]
    return float(np.mean(values)) if values else float("nan")


def log_loss(logits: Floats, golden: NDArray[np.bool_]) -> float:
    """Mean −log p of the truth, nats."""
    return float(np.mean(np.logaddexp(0.0, np.where(golden, -logits, logits))))


def fit_temperature(logits: Floats, golden: NDArray[np.bool_]) -> float:
    """The T in [1/20, 20] that minimises the log-loss of logits/T. T = 1 is among the candidates: never worse than none.

    log-loss is convex in 1/T, so a golden-section search on log T finds the minimum.
    """
    if len(logits) == 0 or golden.all() or not golden.any():
        return 1.0
    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-5:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if log_loss(logits / np.exp(left), golden) <= log_loss(logits / np.exp(right), golden):
            high = right
        else:
            low = left
    best = float(np.exp((low + high) / 2))
    return best if log_loss(logits / best, golden) < log_loss(logits, golden) else 1.0


def reliability(c: Floats, golden: NDArray[np.bool_]) -> tuple[float, dict[str, list[float]]]:
    """Expected calibration error Σ_b n_b/N·|accuracy_b − confidence_b| over ten equal-width bins, and the non-empty bins."""
    bins = np.minimum((c * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    used = count > 0
    confidence = np.bincount(bins, c, BINS)[used] / count[used]
    accuracy = np.bincount(bins, golden, BINS)[used] / count[used]
    error = float((count[used] / max(len(c), 1) * np.abs(accuracy - confidence)).sum())
    return error, {"confidence": confidence.tolist(), "accuracy": accuracy.tolist(), "count": count[used].tolist()}


def prompt_only_logits(examples: Examples, heads: int, tokenizer: PreTrainedTokenizerBase, folds: int, seed: int) -> Floats:
    """Cross-fitted logits (N, S) of a hashed n-gram model of the prompt's last 256 tokens. Costs seconds."""
    unique = {p: i for i, p in enumerate(dict.fromkeys(examples.prompts))}
    tokens = [ids[-PROMPT_TOKENS:] for ids in tokenizer(list(unique), add_special_tokens=False, verbose=False)["input_ids"]]
    longest = max(1, max(map(len, tokens)))
    ids = torch.tensor([t + [0] * (longest - len(t)) for t in tokens])
    inside = torch.arange(longest)[None] < torch.tensor([len(t) for t in tokens])[:, None]
    row = torch.tensor([unique[p] for p in examples.prompts])
    targets, mask = map(torch.from_numpy, examples.targets(heads))
    out = np.zeros((len(examples), heads))
    for fold in range(folds):
        model, bias = HashedNgrams(heads), torch.zeros(heads, requires_grad=True)
        optimizer = torch.optim.AdamW([*model.parameters(), bias], lr=PROMPT_RATE, weight_decay=0.01)
        rng, fitting = np.random.default_rng([seed, fold]), np.flatnonzero(examples.fold_N != fold)
        for _ in range(PROMPT_EPOCHS):
            for batch in np.array_split(rng.permutation(fitting), max(1, len(fitting) // 256)):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    model(ids[row[batch]], inside[row[batch]]) + bias, targets[batch], weight=mask[batch].float()
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        with torch.inference_mode():
            for batch in np.array_split(np.flatnonzero(examples.fold_N == fold), max(1, len(examples) // 2048)):
                out[batch] = (model(ids[row[batch]], inside[row[batch]]) + bias).numpy()
    return out


# ------------------------------------------------------------------------------------------------------------ all of them


def diagnose(
    examples: Examples, sources: Sequence[str], logits_NS: Floats, temperature: Sequence[float], prompt_NS: Floats
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The table of ``result.json`` by source, and warnings for people. Undefined measures are ``None``.

    Args:
        logits_NS: out-of-fold logits before temperature.
        prompt_NS: from :func:`prompt_only_logits`.
    """
    table, warnings = {}, []
    length = np.array([len(r) for r in examples.responses], dtype=np.float64)
    golden_rows = int((examples.head_N == GOLDEN).sum())
    for i, source in enumerate(sources):
        rows = np.flatnonzero((examples.head_N == GOLDEN) | (examples.head_N == i))
        golden, prompts = examples.head_N[rows] == GOLDEN, examples.prompt_hash_N[rows]
        logits = logits_NS[rows, i] / temperature[i]
        ece, bins = reliability(1 / (1 + np.exp(-logits)), golden)
        low, high = auc_interval(logits, golden, prompts)
        by_length = float(auc(length[rows], golden)[0])
        facts = {
            "n": int((~golden).sum()),
            "gamma": float((~golden).sum() / golden_rows),
            "auc": float(auc(logits, golden)[0]),
            "auc_low": low,
            "auc_high": high,
            "within_prompt_auc": within_prompt_auc(logits, golden, prompts),
            "log_loss": log_loss(logits, golden),
            "ece": ece,
            "temperature": float(temperature[i]),
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
        found.append(f"{source}: only {facts['n']} training responses; its ratio is a guess")
    if not facts["auc_low"] > 0.5:
        found.append(
            f"{source}: not told apart from golden (AUC {reached:.2f}, lower bound {facts['auc_low']:.2f}); its ratio is near constant"
        )
    if facts["prompt_only_auc"] > max(0.6, reached - 0.05):
        within = f"on one and the same prompt it reaches {facts['within_prompt_auc']:.2f}"
        found.append(f"{source}: the prompt alone reaches AUC {facts['prompt_only_auc']:.2f} of {reached:.2f}; {within}")
    if facts["length_only_auc"] > max(0.6, reached - 0.03):
        found.append(f"{source}: length alone reaches AUC {facts['length_only_auc']:.2f} of {reached:.2f}: mostly a length cue")
    if facts["ece"] > 0.1:
        found.append(f"{source}: calibration error {facts['ece']:.2f}; its ratio is off by more than noise")
    return found
