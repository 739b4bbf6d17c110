"""Which way a model may be given its records, decided on a small copy of it (``small_copy.py``), and never by rounding.

Three ways, the cheapest first: *packed* (a prompt once for all its responses), *padded* (a row per response), *by length* (rows of one
length at a time, nothing padded). A way is taken if the copy, in float64 on a CPU, gives the log-probabilities and gradients of one
unpadded sequence per response under the model's own forward pass and whole logits. Packed records must also have gradients of exactly
zero between responses. Records are tried on both sides of every length at which the architecture changes its computation; where only
short ones agree, longer rows get the next way.

On a CUDA device the copy runs there in float32, on the attention that trains, and may be off by a few times the rounding of one sequence
at a time.

Legend: R rows (one per response), S sequence length, V vocabulary.
"""

from __future__ import annotations

import copy
import enum
import itertools
import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from dora_core.data.encoding import EncodedResponse
from dora_core.errors import ModelError
from dora_core.models.linear_logps import PLAIN, LogitTransform
from dora_core.models.packed_attention import NAME
from dora_core.models.packing import PackedRows, pack
from dora_core.models.parts import text_body
from dora_core.models.response_forward import forward_logps
from dora_core.models.response_rows import ResponseRows, collate
from dora_core.models.small_copy import THRESHOLD, VOCABULARY, small_copy, thresholds

log = logging.getLogger("dora.logprobs")

ROUNDING = 1e-5
"""Largest relative difference in float64. Norms and routers of transformers compute in float32 even then."""
ROUNDING_FACTOR = 8.0
"""On a GPU, in float32: largest difference as a multiple of that of one sequence at a time."""

Records = list[list[EncodedResponse]]


class Way(enum.Enum):
    """How rows pass through the model."""

    PACKED = "packed"
    PADDED = "padded"
    BY_LENGTH = "by length"
    REFUSED = "refused"


@dataclass(frozen=True)
class RowLayout:
    """The ways of one architecture.

    Attributes:
        short, long: of rows of at most ``threshold`` tokens, and of longer ones.
        reasons: why a cheaper way is not taken, one sentence each.
        transform: from the output embedding to the logits.
    """

    short: Way
    long: Way
    threshold: float
    reasons: tuple[str, ...]
    transform: LogitTransform

    def of(self, longest: int) -> Way:
        """The way of a batch whose longest row has so many tokens."""
        return self.short if longest <= self.threshold else self.long


