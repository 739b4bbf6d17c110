"""Batches of rows of similar length, so that padding to the longest row wastes little; they shrink until they fit into memory.

Measured on mixed lengths, length-sorted batches are about three times as fast as batches in the order of the data.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dora_core.errors import ModelError

Result = TypeVar("Result")
Lengths = Sequence[int] | NDArray[np.int64]

log = logging.getLogger("dora.batching")


def token_batches(lengths: Lengths, budget: int, rng: np.random.Generator | None = None) -> list[NDArray[np.int64]]:
    """Indices of ``lengths`` in batches of at most ``budget`` padded tokens (a longer row goes alone).

    With ``rng`` (training) lengths are blurred by ±10 % and the batches shuffled, so that an epoch's batches differ from the
    last one's; without (scoring) the order follows from the lengths alone.
    """
    sizes = np.asarray(lengths)
    key = sizes * rng.uniform(0.9, 1.1, len(sizes)) if rng else sizes
    batches: list[NDArray[np.int64]] = []
    current: list[int] = []
    longest = 0
    for row in np.argsort(key, kind="stable"):
        longest = max(longest, int(sizes[row]))
        if current and longest * (len(current) + 1) > budget:
            batches.append(np.array(current))
            current, longest = [], int(sizes[row])
        current.append(row)
    if current:
        batches.append(np.array(current))
    if rng:
        rng.shuffle(batches)  # a list of arrays: shuffled as objects
    return batches


class TokenBudget:
    """Largest number of tokens in a batch of inference: as configured until a batch does not fit into the accelerator's memory, from then
    on half of that batch's. Results are the same up to rounding: a batch of another shape may change their last digits.

    Attributes:
        tokens: of the next batch.
        asked: at the start.
    """

    def __init__(self, tokens: int):
        self.asked = self.tokens = tokens

    @classmethod
    def of(cls, budget: int | TokenBudget) -> TokenBudget:
        """The budget itself, or a new one, which later calls do not share."""
        return budget if isinstance(budget, TokenBudget) else cls(budget)

    @property
    def lowered(self) -> int | None:
        """Tokens now; None as long as every batch has fitted."""
        return self.tokens if self.tokens < self.asked else None

    def lower(self, taken: int, error: torch.OutOfMemoryError, *, alone: bool) -> None:
        """Lower the budget because a batch of ``taken`` tokens did not fit.

        Raises:
            ModelError: the batch was a single row (``alone``), so that nothing smaller can be tried.
        """
        reason = str(error).split(". ")[0]
        if alone:
            raise ModelError(
                f"out of memory even one row at a time, with {taken} tokens: {reason}",
                hint="give a worker more of the device (execution.default.gpus_per_worker), or make texts shorter: "
                "text.max_prompt_tokens, text.max_response_tokens; when generating, generate.max_new_tokens or generate.samples",
            ) from error
        self.tokens = min(self.tokens, taken) // 2
        log.warning("out of memory with a batch of %d tokens, so at most %d from now on: %s", taken, self.tokens, reason)


def in_batches(
    compute: Callable[[NDArray[np.int64]], Result], lengths: Lengths, budget: TokenBudget
) -> Iterator[tuple[NDArray[np.int64], Result]]:
    """Batches of :func:`token_batches` with their results; a batch that does not fit into memory is computed in smaller ones.

    Raises:
        ModelError: a single row does not fit.
    """
    sizes = np.asarray(lengths)
    waiting = deque(token_batches(sizes, budget.tokens))
    while waiting:
        batch = waiting.popleft()
        try:
            result = compute(batch)
        except torch.OutOfMemoryError as error:
            budget.lower(len(batch) * int(sizes[batch].max()), error, alone=len(batch) == 1)
        else:
            yield batch, result
            continue
        # The traceback held the memory of the failed batch; it is free only here, after the handler.
        rest = np.concatenate([batch, *waiting])
        waiting = deque(rest[part] for part in token_batches(sizes[rest], budget.tokens))
