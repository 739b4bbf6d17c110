"""Checks of the policy's files at plan time, before anything heavy runs: tokenizer and configurations, no weights.

One function per subject, listed in :data:`CHECKS`; each refuses a model that could not be trained as configured, and returns lines for the
plan. The tiny policy has no files before it is trained, and nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dora_core.models.model_files import ModelFiles
from flows.config.models import RealignConfig


class Described(NamedTuple):
    """Findings of one check, or of all.

    Attributes:
        lines: facts about the model, one line each, for the plan.
        notes: doubts, one sentence each, which become notes of the run.
    """

    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


ModelCheck = Callable[[ModelFiles, RealignConfig], Described]
"""Raises ModelError, DataError or ConfigError where a run would fail or be wrong."""

CHECKS: tuple[ModelCheck, ...] = ()


def describe_policy(config: RealignConfig) -> Described:
    """Run all checks on the pinned policy of ``config``; nothing for ``tiny``.

    Raises:
        ModelError, DataError, ConfigError: of the first check that refuses.
    """
    if config.policy.is_tiny:
        return Described()
    files = ModelFiles(config.policy)
    found = [check(files, config) for check in CHECKS]
    return Described(tuple(line for one in found for line in one.lines), tuple(note for one in found for note in one.notes))
