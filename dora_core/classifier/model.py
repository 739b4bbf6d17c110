"""Source classifiers: c_i(x, y) = P(golden | x, y) on golden ∪ source i, for every synthetic source at once.

The logit of head i is the sum of three parts, each fitted by the method that suits it, on what those before it do not explain:

- *prompt* (``prompt.py``): the log-ratio of the prompt's densities, log p_golden(x)/q_i(x), from the prompt alone. The others are the
  logit of the response given the prompt.
- *wide* (``wide.py``): hashed n-grams of the response and surface statistics of its text, a convex problem solved to its optimum with a
  cross-validated penalty. A few thousand short texts suffice for it.
- *deep*: one shared encoder, mean-pooled over the response's tokens, with one linear head per source: one forward pass gives all
  logits. It starts at 0 and is trained on the residual: its offset is the cross-validated logit of the parts before it, because
  the logits of rows they were fitted on look better than they are. It is kept only if it lowers the log-loss of the validation slice
  by more than two standard errors; a fold without it scores without running the encoder. By default it is tried from
  ``deep_from`` fitting rows on: with fewer it lowered the loss by .002 nats at most and took two to four times as long
  (``tests/benchmarks/bench_classifier_parts.py``).

("Wide & deep", Cheng et al. 2016; fitted one after the other, as in boosting.)

The estimates are honest because of:

- *Training counts.* Golden rows are positives of every head, rows of source i negatives of head i only, unweighted within a
  head. So c_i is the posterior under N_golden and N_i, and γ_i = N_i/N_golden undoes exactly that.
- *Cross-fitting.* Fold k's model never saw a prompt of fold k, and scores that fold; penalties and early stopping are decided on
  the *other* folds' prompts. Evaluation prompts take no part. (The tiny tokenizer's vocabulary is built on the training texts
  of all folds; it holds no labels.)
- *Scaling.* A slope of the prompt part per head (``prompt.py``) and a temperature or an isotonic map of the others' sum
  (``scaling.py``), fitted on out-of-fold logits.

Legend: N rows, S heads (synthetic sources), L tokens, T response tokens of all rows, H width.

Left out: independent encoders per source; longer inputs than the encoder's positions (the configuration is refused).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.classifier.text_statistics import surface_statistics
from dora_core.classifier.wide import WideModel
from dora_core.config.method import ClassifierConfig
from dora_core.data.chat_template import encode_texts, mark_text, special_tokens
from dora_core.errors import ConfigError, ModelError
from dora_core.models.loading import build_encoder, load_encoder, train_tokenizer
from dora_core.models.ragged import Ragged

GOLDEN = -1
DROPOUT = 0.2
# Encoders whose layers call ``attention.output(context, residual)`` and then a feed-forward block, both token by token.
LAYERS_AS_BERT = {"bert", "roberta", "xlm-roberta", "camembert", "electra"}


@dataclass(frozen=True)
class Examples:
    """Labelled rows. ``head_N`` is the index of the row's source, or :data:`GOLDEN`; ``prompt_hash_N`` and ``fold_N`` identify its
    prompt; ``extra_N`` are golden rows that are not of the mixture, None: there are none. A slice is ``examples[mask]``."""

    prompts: Sequence[str]
    responses: Sequence[str]
    head_N: NDArray[np.int64]
    prompt_hash_N: NDArray[np.uint64]
    fold_N: NDArray[np.int64]
    extra_N: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.head_N)

    def __getitem__(self, index: NDArray[Any]) -> Examples:
        rows = np.arange(len(self))[index]
        return Examples(
            [self.prompts[i] for i in rows],
            [self.responses[i] for i in rows],
            self.head_N[rows],
            self.prompt_hash_N[rows],
            self.fold_N[rows],
            None if self.extra_N is None else self.extra_N[rows],
        )

    def targets(self, heads: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Targets and mask, both (N, S): golden rows count for every head with target 1, others for their own with target 0."""
        golden = (self.head_N == GOLDEN)[:, None]
        own = self.head_N[:, None] == np.arange(heads)
        return np.broadcast_to(golden, own.shape).astype(np.float32), golden | own

    def prompt_targets(self, heads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Targets and weights, both (N, S + 1), of the prompt part: column 0 separates the golden pool from the golden rows of the mixture,
        which are on either side (weight 2, target ½); the others are those of :meth:`targets`."""
        targets, mask = self.targets(heads)
        golden = self.head_N == GOLDEN
        extra = np.zeros(len(self), dtype=bool) if self.extra_N is None else self.extra_N
        target_NC = np.column_stack([np.where(extra, 1.0, 0.5), targets])
        return target_NC, np.column_stack([golden * np.where(extra, 1.0, 2.0), mask])


# ---------------------------------------------------------------------------------------------------------------- input


@dataclass(frozen=True)
class Encoded:
    """N tokenised rows, each ``[cls] prompt tail [sep] response head [sep]``; the response of row i begins at its token ``start_N[i]``.
    ``surface_NF`` are the statistics of the whole responses, untruncated."""

    tokens: Ragged
    start_N: NDArray[np.int64]
    surface_NF: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: NDArray[np.integer]) -> Encoded:
        return Encoded(self.tokens[rows], self.start_N[rows], self.surface_NF[rows])

    @property
    def responses(self) -> Ragged:
        """Token ids of the responses, closing separator included."""
        return self.tokens.tails(self.start_N)


class PairEncoder:
    """Tokenises (prompt, response): prompts keep their end, responses their beginning, as in ``TextConfig``. Texts never become special
    tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, max_response_tokens: int):
        self.cls = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        self.sep = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.sep
        if self.cls is None or self.sep is None:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path} has no start or separator token",
                hint="use an encoder of the BERT family for classifier.encoder, or `tiny`",
            )
        self.tokenizer, self._prompt, self._response = tokenizer, max_prompt_tokens, max_response_tokens
        self._special = special_tokens(tokenizer)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Encoded:
        unique = list(dict.fromkeys(prompts))  # a prompt has several responses
        before = dict(zip(unique, map(self._before, self._ids(unique)), strict=True))
        tokens = [[*before[p], *ids[: self._response], self.sep] for p, ids in zip(prompts, self._ids(list(responses)), strict=True)]
        start_N = np.fromiter((len(before[p]) for p in prompts), np.int64, len(tokens))
        return Encoded(Ragged.of(tokens), start_N, surface_statistics(prompts, responses))

    def _before(self, prompt: list[int]) -> list[int]:
        """The tokens before the response. (A slice from −0 would be the whole prompt.)"""
        return [self.cls, *(prompt[-self._prompt :] if self._prompt else []), self.sep]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return encode_texts(self.tokenizer, [mark_text(text, self._special) for text in texts])


