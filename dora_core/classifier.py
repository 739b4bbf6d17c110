"""Source classifiers: c_i(x, y) = P(golden | x, y) on golden ∪ source i, for every synthetic source at once (DESIGN section 2).

The logit of head i is the sum of two parts, each fitted as what it is:

- *wide* (``classifier_wide.py``): hashed n-grams of the response and surface statistics of its text, a convex problem solved to its
  optimum with a cross-validated penalty. This is what a few thousand short texts can teach.
- *deep*: one shared encoder, mean-pooled over the response's tokens, with one linear head per source: one forward pass gives all
  logits. It starts at 0 and is trained on what the wide part leaves over: its offset is the wide part's cross-validated logit, because
  the logits of rows it was fitted on look better than they are. It is kept only if it lowers the log-loss of the validation slice
  by more than two standard errors; a fold without it scores without running the encoder.

("Wide & deep", Cheng et al. 2016; fitted one after the other, as in boosting.)

What makes the estimates honest:

- *Training counts.* Golden rows are positives of every head, rows of source i negatives of head i only, unweighted within a
  head. So c_i is the posterior under N_golden and N_i, and γ_i = N_i/N_golden undoes exactly that.
- *Cross-fitting.* Fold k's model never saw a prompt of fold k, and scores that fold; penalties and early stopping are decided on
  the *other* folds' prompts. Evaluation prompts take no part. (The tiny tokenizer's vocabulary is built on the training texts
  of all folds; it holds no labels.)
- *Scaling.* A temperature or an isotonic map per head, fitted on out-of-fold logits (``classifier_scaling.py``).

Legend: N rows, S heads (synthetic sources), L tokens, H width.

Left out: independent encoders per source; longer inputs than the encoder's positions (the configuration is refused).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dora_core.batching import token_batches
from dora_core.classifier_scaling import Scaling
from dora_core.classifier_wide import INNER_FOLDS, WideModel, fit_wide
from dora_core.config import ClassifierConfig
from dora_core.errors import ConfigError, ModelError
from dora_core.models import build_encoder, load_encoder, train_tokenizer
from dora_core.surface import STATISTICS, SurfaceBasis, surface_statistics

GOLDEN = -1
VALIDATION_SHARE = 10  # one prompt in ten of the fitting folds decides when the deep part stops, and whether it is kept
KEEP_ERRORS = 2.0  # standard errors by which the deep part must lower the validation loss; it is the best of several checks
CHECKS_PER_EPOCH, PATIENCE = 2, 3  # checks of the validation loss; the deep part stops after this many without gain
WARMUP = 0.1
DROPOUT = 0.2

Progress = Callable[[int, int], None]
META, HEADS, TOKENIZER = "meta.json", "heads.safetensors", "tokenizer"


@dataclass(frozen=True)
class Examples:
    """Labelled rows. ``head_N`` is the index of the row's source, or :data:`GOLDEN`; ``prompt_hash_N`` and ``fold_N`` say whose
    prompt it is. A slice of it is ``examples[mask]``."""

    prompts: Sequence[str]
    responses: Sequence[str]
    head_N: NDArray[np.int64]
    prompt_hash_N: NDArray[np.uint64]
    fold_N: NDArray[np.int64]

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
        )

    def targets(self, heads: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Targets and mask, both (N, S): golden rows count for every head with target 1, others for their own with target 0."""
        golden = (self.head_N == GOLDEN)[:, None]
        own = self.head_N[:, None] == np.arange(heads)
        return np.broadcast_to(golden, own.shape).astype(np.float32), golden | own


# ---------------------------------------------------------------------------------------------------------------- input


@dataclass(frozen=True)
class Encoded:
    """Token ids of one row, ``[cls] prompt tail [sep] response head [sep]``; the response starts at ``start``. ``surface`` (F,) are
    the statistics of the whole response, untruncated."""

    ids: list[int]
    start: int
    surface: NDArray[np.float64]


