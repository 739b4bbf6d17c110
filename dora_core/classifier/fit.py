"""Fitting one fold's source classifier: the prompt part, the wide part to its optimum, then the deep part on the residual.

The reasons for this order, and for the honesty of the estimates, are in ``model.py``.

Legend: N rows, S heads (synthetic sources), V validation rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from dora_core.classifier.model import Encoded, Examples, PairEncoder, SourceClassifier, build_classifier, collate
from dora_core.classifier.prompt import PromptCounts, PromptModel, fit_prompt, prompt_tokens
from dora_core.classifier.scoring import deep_logits, inference_budget, precision, save_fold, wide_logits
from dora_core.classifier.wide import INNER_FOLDS, fit_wide
from dora_core.config.method import ClassifierConfig
from dora_core.models.batching import TokenBudget, token_batches

VALIDATION_SHARE = 10  # one prompt in ten of the fitting folds decides when the deep part stops, and whether it is kept
KEEP_ERRORS = 2.0  # standard errors by which the deep part must lower the validation loss; it is the best of several checks
CHECKS_PER_EPOCH, PATIENCE = 2, 3  # checks of the validation loss; the deep part stops after this many without gain
WARMUP = 0.1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FoldFit:
    """One fitted fold: its out-of-fold predictions and the losses of the fit.

    Attributes:
        logits_NS: of the response given the prompt, unscaled.
        prompt_NC: log-ratios of the prompt, before shrinkage, (N, S + 1) as in ``prompt.py``.
        curve: losses by step; step 0 is without the deep part.
    """

    fold: int
    logits_NS: NDArray[np.float64]
    prompt_NC: NDArray[np.float64]
    curve: list[dict[str, float]]
    deep: bool


def fit_fold(
    examples: Examples,
    heads: int,
    tokenizer: PreTrainedTokenizerBase,
    config: ClassifierConfig,
    fold: int,
    folder: Path,
    *,
    device: torch.device | None = None,
    progress: Progress = lambda done, total: None,
) -> FoldFit:
    """Fit the model of one fold on all other folds, save it in ``folder``, and score the fold itself.

    Deep part, where ``config.tries_encoder``: AdamW with linear warm-up and decay, at most ``epochs`` passes; the weights with the
    lowest log-loss on the validation slice count. Same examples, configuration and number of threads ⇒ same weights. Costs seconds for
    the wide part, then up to ``epochs`` passes over (K − 1)/K of the rows.

    Args:
        examples: training rows of all folds, in any fixed order.
        folder: gets a Hugging Face encoder folder, ``heads.safetensors`` and ``prompt.safetensors``.

    Returns:
        predictions of the rows with ``fold_N == fold``, in their order.
    """
    device = device or torch.device("cpu")
    encode = PairEncoder(tokenizer, config.max_prompt_tokens, config.max_response_tokens)
    rows = encode(examples.prompts, examples.responses)
    held_out = examples.fold_N == fold
    seen = np.flatnonzero(~held_out)
    slices = _slice_of(examples.prompt_hash_N)
    targets, mask = examples.targets(heads)
    prompt, given_NS = _fit_prompt(examples[seen], heads, tokenizer, slices[seen])
    wide, offset, _ = fit_wide(
        rows.responses[seen],
        rows.surface_NF[seen],
        targets[seen],
        mask[seen].astype(np.float32),
        slices[seen] % INNER_FOLDS,
        given_NS,
    )
    offset_NS = torch.zeros(len(rows), heads)
    offset_NS[seen] = torch.from_numpy(given_NS + offset).float()
    # Each head's loss is the mean over its own rows, and heads count alike however many rows they have.
    scale_S = len(seen) / np.maximum(mask[seen].sum(axis=0), 1) / heads
    weights = torch.from_numpy((mask * scale_S).astype(np.float32))
    data = _DeepData(rows, seen[slices[seen] > 0], seen[slices[seen] == 0], offset_NS, torch.from_numpy(targets), weights)
    with _seeded((config.seed * 1000 + fold) % 2**63, device):
        model = build_classifier(config, tokenizer, wide).to(device)
        budget = inference_budget(model, config.batch_tokens)
        curve, kept = _fit_deep(model, data, config, fold, budget, encode.pad, progress)
    save_fold(model, folder)
    prompt.save(folder)
    scored = rows[np.flatnonzero(held_out)]
    logits_NS = wide_logits(model.wide, scored)
    if kept:
        logits_NS += deep_logits(model, scored, budget, encode.pad)[0]
    held_prompts = [prompt_text for prompt_text, out in zip(examples.prompts, held_out, strict=True) if out]
    return FoldFit(fold, logits_NS, prompt.of_rows(tokenizer, held_prompts), curve, kept)


def _fit_prompt(
    seen: Examples, heads: int, tokenizer: PreTrainedTokenizerBase, slices: NDArray[np.int64]
) -> tuple[PromptModel, NDArray[np.float64]]:
    """Fit the prompt part; its shrunk, cross-validated log-ratios (N, S) of the same rows are the offset of the other parts."""
    counts = PromptCounts.of(seen.prompts, *seen.prompt_targets(heads), slices)
    prompt, held_PC = fit_prompt(prompt_tokens(tokenizer, counts.prompts), counts)
    return prompt, held_PC[counts.place_N, 1:]


@dataclass(frozen=True)
class _DeepData:
    """Input of the deep part's fit: log-losses on top of the other parts' logits.

    Attributes:
        fitting: positions of the rows to fit on.
        check: positions of the validation rows.
        offset_NS: logits of the prompt and wide parts, out of sample; 0 for rows of the fold itself.
        target_NS: 1 for golden rows.
        weight_NS: weight of the row in the head's loss; 0 where it is neither golden nor of the head's source.
    """

    rows: Encoded
    fitting: NDArray[np.int64]
    check: NDArray[np.int64]
    offset_NS: Tensor
    target_NS: Tensor
    weight_NS: Tensor

    def losses(self, index: NDArray[Any], deep: Tensor) -> Tensor:
        """Weighted log-loss of each row, (N,)."""
        logits = deep + self.offset_NS[index].to(deep.device)
        target, weight = self.target_NS[index].to(deep.device), self.weight_NS[index].to(deep.device)
        return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none").sum(dim=1)

    def losses_of_wide_part(self, index: NDArray[Any]) -> Tensor:
        """:meth:`losses` without a deep part."""
        return self.losses(index, torch.zeros_like(self.offset_NS[index]))


def _fit_deep(
    model: SourceClassifier, data: _DeepData, config: ClassifierConfig, fold: int, budget: TokenBudget, pad: int, progress: Progress
) -> tuple[list[dict[str, float]], bool]:
    """Fit the deep part in place; the untrained weights are put back where it does not lower the validation loss.

    Returns:
        The curve of losses, and whether the fit is kept.
    """
    rows, check, device = data.rows, data.check, model.head.weight.device
    untrained = {k: v.detach().clone() for k, v in model.state_dict().items()}
    alone = best = data.losses_of_wide_part(check)
    best_weights, stale, recent = None, 0, list[Tensor]()
    curve = [_point(fold, 0, data.losses_of_wide_part(data.fitting), best)] if len(check) else []
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    # Without validation rows (a handful of prompts) the gain of the deep part cannot be measured.
    tried = len(check) and config.tries_encoder(len(data.fitting) + len(check))
    order = _epochs(rows.tokens.lengths, data.fitting, config, np.random.default_rng([config.seed, fold])) if tried else []
    every = max(1, math.ceil(len(order) / math.ceil(CHECKS_PER_EPOCH * config.epochs)))
    for step, batch_rows in enumerate(order, start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step / len(order))
        model.train()
        with precision(device):
            deep = model(collate(rows[batch_rows], pad, device))
        loss = data.losses(batch_rows, deep).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.detach())
        progress(step, len(order))
        if step % every == 0 or step == len(order):
            held = data.losses(check, torch.from_numpy(deep_logits(model, rows[check], budget, pad)[0]).float())
            curve.append(_point(fold, step, torch.stack(recent), held))
            recent, stale = [], stale + 1
            if held.mean() < best.mean():
                best, best_weights, stale = held, {k: v.detach().clone() for k, v in model.state_dict().items()}, 0
            if stale == PATIENCE:
                break
    gain = alone - best
    if best_weights is not None and not bool(gain.mean() > KEEP_ERRORS * gain.std() / math.sqrt(len(gain))):
        best_weights = None
    model.load_state_dict(untrained if best_weights is None else best_weights)
    return curve, best_weights is not None


def _point(fold: int, step: int, loss: Tensor, held: Tensor) -> dict[str, float]:
    return {"fold": fold, "step": step, "loss": float(loss.mean()), "validation_loss": float(held.mean())}


def _epochs(lengths: NDArray[Any], fitting: NDArray[Any], config: ClassifierConfig, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Batches of all epochs; the last, fractional epoch is cut."""
    batches: list[NDArray[Any]] = []
    for epoch in range(math.ceil(config.epochs)):
        one = [fitting[b] for b in token_batches(lengths[fitting], config.batch_tokens, rng)]
        batches += one[: math.ceil(len(one) * min(1.0, config.epochs - epoch))]
    return batches


def _schedule(done: float) -> float:
    """Linear warm-up over the first tenth, then linear decay to 0. ``done`` in (0, 1]."""
    return min(done / WARMUP, (1.0 - done) / (1.0 - WARMUP))


def _slice_of(prompt_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A slice 0 … VALIDATION_SHARE − 1 per prompt; slice 0 is the validation slice."""
    return ((prompt_hash >> np.uint64(17)) % np.uint64(VALIDATION_SHARE)).astype(np.int64)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
