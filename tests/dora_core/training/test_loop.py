"""The loop: data order, learning rate, resume, and the failures it must name."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import transformers
from torch.distributed.checkpoint import FileSystemWriter

from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, OptimizationConfig
from dora_core.errors import TrainingError
from dora_core.models.adapters import add_lora
from dora_core.training.checkpoints import PROGRESS
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, OutOfMemory, Schedule, fit
from tests.dora_core.training.interrupted_runs import DiesAtStepTen, Killed, Run, assert_same, sft_task


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


@pytest.fixture
def run(policy, tokenizer) -> Run:
    return Run(policy, tokenizer)


def test_a_killed_run_resumes_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    whole = run(FolderHooks(tmp_path / "whole"))
    resumed = run(run.interrupted(tmp_path / "killed"))
    assert (whole[0].resumed_from, resumed[0].resumed_from) == (None, 8)
    assert_same(resumed, whole)
    assert resumed[0].warnings == []
    assert resumed[0].curve["loss"][-1] < resumed[0].curve["loss"][0]


def test_a_killed_run_with_dropout_in_its_adapters_resumes_to_the_same_weights(policy, tokenizer, tmp_path: Path) -> None:
    run = Run(add_lora(policy, LoraConfig(rank=2, dropout=0.3)), tokenizer)
    whole = run(FolderHooks(tmp_path / "whole"))
    hooks = run.interrupted(tmp_path / "killed")
    assert_same(run(hooks), whole)


@pytest.mark.fault(5)
def test_a_checkpoint_that_was_being_written_is_passed_over_and_swept_away(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 8, when the weights are on disk and the table of contents is not."""
    whole = run(FolderHooks(tmp_path / "whole"))
    finish = FileSystemWriter.finish

    def dies_the_second_time(self, metadata, results) -> None:
        if Path(self.path).name == "step-8":
            raise Killed
        finish(self, metadata, results)

    monkeypatch.setattr(FileSystemWriter, "finish", dies_the_second_time)
    with pytest.raises(Killed):
        run(FolderHooks(tmp_path / "killed"))
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "killed" / "step-8").iterdir()] == ["__0_0.distcp"]
    (tmp_path / "killed" / "step-7").mkdir()  # and one of an attempt with another `checkpoint_every`
    resumed = run(FolderHooks(tmp_path / "killed"))
    assert resumed[0].resumed_from == 4
    assert_same(resumed, whole)
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {"step-4", "step-8"}


@pytest.mark.fault(23)
def test_a_damaged_checkpoint_costs_steps_and_nothing_else(run: Run, tmp_path: Path) -> None:
    """The newest is damaged: the one before it is used. Both are: training begins again. The report says so, through another death."""
    whole = run(FolderHooks(tmp_path / "whole"))
    hooks = run.interrupted(tmp_path / "run")
    shard = tmp_path / "run" / "step-8" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    for folder in ("one", "both"):
        shutil.copytree(tmp_path / "run", tmp_path / folder)
    (tmp_path / "both" / "step-4" / ".metadata").unlink()

    resumed = run(run.interrupted(tmp_path / "one"))
    assert resumed[0].resumed_from == 8, "of the checkpoint that replaced the damaged one"
    assert len(resumed[0].warnings) == 1 and "step-8 was not used: __0_0.distcp is damaged" in resumed[0].warnings[0]
    assert_same(resumed, whole)
    again = run(FolderHooks(tmp_path / "both"))
    assert again[0].resumed_from is None and len(again[0].warnings) == 2
    assert_same(again, whole)
    assert len(hooks.checkpoints()) == 2


@pytest.mark.fault(19, 23)
def test_a_foreign_checkpoint_is_never_gone_on_from(run: Run, tmp_path: Path) -> None:
    """One of another run, further on than ours will ever be, does not push ours out either."""
    whole = run(FolderHooks(tmp_path / "whole"))
    with pytest.raises(Killed):
        run(DiesAtStepTen(tmp_path / "foreign"), run="another")
    for step in (4, 8):
        shutil.copytree(tmp_path / "foreign" / f"step-{step}", tmp_path / "mine" / f"step-{1000 + step}")
    resumed = run(run.interrupted(tmp_path / "mine"))
    assert resumed[0].resumed_from == 8
    assert [w.partition(" was not used: ")[2].partition(";")[0] for w in resumed[0].warnings] == ["it is of another run: other run"] * 2
    assert_same(resumed, whole)