class PairEncoder:
    """Tokenises (prompt, response): prompts keep their end, responses their beginning, as in ``TextConfig``."""

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

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Encoded]:
        unique = {p: i for i, p in enumerate(dict.fromkeys(prompts))}  # a prompt has several responses
        prompt_ids = self._ids(list(unique))
        rows = []
        surface_NF = surface_statistics(prompts, responses)
        for prompt, response, surface in zip(prompts, self._ids(list(responses)), surface_NF, strict=True):
            tail = prompt_ids[unique[prompt]][-self._prompt :] if self._prompt else []
            rows.append(Encoded([self.cls, *tail, self.sep, *response[: self._response], self.sep], len(tail) + 2, surface))
        return rows

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


@dataclass(frozen=True)
class Batch:
    """Right-padded ids (N, L), their attention mask, and the mask of response tokens (closing separator included)."""

    ids: Tensor
    attention: Tensor
    response: Tensor


def collate(rows: Sequence[Encoded], pad: int, device: torch.device) -> Batch:
    longest = max(len(r.ids) for r in rows)
    ids = torch.tensor([r.ids + [pad] * (longest - len(r.ids)) for r in rows])
    length, start = torch.tensor([len(r.ids) for r in rows])[:, None], torch.tensor([r.start for r in rows])[:, None]
    position = torch.arange(longest)[None]
    attention = position < length
    return Batch(ids.to(device), attention.to(device), (attention & (position >= start)).to(device))


# ---------------------------------------------------------------------------------------------------------------- model


