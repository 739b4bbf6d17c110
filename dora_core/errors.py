"""Typed errors: what went wrong, where, what is allowed, and what to do next.

Every error a user can meet derives from :class:`DoraError`. The command line prints ``message`` and ``hint`` and never a
traceback; the supervisor reads ``retryable`` to decide between another attempt and giving up. Anything that is not a
``DoraError`` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DoraError(Exception):
    """An error with a headline, a remedy and a retry decision.

    Args:
        message: one sentence: the cause and the place ("loss 'dppo' is unknown in align.loss.name").
        hint: the next step for the reader, allowed values included. Empty only if there is truly nothing to do.
        retryable: ``True`` only for transient faults of the control plane (never for bad data or out of memory).
    """

    retryable_by_default = False

    def __init__(self, message: str, *, hint: str = "", retryable: bool | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retryable = self.retryable_by_default if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, Any]:
        return {"type": type(self).__name__, "message": self.message, "hint": self.hint, "retryable": self.retryable}


class ConfigError(DoraError):
    """The configuration is wrong; nothing has run."""


class DataError(DoraError):
    """Input data cannot be read or too much of it is bad; quarantined rows are kept beside the data."""


class ModelError(DoraError):
    """A model or tokenizer cannot be loaded, built or used as asked."""


class StoreError(DoraError):
    """The artifact store is unreadable, or an output does not match its checksums."""


class TrainingError(DoraError):
    """Training produced something that must not be trusted (NaN, wrong reference, fewer steps than planned)."""


class StageFailed(DoraError):
    """A stage's job ended without a valid result; ``message`` carries the first worker's own error."""


class RunStopped(DoraError):
    """A stage's own finding ends the run: a guard rail is broken, or the data has moved too far. What is finished is kept.

    Attributes:
        run: the run as it ended, for a summary; set by its flow (:class:`flows.run_record.EndedRun`).
    """

    run: Any


class ServiceError(DoraError):
    """A server (Prefect, MLflow, Ray) is missing, unreachable or refuses us."""

    retryable_by_default = True


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """``"did you mean 'dpo'? allowed: dpo, dpo_pl, lire"``, the tail of nearly every hint."""
    names = sorted(map(str, allowed))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    prefix = f"did you mean {close[0]!r}? " if close else ""
    return f"{prefix}allowed: {', '.join(names)}"
