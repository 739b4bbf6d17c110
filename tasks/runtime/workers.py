"""Workers of sharded steps: classes that map tables of rows to tables of as many rows (``tasks/runtime/shards.py``).

A step gets a worker as ``partial(MyScorer, MyArguments(...))``: an importable class and plain, typed arguments, which travel to the actors.
The worker is built there once, which is when models are loaded. **A new worker** stands beside its stage: arguments that extend
:class:`WorkerArguments`, and a class with :meth:`ModelWorker.load` and ``__call__``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from dora_core.config.execution import Execution
from dora_core.strict_model import StrictModel
from tasks.runtime.spec import ModelSource, local_model

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dora_core.models.batching import TokenBudget
    from dora_core.models.logprobs import ResponseLogps


class Worker(ABC):
    """Maps rows to as many rows; the output depends on its arguments and these rows alone.

    Attributes:
        budget: tokens of a batch, for workers that may run out of memory; if it was lowered, the stage warns.
    """

    budget: TokenBudget | None = None

    @abstractmethod
    def __call__(self, rows: pa.Table) -> pa.Table: ...


BuildWorker = Callable[[], Worker]
"""Builds a worker, in any process: a ``functools.partial`` of an importable class."""


class WorkerArguments(StrictModel):
    """Arguments of every worker with a model: the store that stages' models are fetched from, and the stage's execution."""

    store_uri: str
    execution: Execution


A = TypeVar("A", bound=WorkerArguments)


class ModelWorker(Worker, Generic[A]):
    """A worker with models, loaded once onto its device: bfloat16 on a GPU, float32 on a CPU."""

    budget: TokenBudget

    def __init__(self, arguments: A):
        import torch

        from dora_core.models.batching import TokenBudget

        gpu = arguments.execution.gpus_per_worker > 0
        self.arguments, self.budget = arguments, TokenBudget(arguments.execution.batch_tokens)
        self.device, self.dtype = torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if gpu else torch.float32
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Load the models."""

    def load_policy(self, source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A language model for inference, with its tokenizer."""
        from dora_core.models.loading import load_policy

        model, tokenizer = load_policy(local_model(source, self.arguments.store_uri), self.dtype)
        return model.eval().to(self.device), tokenizer

    def load_logps(self, source: ModelSource) -> tuple[ResponseLogps, PreTrainedTokenizerBase]:
        """Log-probabilities under a language model, and its tokenizer; its layers are streamed if ``execution`` says so."""
        from dora_core.models.layer_streaming import streamed_logps
        from dora_core.models.logprobs import ResponseLogps

        if self.arguments.execution.stream_layers:
            return streamed_logps(local_model(source, self.arguments.store_uri), self.dtype, self.device)
        model, tokenizer = self.load_policy(source)
        return ResponseLogps(model), tokenizer


def use_threads(execution: Execution) -> None:
    """Give torch and the tokenizers ``cpus_per_worker`` threads in this process.

    Ray sets OMP_NUM_THREADS, which torch may have read too late; the tokenizers' pool is made at their first use, with one thread per core.
    """
    import torch

    threads = max(1, int(execution.cpus_per_worker))
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)