class SourceClassifier(nn.Module):
    """Logits (N, S) of golden against each source, before scaling: the deep part is called, ``wide`` holds the other.

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
        hidden_NLH = self.encoder(input_ids=batch.ids, attention_mask=batch.attention.long()).last_hidden_state
        inside = batch.response[..., None].to(hidden_NLH.dtype)
        pooled_NH = (hidden_NLH * inside).sum(dim=1) / inside.sum(dim=1)
        return self.head(self.dropout(pooled_NH)).float()

    @property
    def has_deep_part(self) -> bool:
        return bool(self.head.weight.any() or self.head.bias.any())


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


# ------------------------------------------------------------------------------------------------------------------ fit


@dataclass(frozen=True)
class FoldFit:
    """One fitted fold: its out-of-fold logits, unscaled, and how the fit went. ``curve`` starts with the wide part alone (step 0)."""

    fold: int
    logits_NS: NDArray[np.float64]
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

    Deep part: AdamW with linear warm-up and decay, at most ``epochs`` passes; the weights with the lowest log-loss on the validation
    slice count. Same examples, configuration and number of threads ⇒ same weights. Costs seconds for the wide part, then up
    to ``epochs`` passes over (K − 1)/K of the rows.

    Args:
        examples: training rows of all folds, in any fixed order.
        folder: gets a Hugging Face encoder folder and ``heads.safetensors``.

    Returns:
        ``logits_NS`` of the rows with ``fold_N == fold``, in their order.
    """
    device = device or torch.device("cpu")
    encode = PairEncoder(tokenizer, config.max_prompt_tokens, config.max_response_tokens)
    rows = encode(examples.prompts, examples.responses)
    held_out = examples.fold_N == fold
    seen = np.flatnonzero(~held_out)
    slices = _slice_of(examples.prompt_hash_N)
    targets, mask = examples.targets(heads)
    wide, offset, _ = fit_wide(
        [_response_ids(rows[i]) for i in seen],
        np.stack([rows[i].surface for i in seen]),
        targets[seen],
        mask[seen].astype(np.float32),
        slices[seen] % INNER_FOLDS,
    )
    offset_NS = torch.zeros(len(rows), heads)
    offset_NS[seen] = torch.from_numpy(offset).float()
    fitting, check = seen[slices[seen] > 0], seen[slices[seen] == 0]
    # Each head's loss is the mean over its own rows, and heads count alike however many rows they have.
    scale_S = len(seen) / np.maximum(mask[seen].sum(axis=0), 1) / heads
    targets_t, weight_t = torch.from_numpy(targets), torch.from_numpy((mask * scale_S).astype(np.float32))

    def losses(index: NDArray[Any], deep: Tensor) -> Tensor:
        """Weighted log-loss of each row, (N,)."""
        logits = deep + offset_NS[index].to(deep.device)
        target, weight = targets_t[index].to(deep.device), weight_t[index].to(deep.device)
        return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none").sum(dim=1)

    with _seeded(config.seed * 1000 + fold, device):
        model = build_classifier(config, tokenizer, wide).to(device)
        untrained = {k: v.detach().clone() for k, v in model.state_dict().items()}
        best, best_weights, stale = losses(check, torch.zeros(len(check), heads)), None, 0
        curve = [_point(fold, 0, losses(fitting, torch.zeros(len(fitting), heads)), best)] if len(check) else []
        alone, recent = best, []
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        rng = np.random.default_rng([config.seed, fold])
        # Without validation rows (a handful of prompts) nothing could tell whether the deep part helps.
        order = _epochs(np.array([len(r.ids) for r in rows]), fitting, config, rng) if len(check) else []
        every = max(1, math.ceil(len(order) / math.ceil(CHECKS_PER_EPOCH * config.epochs)))
        for step, batch_rows in enumerate(order, start=1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step / len(order))
            model.train()
            with _precision(device):
                deep = model(collate([rows[i] for i in batch_rows], encode.pad, device))
            loss = losses(batch_rows, deep).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recent.append(loss.detach())
            progress(step, len(order))
            if step % every == 0 or step == len(order):
                deep_VS = torch.from_numpy(_deep_logits(model, [rows[i] for i in check], encode.pad, config.batch_tokens, device)).float()
                held = losses(check, deep_VS)
                curve.append(_point(fold, step, torch.stack(recent), held))
                recent, stale = [], stale + 1
                if held.mean() < best.mean():
                    best, best_weights, stale = held, {k: v.detach().clone() for k, v in model.state_dict().items()}, 0
                if stale == PATIENCE:
                    break
    gain = alone - best
    kept = best_weights is not None and bool(gain.mean() > KEEP_ERRORS * gain.std() / math.sqrt(len(gain)))
    model.load_state_dict(best_weights if kept else untrained)
    _save(model, folder)
    logits_NS = _logits(model, [rows[i] for i in np.flatnonzero(held_out)], encode.pad, config.batch_tokens, device)
    return FoldFit(fold, logits_NS, curve, kept)


def _point(fold: int, step: int, loss: Tensor, held: Tensor) -> dict[str, float]:
    return {"fold": fold, "step": step, "loss": float(loss.mean()), "validation_loss": float(held.mean())}


def _response_ids(row: Encoded) -> list[int]:
    return row.ids[row.start :]


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


def _logits(model: SourceClassifier, rows: Sequence[Encoded], pad: int, budget: int, device: torch.device) -> NDArray[np.float64]:
    """Logits in the order of ``rows``, (N, S)."""
    if not rows:
        return np.zeros((0, model.head.out_features))
    wide_NS = model.wide([_response_ids(r) for r in rows], np.stack([r.surface for r in rows])).double().numpy()
    return wide_NS + _deep_logits(model, rows, pad, budget, device) if model.has_deep_part else wide_NS


def _deep_logits(model: SourceClassifier, rows: Sequence[Encoded], pad: int, budget: int, device: torch.device) -> NDArray[np.float64]:
    model.eval()
    out = np.zeros((len(rows), model.head.out_features))
    with torch.inference_mode(), _precision(device):
        for batch_rows in token_batches([len(r.ids) for r in rows], budget):
            out[batch_rows] = model(collate([rows[i] for i in batch_rows], pad, device)).float().cpu().numpy()
    return out


