"""Typed errors with cause, place, allowed values and next step.

Every error caused by configuration, data or environment derives from :class:`DoraError`. The command line prints ``message`` and
``hint`` without a traceback; the supervisor reads ``retryable`` to choose between another attempt and failure. Any other exception
is a bug in this code base and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DoraError(Exception):
    """An error with a headline, a remedy and a retry decision.

    Args:
        message: one sentence: the cause and the place ("loss 'dppo' is unknown in align.loss.name").
        hint: the next step, allowed values included. Empty only if no action can help.
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
    """Invalid configuration, found before any work starts."""


class DataError(DoraError):
    """Unreadable input data, or too many bad rows; quarantined rows are kept beside the data."""


class ModelError(DoraError):
    """Failure to load, build or use a model or tokenizer as configured."""


class StoreError(DoraError):
    """Unreadable artifact store, or an output that does not match its checksums."""


class TrainingError(DoraError):
    """Training result that must not be used (NaN, wrong reference, fewer steps than planned)."""


class StageFailed(DoraError):
    """Stage job that ended without a valid result; ``message`` carries the error of the first failed worker."""


class RunStopped(DoraError):
    """Run ended by the result of a stage: a violated guard rail, or too much drift in the data. Finished stages are kept.

    Attributes:
        run: the run as it ended, for a summary; set by its flow (:class:`flows.run_record.EndedRun`).
    """

    run: Any


class ServiceError(DoraError):
    """Server (Prefect, MLflow, Ray) that is missing, unreachable or rejects the request."""

    retryable_by_default = True


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return ``"did you mean 'dpo'? allowed: dpo, dpo_pl, lire"``, the end of most hints."""
    names = sorted(map(str, allowed))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    prefix = f"did you mean {close[0]!r}? " if close else ""
    return f"{prefix}allowed: {', '.join(names)}"
