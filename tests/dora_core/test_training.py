"""The loop: data order, learning rate, resume, and the failures it must name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dora_core.config import Execution, OptimizationConfig, TextConfig
from dora_core.distributed import Worker
from dora_core.errors import TrainingError
from dora_core.logprobs import ResponseLogps
from dora_core.microbatches import split_step
from dora_core.sft import SftTask
from dora_core.text import Encoder
from dora_core.training import FolderHooks, Schedule, fit

EXAMPLES = [([{"role": "user", "content": "the cat"}], f"sat on {w} mat") for w in ("a", "one", "the", "very", "old")]


def sft_task(policy, tokenizer, examples=EXAMPLES) -> SftTask:
    return SftTask(ResponseLogps(policy), [], examples, Encoder(tokenizer, TextConfig()), Worker(), tokenizer.pad_token_id)


def test_each_epoch_visits_every_record_once_in_a_new_order() -> None:
    schedule = Schedule(10, OptimizationConfig(epochs=2, batch_size=4))
    assert schedule.steps == 6
    epochs = [[i for s in range(e * 3, e * 3 + 3) for i in schedule.indices(s)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_learning_rate_by_hand() -> None:
    # 10 steps, 2 of warm-up: ½, 1, then cosine over 8 steps: step 6 is half way: ½
    schedule = Schedule(10, OptimizationConfig(batch_size=1, learning_rate=1.0, warmup_fraction=0.2))
    assert [schedule.learning_rate(s) for s in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_sft_loss_is_the_mean_over_tokens_for_any_micro_batch(policy, tokenizer) -> None:
    examples = [([{"role": "user", "content": "a"}], t) for t in ("dog", "one very old dog run home and sat on the mat", "cat sat")]
    norms = []
    for size in (1, 2, 3):
        task = sft_task(policy, tokenizer, examples)
        scale, metrics = task.backward(task.module, split_step([1] * 3, 1, size)[0], 0)
        norms.append((metrics["loss"], scale * float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()]))))
        policy.zero_grad()
    assert norms[1:] == [pytest.approx(norms[0], rel=1e-5)] * 2


def test_a_killed_run_resumes_to_the_same_weights(policy, tokenizer, tmp_path: Path) -> None:
    """Stop after the checkpoint at step 4 of 10, start again from disk: bit-identical to a run that was never stopped."""
    config = OptimizationConfig(epochs=5, batch_size=3, learning_rate=1e-2)
    start = {k: v.clone() for k, v in policy.state_dict().items()}

    class Killed(Exception):
        pass

    class DiesAtStepSix(FolderHooks):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            if step == 6:
                raise Killed

    def run(hooks: FolderHooks):
        policy.load_state_dict(start)
        return fit(sft_task(policy, tokenizer), config, Execution(checkpoint_every=4), Worker(), hooks)

    whole = run(FolderHooks(tmp_path / "whole"))
    expected = {k: v.clone() for k, v in policy.state_dict().items()}
    with pytest.raises(Killed):
        run(DiesAtStepSix(tmp_path / "killed"))
    resumed = run(FolderHooks(tmp_path / "killed"))
    assert (whole.resumed_from, resumed.resumed_from) == (None, 4)
    assert resumed.curve["loss"] == whole.curve["loss"]
    assert len(resumed.curve["loss"]) == resumed.steps == 10
    for name, weight in policy.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert resumed.curve["loss"][-1] < resumed.curve["loss"][0]


def test_a_gradient_that_is_not_finite_stops_with_a_remedy(policy, tokenizer, tmp_path: Path) -> None:
    task = sft_task(policy, tokenizer)
    with torch.no_grad():
        policy.lm_head.weight[0, 0] = math.inf
    with pytest.raises(TrainingError, match="not finite at step 0") as error:
        fit(task, OptimizationConfig(), Execution(), Worker(), FolderHooks(tmp_path))
    assert "learning_rate" in error.value.hint


def test_no_records_is_an_error_before_any_step(policy, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no training records"):
        fit(sft_task(policy, tokenizer, []), OptimizationConfig(), Execution(), Worker(), FolderHooks(tmp_path))