def _precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


# ---------------------------------------------------------------------------------------------------------- save, score


@dataclass(frozen=True)
class Meta:
    """``meta.json``: what a fitted classifier needs besides weights. Lists are by head; ``golden_sources`` are patterns."""

    sources: list[str]
    golden_sources: list[str]
    gamma: list[float]
    scaling: list[Scaling]
    folds: int
    config: dict[str, Any]


def save_meta(folder: Path, tokenizer: PreTrainedTokenizerBase, meta: Meta) -> None:
    tokenizer.save_pretrained(folder / TOKENIZER)
    content = vars(meta) | {"scaling": [scaling.model_dump() for scaling in meta.scaling]}
    (folder / META).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _save(model: SourceClassifier, folder: Path) -> None:
    model.encoder.save_pretrained(folder, safe_serialization=True)
    heads = {k: v.contiguous().cpu() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    save_file(heads, folder / HEADS)


@dataclass(frozen=True)
class Scored:
    """Scaled logits (N, S); tokens of each row, and tokens it took in its padded batch."""

    logits_NS: NDArray[np.float64]
    tokens_N: NDArray[np.int64]
    padded_N: NDArray[np.int64]


class FittedClassifiers:
    """The K fold models of a finished fit, for scoring. Holds all of them: K encoders in memory.

    Args:
        folder: ``fold-0`` … ``fold-(K−1)``, ``tokenizer`` and ``meta.json``.
        batch_tokens: padded tokens per forward pass.
    """

    def __init__(self, folder: Path, *, batch_tokens: int, device: torch.device | None = None):
        self.meta = read_meta(folder)
        self._config = ClassifierConfig.model_validate(self.meta.config)
        self._device, self._budget = device or torch.device("cpu"), batch_tokens
        tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        self._encode = PairEncoder(tokenizer, self._config.max_prompt_tokens, self._config.max_response_tokens)
        self._models = [self._load(folder / f"fold-{k}") for k in range(self.meta.folds)]

    def score(self, prompts: Sequence[str], responses: Sequence[str], folds: NDArray[np.integer]) -> Scored:
        """Score each row by the model that never saw its prompt; ``folds`` (N,) come from ``records.fold_of``."""
        rows = self._encode(prompts, responses)
        lengths = np.array([len(r.ids) for r in rows], dtype=np.int64)
        logits, padded = np.zeros((len(rows), len(self.meta.sources))), np.zeros_like(lengths)
        for fold, model in enumerate(self._models):
            mine = np.flatnonzero(np.asarray(folds) == fold)
            logits[mine] = _logits(model, [rows[i] for i in mine], self._encode.pad, self._budget, self._device)
            for batch in token_batches(lengths[mine], self._budget):
                padded[mine[batch]] = lengths[mine[batch]].max()
        scaled = [scale(logits[:, i]) for i, scale in enumerate(self.meta.scaling)]
        return Scored(np.stack(scaled, axis=1), lengths, padded)

    def _load(self, folder: Path) -> SourceClassifier:
        encoder = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, trust_remote_code=self._config.encoder.trust_remote_code, **self._pooler
        )
        empty = SurfaceBasis.fit(np.zeros((1, len(STATISTICS))))
        model = SourceClassifier(encoder, WideModel(len(self.meta.sources), empty))
        model.load_state_dict(load_file(folder / HEADS), strict=False)
        return model.to(self._device).eval()

    @property
    def _pooler(self) -> dict[str, Any]:
        return {"add_pooling_layer": False} if self._config.encoder.is_tiny else {}


def read_meta(folder: Path) -> Meta:
    content = json.loads((folder / META).read_text(encoding="utf-8"))
    return Meta(**content | {"scaling": [Scaling.model_validate(scaling) for scaling in content["scaling"]]})
