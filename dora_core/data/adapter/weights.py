"""Weights of several scores that differ by prompt: read from the row, or drawn for the prompt; and the text that states them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dora_core.config.adapter import ScoresLabel
from dora_core.config.goals import SampledWeights, WeightColumn
from dora_core.data.adapter.labels import Compile, list_value
from dora_core.data.adapter.messages import Message
from dora_core.data.adapter.numbers import NotANumber, to_number
from dora_core.data.problems import Problem, Reason, problem
from dora_core.data.records import canonical_json

DIGITS = 2
"""Decimals of weights: the reward is computed with the numbers that the prompt states."""


class PromptWeights:
    """Weights of one label by prompt."""

    def __init__(self, label: ScoresLabel, compile_path: Compile):
        assert isinstance(label.weights, WeightColumn | SampledWeights) and label.say is not None
        self._count, self._say, self._weights = len(label.scores), label.say, label.weights
        self._path = compile_path(label.weights.column) if isinstance(label.weights, WeightColumn) else None

    @classmethod
    def of(cls, label: Any, compile_path: Compile) -> PromptWeights | None:
        """Weights of a label; None where they are the same for all prompts, or there are none."""
        by_prompt = isinstance(label, ScoresLabel) and isinstance(label.weights, WeightColumn | SampledWeights)
        return cls(label, compile_path) if by_prompt else None

    def __call__(self, row: dict[str, Any], prompt: list[Message], problems: list[Problem]) -> list[float] | None:
        """The weights of one row; None after a problem."""
        if self._path is None:
            assert isinstance(self._weights, SampledWeights)
            return sampled_weights(prompt, self._count, self._weights.sampled, self._weights.seed)
        before = len(problems)
        values = list_value(self._path.get(row), self._path, problems)
        if len(problems) > before:
            return None
        if values is None or len(values) != self._count:
            detail = f"{len(values or ())} weights for {self._count} scores"
            problems.append(problem(self._path.text, Reason.LENGTH_MISMATCH, detail))
            return None
        try:
            numbers = [to_number(value) for value in values]
        except NotANumber as error:
            problems.append(problem(self._path.text, Reason.NOT_A_NUMBER, str(error)))
            return None
        found = [round(number, DIGITS) for number in numbers if number is not None]
        if len(found) < self._count or not any(found):
            problems.append(problem(self._path.text, Reason.NOT_A_NUMBER, "has a weight that is null, or only zeros"))
            return None
        return found

    def said(self, weights: list[float]) -> str:
        """The text that states the weights."""
        return self._say.format(**{f"w{i}": f"{weight:.{DIGITS}f}" for i, weight in enumerate(weights, 1)})


def sampled_weights(prompt: list[Message], count: int, concentration: float, seed: int) -> list[float]:
    """Weights from a symmetric Dirichlet distribution, of the prompt and the seed alone; at least one is above 0."""
    digest = hashlib.sha256(f"{seed} {canonical_json(prompt)}".encode()).digest()
    drawn = np.random.default_rng(int.from_bytes(digest[:8], "big")).dirichlet([concentration] * count)
    return [round(float(weight), DIGITS) for weight in drawn]