def positions(config: PretrainedConfig) -> int | None:
    """Tokens of a sequence at most, by the configuration; None: no limit."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((length for length in found if isinstance(length, int) and length > 0), None)


_known: dict[tuple[type, str, str], RowLayout] = {}


def row_layout(model: PreTrainedModel, device: torch.device) -> RowLayout:
    """The ways of ``model`` on ``device``; decided once per architecture, configuration and kind of device.

    Raises:
        ModelError: the logits are not a scaled or capped projection of the last hidden states.
    """
    key = (type(model), model.config.to_json_string(use_diff=False), device.type)
    if key not in _known:
        _known[key] = _decide(model, device)
    return _known[key]


def _decide(model: PreTrainedModel, device: torch.device) -> RowLayout:
    name = type(model).__name__
    if model.get_output_embeddings() is None or text_body(model) is model:
        raise ModelError(
            f"{name} is not a causal language model with an output embedding", hint="use a …ForCausalLM model (Llama, Qwen, …)"
        )
    small = small_copy(model)
    if small is None:
        return RowLayout(
            Way.PADDED, Way.PADDED, float("inf"), (f"no small copy of {name} can be computed, on which to try it",), _transform(model)
        )
    transform = _transform(small)
    trial = _Trial(small, transform, device, name)
    (short, why_short), (long, why_long) = trial.way(SHORT), trial.way(LONG)
    limits = thresholds(model.config)
    if not limits or long is short:
        return RowLayout(long, long, float("inf"), why_long, transform)
    reasons = tuple(f"beyond {min(limits)} tokens, {reason}" for reason in why_long)
    return RowLayout(short, long, min(limits), (*why_short, *reasons), transform)


# -------------------------------------------------------------------------------------------------------------- the logits


@torch.no_grad()
def _transform(model: PreTrainedModel) -> LogitTransform:
    """What ``model`` does to the output of its embedding, by the values that its configuration names.

    Raises:
        ModelError: none of them gives the model's logits.
    """
    head, name = model.get_output_embeddings(), type(model).__name__
    ids = torch.arange(5, device=head.weight.device)[None]
    training = model.training
    model.eval()
    expected = model(input_ids=ids, use_cache=False).logits.double()
    projected = head(text_body(model)(input_ids=ids, use_cache=False).last_hidden_state).double()
    model.train(training)
    allowed = max(1e-6, 8 * torch.finfo(head.weight.dtype).eps) * expected.abs().max().item()
    for candidate in _candidates(model):
        if (candidate(projected) - expected).abs().max() <= allowed:
            return candidate
    raise ModelError(
        f"{name} transforms its logits after the output embedding in a way that is not known",
        hint="use a model whose logits are a projection, scaled or soft-capped (Llama, Qwen, Gemma, Cohere, Granite, GPT-2, …)",
    )


def _candidates(model: PreTrainedModel) -> list[LogitTransform]:
    found: dict[str, float] = {}
    for config in (model.config, model.config.get_text_config()):
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "hidden_size", "dim_model_base"):
            if isinstance(value := getattr(config, key, None), int | float) and value:
                found[key] = float(value)
    scales = [1.0, *(found[key] for key in ("logit_scale", "lm_head_multiplier") if key in found)]
    scales += [1.0 / found["logits_scaling"]] if "logits_scaling" in found else []
    scales += [found["dim_model_base"] / found["hidden_size"]] if "dim_model_base" in found else []
    caps = [None, found["final_logit_softcapping"]] if "final_logit_softcapping" in found else [None]
    return [PLAIN, *(LogitTransform(scale, cap) for cap in caps for scale in scales)]


# --------------------------------------------------------------------------------------------------------------- the trial


def _record(prompt: int, *responses: int, seed: int) -> list[EncodedResponse]:
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in (prompt, *responses)]
    return [EncodedResponse(ids[0], response, 0) for response in ids[1:]]


SHORT = [_record(4, 3, 3, seed=1), _record(3, 4, 1, 5, seed=2), _record(5, 3, seed=3), _record(1, 1, 6, seed=4)]
"""Rows of at most :data:`THRESHOLD` tokens, which are more together."""
LONG = [_record(12, 5, 9, seed=5), _record(3, 2, 14, seed=6), _record(10, 1, seed=7)]
"""Prompts and responses on both sides of the threshold."""
assert max(len(row) for record in SHORT for row in record) <= THRESHOLD


class _Trial:
    """The small copy on a device, and what each way gives on it."""

    def __init__(self, small: PreTrainedModel, transform: LogitTransform, device: torch.device, name: str):
        self._exact, self._transform, self._name = small, transform, name
        self._on_gpu = device.type != "cpu"
        self._small = copy.deepcopy(small).to(device, torch.float32) if self._on_gpu else small
        self._device, self._own_attention = device, small.config._attn_implementation

    def way(self, records: Records) -> tuple[Way, tuple[str, ...]]:
        """The cheapest way that gives the numbers of one row at a time, and why cheaper ones do not."""
        expected = _one_at_a_time(self._exact, records)
        allowed = [ROUNDING * (1.0 + x.abs().max().item()) for x in expected]
        if self._on_gpu:
            here = _one_at_a_time(self._small, records)
            off = [_gap(a, b) for a, b in zip(here, expected, strict=True)]
            allowed = [max(a, ROUNDING_FACTOR * b) for a, b in zip(allowed, off, strict=True)]
        reasons: list[str] = []
        for way in (Way.PACKED, Way.PADDED, Way.BY_LENGTH):
            reason = self._why_not(way, records, expected, allowed)
            if not reason:
                return way, tuple(reasons)
            reasons.append(reason)
        return Way.REFUSED, tuple(reasons)

    def _why_not(self, way: Way, records: Records, expected: list[Tensor], allowed: list[float]) -> str:
        name = self._name
        if way is Way.PACKED and not getattr(self._small, "_supports_attention_backend", False):
            return f"{name} has an attention of its own"
        self._small.set_attn_implementation(NAME if way is Way.PACKED else self._own_attention)
        rows = arranged(records, way, 0).to(self._device)
        try:
            if gap := self._dependence_on_earlier(records, way, expected[0], allowed[0]):
                return f"{name} gives other log-probabilities for {way.value} rows after longer ones (a small copy by {gap:.2g})"
            got = _values_and_gradients(self._small, forward_logps(self._small, rows, self._transform))
            if isinstance(rows, PackedRows) and (meets := self._dependence(rows)):
                return f"{name} lets {meets} in packed records"
        except torch.OutOfMemoryError:
            raise  # says nothing about the model, and the answer would be remembered
        except (ModelError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError) as error:
            reason = error.message if isinstance(error, ModelError) else f"{name} does not take them ({str(error).splitlines()[0][:120]})"
            return f"{way.value} rows: {reason}"
        finally:
            self._small.zero_grad(set_to_none=True)
        for what, a, b, most in zip(("log-probabilities", "gradients"), got, expected, allowed, strict=True):
            if not (gap := _gap(a, b)) <= most:
                return f"{name} gives other {what} for {way.value} rows (a small copy by {gap:.2g})"
        return ""

    @torch.no_grad()
    def _dependence_on_earlier(self, records: Records, way: Way, expected_R: Tensor, allowed: float) -> float:
        """Largest difference in records read one by one after all of them; 0 if allowed. Some models keep the longest length they met."""
        batches = [records, *([record] for record in sorted(records, key=lambda record: -min(map(len, record))))]
        alone = dict(zip(map(id, itertools.chain.from_iterable(records)), expected_R, strict=True))
        for batch in batches:
            got_R = forward_logps(self._small, arranged(batch, way, 0).to(self._device), self._transform).double().cpu()
            gap = _gap(got_R, torch.stack([alone[id(row)] for row in itertools.chain.from_iterable(batch)]))
            if not gap <= allowed:
                return gap
        return 0.0

    def _dependence(self, rows: PackedRows) -> str:
        """Which tokens a response depends on besides its prompt and itself; empty if on none, to the last bit."""
        seen: list[Tensor] = []
        handle = self._small.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(out))
        try:
            logps_R = forward_logps(self._small, rows, self._transform)
        finally:
            handle.remove()
        record_S, part_S = places(rows)
        own = list(itertools.chain.from_iterable([(r, p + 1) for p in range(len(s.responses))] for r, s in enumerate(rows.segments)))
        for logp, (record, part) in zip(logps_R, own, strict=True):
            (grad,) = torch.autograd.grad(logp, seen[0], retain_graph=True)
            reached = grad.reshape(len(record_S), -1).ne(0).any(dim=1).cpu()
            if (reached & (record_S != record)).any():
                return "a response depend on another record"
            if (reached & (part_S != 0) & (part_S != part)).any():
                return "a response depend on another response"
        return ""


def arranged(records: Records, way: Way, pad_id: int) -> PackedRows | ResponseRows:
    """The batch of ``records`` for ``way``."""
    if way is Way.PACKED:
        return pack(records)
    return collate(list(itertools.chain.from_iterable(records)), pad_id, by_length=way is Way.BY_LENGTH)


def places(rows: PackedRows) -> tuple[Tensor, Tensor]:
    """Record, and part of it (0: prompt, n: n-th response), of each packed token."""
    record = [r for r, s in enumerate(rows.segments) for _ in range(len(s))]
    part = [p for s in rows.segments for p, n in enumerate((s.prompt, *s.responses)) for _ in range(n)]
    return torch.tensor(record), torch.tensor(part)


def _one_at_a_time(model: PreTrainedModel, records: Records) -> list[Tensor]:
    """Values and gradients by the model's own forward pass, a fresh model for each row: some keep the longest length they met."""
    device = next(model.parameters()).device
    values, gradients = [], None
    for number, row in enumerate(itertools.chain.from_iterable(records)):
        fresh = copy.deepcopy(model)
        logits_SV = fresh(input_ids=torch.tensor([row.prompt_ids + row.response_ids], device=device), use_cache=False).logits[0].double()
        first = len(row.prompt_ids) - 1
        targets = torch.tensor(row.response_ids, device=device)
        logp = logits_SV[first:-1].log_softmax(-1).gather(1, targets[:, None]).sum()
        value, gradient = _values_and_gradients(fresh, logp[None], number)
        values.append(value)
        gradients = gradient if gradients is None else gradients + gradient
    assert gradients is not None
    return [torch.cat(values), gradients]


def _values_and_gradients(model: PreTrainedModel, logps_R: Tensor, first: int = 0) -> list[Tensor]:
    """The values, and the gradient of Σ_r (1 + r) log π_r by all weights in one row; float64 on the CPU. ``first`` is the first r."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    weight_R = torch.arange(first + 1, first + 1 + len(logps_R), device=logps_R.device)
    found = torch.autograd.grad((weight_R * logps_R).sum(), parameters, allow_unused=True)
    flat = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    return [logps_R.detach().double().cpu(), torch.cat(flat).double().cpu()]


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