def tokens_fit(module: torch.nn.Module, most: int) -> None:
    """As if the accelerator's memory held activations of so many tokens."""

    def check(_, args) -> None:
        if args[0].ids_S.numel() > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. {args[0].ids_S.numel()} tokens")

    module.register_forward_pre_hook(check)


@pytest.mark.fault(3)
def test_out_of_memory_says_which_budget_to_go_on_with_and_the_result_is_the_same(tokenizer, tmp_path: Path) -> None:
    """Each time half of the largest micro-batch, from the last checkpoint; in float64 the weights agree to 1e-9."""
    start = gpt2(tokenizer).state_dict()
    config = OptimizationConfig(epochs=4, batch_size=5, learning_rate=1e-3)

    def train(folder: str, budget: int, most: int | None = None):
        model = gpt2(tokenizer)
        model.load_state_dict(start)
        task = sft_task(model, tokenizer)
        if most is not None:
            tokens_fit(task.module, most)
        execution = Execution(checkpoint_every=1).model_copy(update={"micro_batch_tokens": budget})
        report = fit(task, config, execution, Worker(), FolderHooks(tmp_path / folder))
        return report, model.state_dict(), sorted(task.tokens)

    _, expected, tokens = train("whole", 8192)
    assert tokens == [10, 10, 10, 10, 11]
    budgets = [8192]
    while len(budgets) < 5:
        try:
            report, weights, _ = train("small", budgets[-1], most=11)
            break
        except OutOfMemory as error:
            assert f"to {error.budget}:" in error.hint
            budgets.append(error.budget)
    assert budgets == [8192, 51 // 2, 21 // 2], "all five records, then the longest with another, then each alone"
    assert len(report.curve["loss"]) == report.steps == 4
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.fault(3)
def test_halving_ends_where_it_cannot_help(policy, tokenizer, tmp_path: Path) -> None:
    def refusal(execution: Execution, exact: bool = True) -> TrainingError:
        task = sft_task(policy, tokenizer)
        task.exact = exact
        tokens_fit(task.module, 0)
        with pytest.raises(TrainingError) as error:
            fit(task, OptimizationConfig(), execution, Worker(), FolderHooks(tmp_path))
        return error.value

    alone = refusal(Execution(micro_batch_size=1))
    assert not isinstance(alone, OutOfMemory) and "of 1 records" in alone.message and "gradient_checkpointing" in alone.hint
    coupled = refusal(Execution(), exact=False)
    assert not isinstance(coupled, OutOfMemory) and "objective.scope" in coupled.hint


def gpt2(tokenizer) -> transformers.PreTrainedModel:
    """float64 throughout: the Llama of transformers normalises in float32 for any dtype."""
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config).double()


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


@pytest.mark.fault(33)
def test_a_clock_that_is_set_back_does_not_hide_the_last_checkpoint(tmp_path: Path) -> None:
    hooks = FolderHooks(tmp_path)
    for step in (2, 4, 6):
        hooks.save(lambda folder: (folder / PROGRESS).touch(), step)
        if step == 2:
            later = time.time_ns() + 3600 * 10**9
            os.utime(tmp_path / "step-2" / PROGRESS, ns=(later, later))  # it was written before the clock was set back
    assert [folder.name for folder in hooks.checkpoints()] == ["step-6", "step-4"]


@pytest.mark.fault(30)
def test_notice_of_a_preemption_saves_a_checkpoint_at_once(run: Run, tmp_path: Path) -> None:
    """At step 3; the run's own checkpoints come every fourth step."""

    class Leaving(FolderHooks):
        saved: ClassVar[list[int]] = []

        def leaves(self, done: int) -> bool:
            return done == 3

        def save(self, folder_writer: Callable[[Path], None], step: int) -> None:
            self.saved.append(step)
            super().save(folder_writer, step)

    run(Leaving(tmp_path))
    assert Leaving.saved[:3] == [3, 4, 8]
