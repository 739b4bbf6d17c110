"""Supervised start: next-token likelihood of trusted responses, as a training task.

The loss is the mean over all response tokens of the optimisation step, over all ranks and micro-batches (a mean of
micro-batch means would give tokens beside short responses more weight).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dora_core.data.encoding import Encoder
from dora_core.data.records import Message
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packing import PackedRows
from dora_core.models.response_rows import ResponseRows
from dora_core.training.distributed import Worker, gradient_sync


class SftTask:
    """A :class:`dora_core.training.loop.Task` on (prompt, response) examples."""

    exact = True

    def __init__(
        self,
        logps: ResponseLogps,
        layers: list[nn.Module],
        examples: Sequence[tuple[Sequence[Message], str]],
        encoder: Encoder,
        worker: Worker,
        pad_id: int,
    ):
        self.module, self.layers, self._worker, self._pad_id = logps, layers, worker, pad_id
        self._rows = [row for [row] in encoder.encode_lists([prompt for prompt, _ in examples], [[response] for _, response in examples])]
        self.tokens = [len(row) for row in self._rows]

    def backward(self, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
        totals = torch.zeros(2, dtype=torch.float64, device=self._worker.device)  # Σ nll, tokens
        for number, indices in enumerate(micro_batches):
            rows = [self._rows[i] for i in indices or [0]]
            with gradient_sync(module, number == len(micro_batches) - 1):
                nll = -module(self.batch(indices)).sum() * bool(indices)
                nll.backward()
            tokens = sum(r.learned for r in rows) * bool(indices)
            totals += torch.stack([nll.detach().double(), nll.new_tensor(tokens, dtype=torch.float64)])
        nll_sum, tokens = self._worker.sum(totals).tolist()
        # Backward saw Σ nll of this rank, DDP and FSDP averaged it over ranks: this factor makes it the mean per token.
        return self._worker.world_size / max(tokens, 1.0), {"loss": nll_sum / max(tokens, 1.0), "tokens": tokens}

    def batch(self, indices: list[int]) -> PackedRows | ResponseRows:
        """The rows of a micro-batch; any for an empty one."""
        return self.module.collate([[self._rows[i]] for i in indices or [0]], self._pad_id).to(self._worker.device)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...
