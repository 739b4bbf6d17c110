"""Rows of similar length together: padding to a batch's longest row then wastes little. And batches that shrink to what memory holds.

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

log = logging.getLogger("dora.batching")


def token_batches(lengths: Sequence[int], budget: int, rng: np.random.Generator | None = None) -> list[NDArray[np.int64]]:
    """Indices of ``lengths`` in batches of at most ``budget`` padded tokens (a longer row goes alone).

    With ``rng`` (training) lengths are blurred by ±10 % and the batches shuffled, so that an epoch's batches differ from the
    last one's; without (scoring) the order follows from the lengths alone.
    """
    lengths = np.asarray(lengths)
    key = lengths * rng.uniform(0.9, 1.1, len(lengths)) if rng else lengths
    batches, current, longest = [], [], 0
    for row in np.argsort(key, kind="stable"):
        longest = max(longest, int(lengths[row]))
        if current and longest * (len(current) + 1) > budget:
            batches.append(np.array(current))
            current, longest = [], int(lengths[row])
        current.append(row)
    if current:
        batches.append(np.array(current))
    if rng:
        rng.shuffle(batches)  # a list of arrays: shuffled as objects
    return batches


class TokenBudget:
    """Most tokens of a batch of inference: as many as asked for until one does not fit into the accelerator's memory, from then on half
    of that one's. Results are the same up to rounding: a batch of another shape may change their last digits.

    Attributes:
        tokens: of the next batch.
        asked: at the start.
    """

    def __init__(self, tokens: int):
        self.asked = self.tokens = tokens

    @classmethod
    def of(cls, budget: int | TokenBudget) -> TokenBudget:
        """Itself, or a new one for whom it does not matter to later calls what did not fit in this one."""
        return budget if isinstance(budget, TokenBudget) else cls(budget)

    @property
    def lowered(self) -> int | None:
        """Tokens now; None as long as every batch has fitted."""
        return self.tokens if self.tokens < self.asked else None

    def lower(self, taken: int, error: torch.OutOfMemoryError, *, alone: bool) -> None:
        """A batch of ``taken`` tokens did not fit.

        Raises:
            ModelError: it was a row ``alone``, and nothing smaller can be tried.
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
    compute: Callable[[NDArray[np.int64]], Result], lengths: Sequence[int], budget: TokenBudget
) -> Iterator[tuple[NDArray[np.int64], Result]]:
    """Batches of :func:`token_batches` and what ``compute`` makes of each; one that does not fit into memory is computed in smaller ones.

    Raises:
        ModelError: a single row does not fit.
    """
    lengths = np.asarray(lengths)
    waiting = deque(token_batches(lengths, budget.tokens))
    while waiting:
        batch = waiting.popleft()
        try:
            result = compute(batch)
        except torch.OutOfMemoryError as error:
            budget.lower(len(batch) * int(lengths[batch].max()), error, alone=len(batch) == 1)
        else:
            yield batch, result
            continue
        # Only here, behind the handler, is the memory of the failed batch free: its traceback held it.
        rest = np.concatenate([batch, *waiting])
        waiting = deque(rest[part] for part in token_batches(lengths[rest], budget.tokens))
