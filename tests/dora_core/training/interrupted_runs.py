"""A short training that can be killed and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.models.logprobs import ResponseLogps
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.sft import SftTask

EXAMPLES = [([{"role": "user", "content": "the cat"}], f"sat on {w} mat") for w in ("a", "one", "the", "very", "old")]


def sft_task(policy, tokenizer, examples=EXAMPLES) -> SftTask:
    return SftTask(ResponseLogps(policy), [], examples, Encoder(tokenizer, TextConfig()), Worker(), tokenizer.pad_token_id)


class Killed(BaseException):
    """Stands for the death of a process: nothing in the loop may catch it."""


class DiesAtStepTen(FolderHooks):
    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step == 10:
            raise Killed


class Run:
    """Twelve steps of the same training, from the same weights every time; a checkpoint after 4 and 8."""

    config = OptimizationConfig(epochs=6, batch_size=3, learning_rate=1e-2)

    def __init__(self, policy, tokenizer):
        self.policy, self.tokenizer = policy, tokenizer
        self._start = {k: v.clone() for k, v in policy.state_dict().items()}

    def __call__(self, hooks: FolderHooks, run: str = "mine"):
        """(report, weights)."""
        self.policy.load_state_dict(self._start)
        report = fit(sft_task(self.policy, self.tokenizer), self.config, Execution(checkpoint_every=4), Worker(), hooks, run=run)
        return report, {k: v.clone() for k, v in self.policy.state_dict().items()}

    def interrupted(self, folder: Path) -> FolderHooks:
        """Killed in step 10, after the checkpoints of 4 and 8."""
        with pytest.raises(Killed):
            self(DiesAtStepTen(folder))
        return FolderHooks(folder)


def assert_same(run: tuple, whole: tuple) -> None:
    """The same weights to the last bit, the same losses, every planned step."""
    (report, weights), (expected_report, expected) = run, whole
    assert report.curve["loss"] == expected_report.curve["loss"]
    assert len(report.curve["loss"]) == report.steps == 12
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
