"""Source classifiers: c_i(x, y) = P(golden | x, y) on golden ∪ source i, for every synthetic source at once (DESIGN section 2).

One shared encoder, mean-pooled over the response's tokens, with one linear head per source: one forward pass gives all
logits. The embedded tiny encoder starts from random weights, so its heads also get hashed token n-grams of the response, a
linear model beside the deep one ("wide & deep", Cheng et al. 2016): n-grams are what a few thousand short texts can teach.

What makes the estimates honest:

- *Training counts.* Golden rows are positives of every head, rows of source i negatives of head i only, unweighted within a
  head. So c_i is the posterior under N_golden and N_i, and γ_i = N_i/N_golden undoes exactly that.
- *Cross-fitting.* Fold k's model never saw a prompt of fold k, and scores that fold; early stopping uses a slice of the
  *other* folds' prompts. Evaluation prompts take no part. (The tiny tokenizer's vocabulary is built on the training texts
  of all folds; it holds no labels.)
- *Temperature.* One per head, fitted on out-of-fold logits.

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
from dora_core.config import ClassifierConfig
from dora_core.errors import ConfigError, ModelError
from dora_core.models import build_encoder, load_encoder, train_tokenizer

GOLDEN = -1
BUCKETS = 2**16
NGRAM_PRIMES = (1, 1_000_003, 998_244_353)
VALIDATION_SHARE = 10  # one prompt in ten of the fitting folds decides when to stop
WARMUP = 0.1
DROPOUT = 0.2
WIDE_RATE = 10.0  # learning rate of the n-gram weights over that of the rest: they start at 0 and are divided by √(n-grams)

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
    """Token ids of one row, ``[cls] prompt tail [sep] response head [sep]``; the response starts at ``start``."""

    ids: list[int]
    start: int


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
        for prompt, response in zip(prompts, self._ids(list(responses)), strict=True):
            tail = prompt_ids[unique[prompt]][-self._prompt :] if self._prompt else []
            rows.append(Encoded([self.cls, *tail, self.sep, *response[: self._response], self.sep], len(tail) + 2))
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


class HashedNgrams(nn.Module):
    """Linear model on the hashed 1-, 2- and 3-grams of the masked tokens: (N, L) ids → (N, S) logits, 0 at the start.

    The sum over a text's n-grams is divided by √(their number): the scale of an L2-normalised count vector.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.weight = nn.Embedding(BUCKETS, heads)
        nn.init.zeros_(self.weight.weight)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        code, inside, total, count = torch.zeros_like(ids), mask, 0.0, 0
        for order, prime in enumerate(NGRAM_PRIMES):
            width = ids.shape[1] - order
            if width <= 0:
                break
            code = (code[:, :width] * 31 + (ids[:, order:] + 1) * prime) % (2**31 - 1)
            inside = inside[:, :width] & mask[:, order:]
            total = total + (self.weight((code + order) % BUCKETS) * inside[..., None]).sum(dim=1)
            count = count + inside.sum(dim=1)
        return total / count.clamp(min=1).sqrt()[:, None]


class SourceClassifier(nn.Module):
    """Batch → logits (N, S) of golden against each source, before temperature.

    Args:
        encoder: any Hugging Face encoder with ``last_hidden_state``.
        heads: number of synthetic sources S.
        wide: add the hashed n-grams (see the module docstring).
    """

    def __init__(self, encoder: PreTrainedModel, heads: int, *, wide: bool):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(encoder.config.hidden_size, heads)
        self.ngrams = HashedNgrams(heads) if wide else None

    def forward(self, batch: Batch) -> Tensor:
        hidden_NLH = self.encoder(input_ids=batch.ids, attention_mask=batch.attention.long()).last_hidden_state
        inside = batch.response[..., None].to(hidden_NLH.dtype)
        pooled_NH = (hidden_NLH * inside).sum(dim=1) / inside.sum(dim=1)
        logits = self.head(self.dropout(pooled_NH)).float()
        return logits if self.ngrams is None else logits + self.ngrams(batch.ids, batch.response)


def build_tokenizer(examples: Examples, config: ClassifierConfig) -> PreTrainedTokenizerBase:
    """The encoder's tokenizer; for ``tiny`` one trained on the prompts and responses."""
    if not config.encoder.is_tiny:
        return load_encoder(config.encoder)[1]
    return train_tokenizer([*dict.fromkeys(examples.prompts), *examples.responses], config.encoder.vocab_size)


