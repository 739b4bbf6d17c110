"""Fitted source classifiers on disk, and the scoring pass.

Rows are scored fold by fold, by the model that never saw their prompt. Tokenisation and the wide part of the next chunk of rows run in
a thread while the encoder computes the current one. On a GPU that hides the part that releases the interpreter's lock (several actors
per GPU, ``execution.gpus_per_worker`` < 1, hide the rest); on a CPU there is little to hide, 1 % beside six layers.
The encoder sees batches of rows of similar length, one forward pass for all heads, in bfloat16 on a GPU and float32 on a CPU; after a
batch that does not fit into the GPU's memory, smaller ones.

On a CPU the activations of a batch should stay in the cache: beyond :data:`CPU_BATCH` numbers per layer GELU and the residuals run at
memory speed (measured, 6 × 384 on one core of an AMD EPYC: 512 tokens 87, 2,048 79, 16,384 55 GFLOP/s of the 105 of a matmul).

Left out: sharing a prompt's computation among its responses, which a bidirectional encoder does not allow.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from dora_core.classifier.model import Encoded, PairEncoder, SourceClassifier, collate
from dora_core.classifier.prompt import PromptModel
from dora_core.classifier.scaling import Scaling
from dora_core.classifier.text_statistics import STATISTICS, SurfaceBasis
from dora_core.classifier.wide import WideModel
from dora_core.config.method import ClassifierConfig
from dora_core.models.batching import TokenBudget, in_batches

META, HEADS, TOKENIZER = "meta.json", "heads.safetensors", "tokenizer"
CHUNK_ROWS = 4096  # rows of one fold that are tokenised ahead
CPU_BATCH = 200_000  # tokens × hidden width of a batch on a CPU

Item = TypeVar("Item")
Result = TypeVar("Result")


# ---------------------------------------------------------------------------------------------------------- save, load


@dataclass(frozen=True)
class Meta:
    """``meta.json``: all that a fitted classifier needs besides weights. Lists are by head; ``golden_sources`` are patterns.

    ``prompt_slopes`` are those of the prompt part's columns (``prompt.py``); empty: it is 0.
    """

    sources: list[str]
    golden_sources: list[str]
    gamma: list[float]
    scaling: list[Scaling]
    folds: int
    config: dict[str, Any]
    prompt_slopes: list[float] = field(default_factory=list)


def save_meta(folder: Path, tokenizer: PreTrainedTokenizerBase, meta: Meta) -> None:
    """Write the tokenizer and ``meta.json``."""
    tokenizer.save_pretrained(folder / TOKENIZER)
    content = vars(meta) | {"scaling": [scaling.model_dump() for scaling in meta.scaling]}
    (folder / META).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_meta(folder: Path) -> Meta:
    """Read ``meta.json`` of :func:`save_meta`."""
    content = json.loads((folder / META).read_text(encoding="utf-8"))
    return Meta(**content | {"scaling": [Scaling.model_validate(scaling) for scaling in content["scaling"]]})


def save_fold(model: SourceClassifier, folder: Path) -> None:
    """A Hugging Face encoder folder, and ``heads.safetensors`` with everything else; the prompt part has a file of its own."""
    model.encoder.save_pretrained(folder, safe_serialization=True)
    heads = {k: v.contiguous().cpu() for k, v in model.state_dict().items() if not k.startswith("encoder.")}
    save_file(heads, folder / HEADS)


def load_fold(folder: Path, config: ClassifierConfig, device: torch.device) -> tuple[WideModel, SourceClassifier | None]:
    """The wide part of a fold and, unless its deep part is 0, the whole model on ``device``."""
    heads = load_file(folder / HEADS)
    wide = WideModel(len(heads["wide.bias"]), SurfaceBasis.fit(np.zeros((1, len(STATISTICS)))))
    wide.load_state_dict({name.removeprefix("wide."): value for name, value in heads.items() if name.startswith("wide.")})
    if not (heads["head.weight"].any() or heads["head.bias"].any()):
        return wide, None
    options = {"add_pooling_layer": False} if config.encoder.is_tiny else {}
    trusted = config.encoder.trust_remote_code
    encoder = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, trust_remote_code=trusted, **options)
    model = SourceClassifier(encoder, wide)
    model.load_state_dict(heads, strict=False)
    return wide, model.to(device).eval()


# --------------------------------------------------------------------------------------------------------------- score


@dataclass(frozen=True)
class Scored:
    """Scores of N rows.

    Attributes:
        given_NS: scaled logits of the response given the prompt; odds γ⁻¹·w(y|x).
        prompt_NC: log-ratios of the prompt, (N, S + 1) as in ``prompt.py``, shrunk.
        tokens_N: tokens of each row.
        padded_N: tokens it took in its padded batch (its own if no encoder ran).
    """

    given_NS: NDArray[np.float64]
    prompt_NC: NDArray[np.float64]
    tokens_N: NDArray[np.int64]
    padded_N: NDArray[np.int64]

    @property
    def logits_NS(self) -> NDArray[np.float64]:
        """Logits of prompt and response together; odds γ⁻¹·w(x, y)."""
        return self.given_NS + self.prompt_NC[:, 1:]

    @property
    def padding_waste(self) -> float:
        """Share of padding among the tokens computed, in [0, 1)."""
        return float((self.padded_N - self.tokens_N).sum() / max(1, self.padded_N.sum()))


class FittedClassifiers:
    """The K fold models of a finished fit, for scoring. Holds all of them: K encoders in memory, fewer where the deep part is 0.

    Args:
        folder: ``fold-0`` … ``fold-(K−1)``, ``tokenizer`` and ``meta.json``.
        batch_tokens: padded tokens per forward pass at most; see :func:`inference_budget`.

    Attributes:
        budget: the padded tokens per forward pass that memory holds.
    """

    def __init__(self, folder: Path, *, batch_tokens: int, device: torch.device | None = None):
        self.meta = read_meta(folder)
        config = ClassifierConfig.model_validate(self.meta.config)
        self._device = device or torch.device("cpu")
        self._tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        self._encode = PairEncoder(self._tokenizer, config.max_prompt_tokens, config.max_response_tokens)
        self._folds = [load_fold(folder / f"fold-{k}", config, self._device) for k in range(self.meta.folds)]
        self._slope_C = np.array(self.meta.prompt_slopes)
        # Without any slope the prompt part is not read.
        self._prompts = [PromptModel.load(folder / f"fold-{k}") for k in range(self.meta.folds)] if self._slope_C.any() else []
        deep = next((model for _, model in self._folds if model is not None), None)
        self.budget = TokenBudget(batch_tokens) if deep is None else inference_budget(deep, batch_tokens)

    def score(self, prompts: Sequence[str], responses: Sequence[str], folds: NDArray[np.integer]) -> Scored:
        """Score each row by the model that never saw its prompt; ``folds`` (N,) come from ``records.fold_of``."""
        logits_NS = np.zeros((len(prompts), len(self.meta.sources)))
        prompt_NC = np.zeros((len(prompts), 1 + len(self.meta.sources)))
        tokens_N, padded_N = np.zeros((2, len(prompts)), dtype=np.int64)

        def on_host(chunk: tuple[int, NDArray[np.int64]]) -> tuple[int, NDArray[np.int64], Encoded, NDArray[np.float64]]:
            fold, index = chunk
            own = [prompts[i] for i in index]
            rows = self._encode(own, [responses[i] for i in index])
            if self._prompts:
                prompt_NC[index] = self._prompts[fold].of_rows(self._tokenizer, own) * self._slope_C
            return fold, index, rows, wide_logits(self._folds[fold][0], rows)

        for fold, index, rows, wide_NS in one_ahead(on_host, self._chunks(np.asarray(folds))):
            logits_NS[index] = wide_NS
            tokens_N[index] = padded_N[index] = rows.tokens.lengths
            if (model := self._folds[fold][1]) is not None:
                deep_NS, padded_N[index] = deep_logits(model, rows, self.budget, self._encode.pad)
                logits_NS[index] += deep_NS
        scaled = [scale(logits_NS[:, i]) for i, scale in enumerate(self.meta.scaling)]
        return Scored(np.stack(scaled, axis=1), prompt_NC, tokens_N, padded_N)

    def _chunks(self, folds: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        for fold in range(self.meta.folds):
            rows = np.flatnonzero(folds == fold)
            for start in range(0, len(rows), CHUNK_ROWS):
                yield fold, rows[start : start + CHUNK_ROWS]


def one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map`` that computes one result ahead, in a thread, while the caller uses the last. An exception is raised in its result's turn."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as pool:
        due: Future[Result] | None = None
        for item in items:
            following = pool.submit(function, item)
            if due is not None:
                yield due.result()
            due = following
        if due is not None:
            yield due.result()


def wide_logits(wide: WideModel, rows: Encoded) -> NDArray[np.float64]:
    """Logits (N, S) of the wide part."""
    logits_NS: Tensor = wide(rows.responses, rows.surface_NF)
    return logits_NS.double().numpy()


def inference_budget(model: SourceClassifier, tokens: int) -> TokenBudget:
    """A budget of ``tokens`` padded tokens per batch, on a CPU no more than :data:`CPU_BATCH` allows."""
    cached = CPU_BATCH // model.head.in_features
    return TokenBudget(min(tokens, cached) if model.head.weight.device.type == "cpu" else tokens)


def deep_logits(model: SourceClassifier, rows: Encoded, budget: TokenBudget, pad: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits (N, S) of the deep part, in the order of ``rows``, and the tokens (N,) that each row took in its padded batch."""
    device, lengths = model.head.weight.device, rows.tokens.lengths
    out, padded_N = np.zeros((len(rows), model.head.out_features)), lengths.copy()
    model.eval()
    with torch.inference_mode(), precision(device):
        parts = list(in_batches(lambda batch: model(collate(rows[batch], pad, device)), lengths, budget))
    if parts:
        batches, logits = zip(*parts, strict=True)
        out[np.concatenate(batches)] = torch.cat(logits).cpu().numpy()
        for batch in batches:
            padded_N[batch] = lengths[batch].max()
    return out, padded_N


def precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where matrix units make it several times as fast; weights, sums and logits stay float32."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