@dataclass(frozen=True)
class Batch:
    """Right-padded ids (N, L), their attention mask, and the mask of response tokens (closing separator included)."""

    ids: Tensor
    attention: Tensor
    response: Tensor


def collate(rows: Encoded, pad: int, device: torch.device) -> Batch:
    """One batch of at least one row."""
    ids = torch.from_numpy(rows.tokens.padded(pad))
    length, start = torch.from_numpy(rows.tokens.lengths)[:, None], torch.from_numpy(rows.start_N)[:, None]
    position = torch.arange(ids.shape[1])[None]
    attention = position < length
    return Batch(ids.to(device), attention.to(device), (attention & (position >= start)).to(device))


# ---------------------------------------------------------------------------------------------------------------- model


class SourceClassifier(nn.Module):
    """Logits (N, S) of golden against each source given the prompt, before scaling: ``forward`` is the deep part, ``wide`` the wide one.

    Args:
        encoder: any Hugging Face encoder with ``last_hidden_state``.
        wide: the fitted log-linear part.
    """

    def __init__(self, encoder: PreTrainedModel, wide: WideModel):
        super().__init__()
        self.encoder, self.wide = encoder, wide
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(encoder.config.hidden_size, len(wide.bias))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        logits_NS: Tensor = self.head(self.dropout(self._mean_of_response(batch)))
        return logits_NS.float()

    def _mean_of_response(self, batch: Batch) -> Tensor:
        """The last hidden states' mean over each response, (N, H)."""
        inputs = {"input_ids": batch.ids, "attention_mask": batch.attention.long()}
        if self.training or self.encoder.config.model_type not in LAYERS_AS_BERT:
            hidden_NLH: Tensor = self.encoder(**inputs).last_hidden_state
            inside = batch.response[..., None].to(hidden_NLH.dtype)
            return (hidden_NLH * inside).sum(dim=1) / inside.sum(dim=1)
        # After its attention the last layer works token by token, and a prompt's tokens are not pooled: leave them out.
        after_attention = self.encoder.encoder.layer[-1].attention.output
        with after_attention.register_forward_pre_hook(lambda _, states: tuple(x_NLH[batch.response][None] for x_NLH in states)):
            hidden_TH = self.encoder(**inputs).last_hidden_state[0]
        return torch.segment_reduce(hidden_TH, "mean", lengths=batch.response.sum(dim=1))


def build_tokenizer(examples: Examples, config: ClassifierConfig) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer; for ``tiny`` one trained on the prompts and responses."""
    if not config.encoder.is_tiny:
        return load_encoder(config.encoder)[1]
    return train_tokenizer([*dict.fromkeys(examples.prompts), *examples.responses], config.encoder.vocab_size)


def build_classifier(config: ClassifierConfig, tokenizer: PreTrainedTokenizerBase, wide: WideModel) -> SourceClassifier:
    """A classifier whose deep part is new and 0; seed torch first.

    Raises:
        ConfigError: prompt and response together exceed the encoder's positions.
    """
    tokens = config.max_prompt_tokens + config.max_response_tokens + 3
    encoder = build_encoder(config.encoder, tokenizer, tokens) if config.encoder.is_tiny else load_encoder(config.encoder)[0]
    positions = getattr(encoder.config, "max_position_embeddings", None) or tokens
    if encoder.config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        positions -= 2  # their first position is padding_idx + 1
    if tokens > positions:
        raise ConfigError(
            f"classifier: max_prompt_tokens + max_response_tokens + 3 = {tokens}, but {config.encoder.source!r} has {positions} positions",
            hint=f"let the two add up to at most {positions - 3}",
        )
    return SourceClassifier(encoder, wide)
