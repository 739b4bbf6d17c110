"""The prompt part of the source classifiers: how much more often golden than a source answers a prompt, log p_golden(x)/q_i(x).

A classifier of (x, y) estimates p_golden(x, y)/q_i(x, y) = [p_golden(y|x)/q_i(y|x)] · [p_golden(x)/q_i(x)]. DoRA's w is the first factor
alone; where sources answer different prompts, the second one drowns it. So the second factor is fitted first, from the prompt alone,
and everything that reads the response (``wide.py``, the encoder) is fitted with it as a fixed offset of the logit, on what the prompt
does not explain. Their sum of logits then *is* the logit of the response given the prompt, c(y|x) with odds (N_golden/N_i)·w(y|x),
and adding the offset gives c(x, y). (Subtracting two independently fitted logits also subtracts their errors from each other,
and a model of responses alone holds only a part of the prompt's: measured in ``tests/benchmarks/bench_ratio.py``.)

Model: a penalised logistic regression on hashed n-grams of the prompt's last :data:`PROMPT_TOKENS` tokens, per distinct prompt with its
number of golden and other rows; a penalty per head by inner cross-validation, as in ``wide.py``. Then *shrinkage by reliability*: the
log-ratio is multiplied by the slope that minimises the log-loss of held-out prompts (:func:`fit_slope`), which is 0 unless that
lowers it by more than :data:`KEEP_ERRORS` standard errors over prompts. Where every prompt has answers of both sides the slope is 0.

Column 0 compares the golden pool with the golden responses *of the mixture*: 0 unless extra golden rows answer other prompts. It is needed
for the golden share among the responses to a prompt (``calibration.prompt_shares``).

Legend: N rows, P distinct prompts, S heads; columns 0 … S: golden, then the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dora_core.classifier.wide import BUCKETS, INNER_FOLDS, Design, Ngrams, penalty_path, prior_log_odds
from dora_core.data.chat_template import encode_texts, mark_text, special_tokens
from dora_core.models.ragged import Ragged

Floats = NDArray[np.float64]
PROMPT_FILE = "prompt.safetensors"
PROMPT_TOKENS = 256
KEEP_ERRORS = 2.0  # standard errors by which a slope must lower the log-loss of held-out prompts
STEEPEST = 4.0  # largest slope


@dataclass(frozen=True)
class PromptCounts:
    """Distinct prompts in order of first occurrence, and their rows.

    Attributes:
        place_N: prompt of each row.
        target_PC: share of golden rows among a prompt's rows of each column; (P, S + 1).
        weight_PC: their number.
        slice_P: slice of the prompt, for inner folds.
    """

    prompts: list[str]
    place_N: NDArray[np.int64]
    target_PC: Floats
    weight_PC: Floats
    slice_P: NDArray[np.int64]

    @classmethod
    def of(cls, prompts: Sequence[str], target_NC: Floats, weight_NC: Floats, slice_N: NDArray[np.integer]) -> PromptCounts:
        """Sum rows with soft targets in [0, 1] and weights ≥ 0 by prompt; all rows of a prompt have its slice."""
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        place_N = np.fromiter((number[prompt] for prompt in prompts), np.int64, len(prompts))
        golden_PC, weight_PC = np.zeros((2, len(number), weight_NC.shape[1]))
        np.add.at(golden_PC, place_N, weight_NC * target_NC)
        np.add.at(weight_PC, place_N, weight_NC)
        target_PC = np.divide(golden_PC, weight_PC, out=np.zeros_like(golden_PC), where=weight_PC > 0)
        slice_P = np.zeros(len(number), np.int64)
        slice_P[place_N] = slice_N
        return cls(list(number), place_N, target_PC, weight_PC, slice_P)

    @property
    def prior_C(self) -> Floats:
        """Log-odds of golden by column."""
        return prior_log_odds(torch.from_numpy(self.target_PC), torch.from_numpy(self.weight_PC)).numpy()

    def slopes_of_rows(self, log_ratio_NC: Floats) -> Floats:
        """:meth:`slopes` of log-ratios by row, equal for all rows of a prompt."""
        log_ratio_PC = np.zeros_like(self.target_PC)
        log_ratio_PC[self.place_N] = log_ratio_NC
        return self.slopes(log_ratio_PC)

    def slopes(self, log_ratio_PC: Floats) -> Floats:
        """:func:`fit_slope` of every column."""
        columns = zip(log_ratio_PC.T, self.target_PC.T, self.weight_PC.T, self.prior_C, strict=True)
        return np.array([fit_slope(z, t, w, prior) for z, t, w, prior in columns])


def fit_slope(log_ratio_P: Floats, target_P: Floats, weight_P: Floats, prior: float) -> float:
    """The a in [0, 4] that minimises Σ w·BCE(prior + a·log-ratio, target) over held-out prompts; 0 if the gain over a = 0 is not clear.

    The loss is convex in a: bisection on its derivative, to 1e-6. The gain is clear if the sum over prompts exceeds
    :data:`KEEP_ERRORS` of its standard errors; rows of a prompt are not independent, prompts are.
    """

    def slope_of_loss(a: float) -> float:
        residual_P = 1 / (1 + np.exp(-np.clip(prior + a * log_ratio_P, -500, 500))) - target_P
        return float((weight_P * residual_P * log_ratio_P).sum())

    low, high = 0.0, STEEPEST
    if slope_of_loss(low) >= 0:
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if slope_of_loss(middle) > 0 else (middle, high)
    a = (low + high) / 2
    without, logit_P = prior + 0.0 * log_ratio_P, prior + a * log_ratio_P
    gain_P = weight_P * (np.logaddexp(0.0, without) - np.logaddexp(0.0, logit_P) + target_P * (logit_P - without))
    return a if gain_P.sum() > KEEP_ERRORS * np.sqrt(np.square(gain_P - gain_P.mean()).sum()) else 0.0


@dataclass(frozen=True)
class PromptModel:
    """n-grams of a prompt → log-ratio before shrinkage, (P, S + 1): ``weight`` (BUCKETS, S + 1) and ``bias`` (S + 1)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, texts: Ragged) -> Floats:
        values: Floats = (Ngrams.of(texts).times(self.weight) + self.bias).double().numpy()
        return values

    def of_rows(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Floats:
        """Log-ratios (N, S + 1) of rows; a prompt is read once."""
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        place_N = np.fromiter((number[prompt] for prompt in prompts), np.int64, len(prompts))
        return self(prompt_tokens(tokenizer, list(number)))[place_N]

    def save(self, folder: Path) -> None:
        save_file({"weight": self.weight, "bias": self.bias}, folder / PROMPT_FILE)

    @classmethod
    def load(cls, folder: Path) -> PromptModel:
        return cls(**load_file(folder / PROMPT_FILE))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Ragged:
    """Token ids of the prompts' ends."""
    special = special_tokens(tokenizer)
    ids = encode_texts(tokenizer, [mark_text(prompt, special) for prompt in prompts])
    return Ragged.of([one[-PROMPT_TOKENS:] for one in ids])


def fit_prompt(texts: Ragged, counts: PromptCounts) -> tuple[PromptModel, Floats]:
    """Fit the model to the tokens of ``counts.prompts``; slice modulo INNER_FOLDS is the inner fold.

    Returns:
        the model, and its shrunk log-ratios (P, S + 1) of the same prompts, each by the inner fits that did not see it.
    """
    ngrams, buckets = Ngrams.of(texts).shared()
    design = Design(ngrams, len(buckets), torch.zeros(len(texts), 0))
    target, weight = torch.from_numpy(counts.target_PC).float(), torch.from_numpy(counts.weight_PC).float()
    theta, logits_PC, _ = penalty_path(design, target, weight, counts.slice_P % INNER_FOLDS)
    ngram_weight = torch.zeros(BUCKETS, target.shape[1])
    ngram_weight[buckets] = theta[:-1]
    held_PC = logits_PC.double().numpy() - counts.prior_C
    model = PromptModel(ngram_weight, theta[-1] - torch.from_numpy(counts.prior_C).float())
    return model, held_PC * counts.slopes(held_PC)
