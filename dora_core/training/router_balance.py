"""A training task whose steps also balance the load of a mixture's experts.

The load-balancing loss is that of the whole step, over all ranks and micro-batches: the shares of the experts are counted first, then each
micro-batch adds its part of the gradient. So a step does not depend on how it is cut, as it would with the usual loss of a
micro-batch (shown to be worse besides, arXiv 2501.11873). The price is a forward pass, and a forward and backward pass, over the step's
records: 7/3 of a step's computation. The tokens are the learned ones, each as often as it is predicted, whether or not records share
their prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dora_core.models.packing import PackedRows
from dora_core.models.response_rows import ResponseRows
from dora_core.models.routers import Routers
from dora_core.training.distributed import Worker, gradient_sync, scale_gradients
from dora_core.training.loop import Task


@runtime_checkable
class BatchedTask(Task, Protocol):
    """A task whose micro-batches can be read again."""

    def batch(self, indices: list[int]) -> PackedRows | ResponseRows:
        """The rows of a micro-batch, on the device; any for an empty one."""


class BalancedTask:
    """``task`` with ``weight`` times the load-balancing loss added to its objective.

    Args:
        routers: of the task's model.
    """

    def __init__(self, task: BatchedTask, routers: Routers, weight: float, worker: Worker):
        self._task, self._routers, self._weight, self._worker = task, routers, weight, worker

    @property
    def module(self) -> nn.Module:
        return self._task.module

    @property
    def layers(self) -> list[nn.Module]:
        return self._task.layers

    @property
    def tokens(self) -> Sequence[int] | NDArray[np.integer]:
        return self._task.tokens

    @property
    def exact(self) -> bool:
        return self._task.exact

    def backward(self, module: nn.Module, micro_batches: list[list[int]], step: int) -> tuple[float, dict[str, float]]:
        """The task's gradient at its full scale, then that of the balance. Metric ``router_loss``: k, the experts of a token, when even."""
        scale, metrics = self._task.backward(module, micro_batches, step)
        scale_gradients(module, scale)
        with torch.no_grad(), self._routers.measuring() as measure:
            for indices in micro_batches:
                rows = self._task.batch(indices)
                measure.select(rows, use=bool(indices))
                module(rows)
        load = measure.load(self._worker.sum(measure.sums()))
        # DDP and FSDP average gradients over ranks.
        with self._routers.pulled(load.coefficients() * self._weight * self._worker.world_size) as pull:
            for number, indices in enumerate(micro_batches):
                rows = self._task.batch(indices)
                pull.select(rows, use=bool(indices))
                with gradient_sync(module, number == len(micro_batches) - 1):
                    (module(rows) * 0.0).sum().backward()
        return 1.0, metrics | {"router_loss": load.loss()}

    def state(self) -> dict[str, Any]:
        return self._task.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._task.restore(state)
