"""Routers of mixtures of experts: their load on chosen tokens, and the gradient of the load-balancing loss, injected where they choose.

The loss of a layer is E·Σ_e f_e P_e (Switch Transformers, arXiv 2101.03961, eq. 4–6): f_e is the share of tokens that choose expert e (they
sum to k, the experts of a token), P_e the mean of its probability; k when the load is even. Of several layers it is the mean of theirs.
With f given it is linear in P, so its gradient by a token's logits, c·p∘(f − ⟨f, p⟩), needs no other token: it is added where the
router's scores leave it, and reaches all weights below through the ordinary backward pass, packed, sharded or recomputed.

Legend: L layers with a router, E experts, T tokens, S tokens of a pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dora_core.errors import ModelError
from dora_core.models.packing import PackedRows
from dora_core.models.parts import text_body
from dora_core.models.response_rows import ResponseRows

FAMILIES = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe"})
"""Types of configurations whose routers are a softmax over one logit per expert, and return (logits, scores, chosen experts)."""


@dataclass
class Load:
    """Sums over tokens: (L, E) how often each expert was chosen, (L, E) its probability; and the number of tokens. float64, on the CPU."""

    chosen_LE: Tensor
    probability_LE: Tensor
    tokens: float

    def loss(self) -> float:
        """The load-balancing loss of these tokens, k when the load is even."""
        share_LE, mean_LE = self.chosen_LE / self.tokens, self.probability_LE / self.tokens
        return float((share_LE * mean_LE).sum() * self.chosen_LE.shape[1] / len(self.chosen_LE))

    def coefficients(self) -> Tensor:
        """(L, E): factors of a token's probabilities in the loss, the chosen shares taken as constants."""
        return self.chosen_LE * (self.chosen_LE.shape[1] / (len(self.chosen_LE) * self.tokens**2))


class Routers:
    """The routers of a model.

    Raises:
        ModelError: the model is no mixture of experts, or of a kind whose load is not balanced by this loss.
    """

    def __init__(self, model: PreTrainedModel):
        kind = str(model.config.get_text_config().model_type)
        if kind not in FAMILIES:
            raise ModelError(
                f"optimization.router_balance: {type(model).__name__} ({kind}) is not a mixture of experts whose routers are known",
                hint=f"set it to 0; known: {', '.join(sorted(FAMILIES))} (routers with a bias of their own, as DeepSeek-V3's, are "
                "balanced by that bias and not by a loss)",
            )
        recorder = model._can_record_outputs["router_logits"]
        self.modules: list[nn.Module] = [module for module in text_body(model).modules() if type(module) is recorder.target_class]

    @contextlib.contextmanager
    def measuring(self) -> Iterator[_Measure]:
        """Passes inside add to the load of the tokens that :meth:`_Measure.select` names. Without gradient."""
        with _hooked(self.modules, measure := _Measure(len(self.modules))):
            yield measure

    @contextlib.contextmanager
    def pulled(self, coefficients_LE: Tensor) -> Iterator[_Pull]:
        """Backward passes inside add the gradient of Σ_t Σ_e c_e p_e(t), over the selected tokens, to that of the pass."""
        with _hooked(self.modules, pull := _Pull(coefficients_LE)):
            yield pull


class _Selected:
    """Tokens of the current pass, as places in its flattened input."""

    def __init__(self) -> None:
        self._places_T = torch.zeros(0, dtype=torch.long)

    def select(self, rows: PackedRows | ResponseRows, *, use: bool = True) -> None:
        """The positions that predict a learned token, each as often as it does; none without ``use``.

        Raises:
            ModelError: the rows are read in several passes.
        """
        if isinstance(rows, PackedRows):
            places = rows.index_T
        elif rows.by_length and len(rows.parts()) > 1:
            raise ModelError(
                "optimization.router_balance: rows of this model are read a length at a time", hint="set optimization.router_balance to 0"
            )
        else:
            places = (rows.targets_RS >= 0).flatten().nonzero().squeeze(1)
        self._places_T = places if use else places[:0]

    def _of(self, logits: Tensor) -> Tensor:
        """Probabilities of the selected tokens, (T, E), at least float32."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.reshape(-1, logits.shape[-1])[self._places_T].to(wide).softmax(dim=-1)


class _Measure(_Selected):
    def __init__(self, layers: int):
        super().__init__()
        self._sums: list[list[Tensor]] = [[] for _ in range(layers)]
        self._tokens = 0

    def __call__(self, layer: int, logits: Tensor, scores: Tensor, chosen: Tensor) -> Tensor | None:
        p_TE = self._of(logits).double()
        picked = chosen.reshape(len(logits.reshape(-1, logits.shape[-1])), -1)[self._places_T]
        counts_E = torch.bincount(picked.flatten(), minlength=p_TE.shape[1]).double()
        self._sums[layer].append(torch.stack([counts_E, p_TE.sum(dim=0)]))
        self._tokens += len(p_TE) if layer == 0 else 0
        return None

    def sums(self) -> Tensor:
        """(2·L·E + 1,): the parts of a :class:`Load` of the passes so far, to be summed over ranks."""
        by_layer = torch.stack([torch.stack(parts).sum(dim=0) for parts in self._sums], dim=1)  # (2, L, E)
        return torch.cat([by_layer.flatten().cpu(), torch.tensor([float(self._tokens)], dtype=torch.float64)])

    def load(self, sums: Tensor) -> Load:
        chosen_LE, probability_LE = sums[:-1].reshape(2, len(self._sums), -1)
        return Load(chosen_LE, probability_LE, float(sums[-1]))


class _Pull(_Selected):
    def __init__(self, coefficients_LE: Tensor):
        super().__init__()
        self._coefficients_LE = coefficients_LE

    def __call__(self, layer: int, logits: Tensor, scores: Tensor, chosen: Tensor) -> Tensor | None:
        if not logits.requires_grad:
            return None
        pulled: Tensor = _Attach.apply(scores, logits, self._places_T, self._coefficients_LE[layer].to(logits.device))  # type: ignore[no-untyped-call]
        return pulled


class _Attach(torch.autograd.Function):
    """The scores, unchanged; backward adds the gradient of Σ_t Σ_e c_e softmax(logits_t)_e to that by the logits."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, logits: Tensor, places_T: Tensor, coefficients_E: Tensor) -> Tensor:
        ctx.save_for_backward(logits, places_T, coefficients_E)
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logits, places_T, coefficients_E = ctx.saved_tensors
        flat_SE = logits.reshape(-1, logits.shape[-1])
        p_TE = flat_SE[places_T].to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
        c_E = coefficients_E.to(p_TE)
        pull_TE = p_TE * (c_E - (p_TE * c_E).sum(dim=-1, keepdim=True))
        pulled_SE = torch.zeros_like(flat_SE, dtype=p_TE.dtype).index_add(0, places_T, pull_TE)
        return grad, pulled_SE.to(logits.dtype).reshape(logits.shape), None, None


@contextlib.contextmanager
def _hooked(modules: list[nn.Module], act: _Measure | _Pull) -> Iterator[None]:
    def hook(layer: int, module: nn.Module, given: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:
        logits, scores, chosen = output
        changed = act(layer, logits, scores, chosen)
        return None if changed is None else (logits, changed, chosen)

    handles = [module.register_forward_hook(partial(hook, layer)) for layer, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