def build_classifier(config: ClassifierConfig, tokenizer: PreTrainedTokenizerBase, heads: int) -> SourceClassifier:
    """A new classifier; seed torch first.

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
    return SourceClassifier(encoder, heads, wide=config.encoder.is_tiny)


# ------------------------------------------------------------------------------------------------------------------ fit


@dataclass(frozen=True)
class FoldFit:
    """One fitted fold: its out-of-fold logits, uncalibrated, and how the fit went."""

    fold: int
    logits_NS: NDArray[np.float64]
    curve: list[dict[str, float]]


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

    AdamW, linear warm-up and decay; the weights with the lowest log-loss on the validation slice are kept. Same examples,
    configuration and number of threads ⇒ same weights. Costs ``epochs`` passes over (K − 1)/K of the rows.

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
    validation = ~held_out & (_slice_of(examples.prompt_hash_N) == 0)
    fitting = np.flatnonzero(~held_out & ~validation)
    targets, mask = examples.targets(heads)
    # Each head's loss is the mean over its own rows, and heads count alike however many rows they have.
    scale_S = len(fitting) / np.maximum(mask[fitting].sum(axis=0), 1) / heads
    targets_t, weight_t = torch.from_numpy(targets), torch.from_numpy((mask * scale_S).astype(np.float32))

    with _seeded(config.seed * 1000 + fold, device):
        model = build_classifier(config, tokenizer, heads).to(device)
        golden, total = (targets * mask)[fitting].sum(axis=0), mask[fitting].sum(axis=0)
        prior = np.log((golden + 0.5) / (total - golden + 0.5))
        with torch.no_grad():
            model.head.weight.mul_(0.1)
            model.head.bias.copy_(torch.from_numpy(prior))
        wide = [] if model.ngrams is None else list(model.ngrams.parameters())
        deep = [p for p in model.parameters() if all(p is not w for w in wide)]
        groups = [{"params": deep, "factor": 1.0}] + ([{"params": wide, "factor": WIDE_RATE}] if wide else [])
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        lengths = np.array([len(r.ids) for r in rows])
        rng = np.random.default_rng([config.seed, fold])
        order = _epochs(lengths, fitting, config, rng)
        every = max(1, math.ceil(len(order) / math.ceil(2 * config.epochs)))
        best, best_weights, curve, recent = math.inf, None, [], []
        for step, batch_rows in enumerate(order, start=1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * group["factor"] * _schedule(step / len(order))
            model.train()
            with _precision(device):
                logits = model(collate([rows[i] for i in batch_rows], encode.pad, device))
            loss = _weighted(logits, targets_t[batch_rows].to(device), weight_t[batch_rows].to(device)) / len(batch_rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            recent.append(float(loss.detach()))
            progress(step, len(order))
            if step % every == 0 or step == len(order):
                check = np.flatnonzero(validation) if validation.any() else fitting
                logits_V = _logits(model, [rows[i] for i in check], encode.pad, config.batch_tokens, device)
                held = _weighted(torch.from_numpy(logits_V).float(), targets_t[check], weight_t[check]).item() / len(check)
                curve.append({"fold": fold, "step": step, "loss": float(np.mean(recent)), "validation_loss": held})
                recent = []
                if held < best:
                    best, best_weights = held, {k: v.detach().clone() for k, v in model.state_dict().items()}
    assert best_weights is not None, "the log-loss is finite: logits are"
    model.load_state_dict(best_weights)
    _save(model, folder)
    logits_NS = _logits(model, [rows[i] for i in np.flatnonzero(held_out)], encode.pad, config.batch_tokens, device)
    return FoldFit(fold, logits_NS, curve)


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


def _weighted(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="sum")


def _slice_of(prompt_hash: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return (prompt_hash >> np.uint64(17)) % np.uint64(VALIDATION_SHARE)


def _logits(model: SourceClassifier, rows: Sequence[Encoded], pad: int, budget: int, device: torch.device) -> NDArray[np.float64]:
    """Logits in the order of ``rows``, (N, S)."""
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
    temperature: list[float]
    folds: int
    config: dict[str, Any]


def save_meta(folder: Path, tokenizer: PreTrainedTokenizerBase, meta: Meta) -> None:
    tokenizer.save_pretrained(folder / TOKENIZER)
    (folder / META).write_text(json.dumps(meta.__dict__, indent=1) + "\n", encoding="utf-8")


def _save(model: SourceClassifier, folder: Path) -> None:
    model.encoder.save_pretrained(folder, safe_serialization=True)
    heads = {k: v.contiguous().cpu() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    save_file(heads, folder / HEADS)


@dataclass(frozen=True)
class Scored:
    """Temperature-scaled logits (N, S); tokens of each row, and tokens it took in its padded batch."""

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
        return Scored(logits / np.array(self.meta.temperature), lengths, padded)

    def _load(self, folder: Path) -> SourceClassifier:
        encoder = AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, trust_remote_code=self._config.encoder.trust_remote_code, **self._pooler
        )
        model = SourceClassifier(encoder, len(self.meta.sources), wide=self._config.encoder.is_tiny)
        model.load_state_dict(load_file(folder / HEADS), strict=False)
        return model.to(self._device).eval()

    @property
    def _pooler(self) -> dict[str, Any]:
        return {"add_pooling_layer": False} if self._config.encoder.is_tiny else {}


def read_meta(folder: Path) -> Meta:
    return Meta(**json.loads((folder / META).read_text(encoding="utf-8")))
