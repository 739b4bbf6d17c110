"""The alignment task: its records, the reference check, and a preference that is learned."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig
from dora_core.errors import DataError, TrainingError
from dora_core.training.alignment import REFERENCE_TOLERANCE, mismatch_hint
from dora_core.training.alignment_data import choose_responses
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit
from tests.dora_core.training.alignment_tasks import RECORDS, UNPAIRED, make_data, make_task


def test_only_records_with_a_preference_train_and_factors_stay_with_them(policy, tokenizer) -> None:
    data = make_data(policy, tokenizer)
    assert (len(data), data.dropped) == (3, 2)
    first = data[0]
    assert [tokenizer.decode(r.response_ids) for r in first.responses] == ["sat<eos>", "on<eos>"], "best first, the unmeasured one left out"
    assert [data[i].factor for i in range(3)] == pytest.approx([0.5, 0.875, 2.0])


def test_long_lists_keep_best_worst_and_even_ranks() -> None:
    assert choose_responses([5.0, 1.0, 4.0, math.nan, 3.0, 2.0], 3) == [0, 4, 1]


def test_all_tied_is_refused_with_the_column_to_map(policy, tokenizer) -> None:
    with pytest.raises(DataError, match="none of 1 training records has a preference") as error:
        make_data(policy, tokenizer, records=[RECORDS[2]])
    assert "columns.rewards" in error.value.hint


def test_a_foreign_reference_is_noticed_at_the_first_step(policy, tokenizer, tmp_path: Path) -> None:
    task = make_task(policy, tokenizer, make_data(policy, tokenizer, shift=3.0))
    with pytest.raises(TrainingError, match="policy and reference differ"):
        fit(task, OptimizationConfig(), Execution(), Worker(), FolderHooks(tmp_path))


@pytest.mark.parametrize(
    ("change", "gap", "dropout", "first"),
    [
        ({}, 3.0, 0.0, "the reference log-probabilities belong to another model"),
        ({}, 0.4, 0.1, "the model drops out at a rate of 0.1"),
        ({"lora": {"dropout": 0.05}}, 0.4, 0.1, "lora.dropout = 0.05"),
        ({"precision": "bfloat16"}, 0.8, 0.0, "bfloat16 rounds in another way"),
        ({"precision": "bfloat16"}, 9.0, 0.0, "the reference log-probabilities"),  # too much for rounding
        ({"precision": "bfloat16"}, math.nan, 0.0, "the start's log-probabilities are not numbers in bfloat16"),
    ],
)
def test_the_likeliest_cause_of_a_difference_comes_first(change: dict, gap: float, dropout: float, first: str) -> None:
    config = AlignConfig.model_validate({"optimization": change})
    hint = mismatch_hint(config, gap, REFERENCE_TOLERANCE[config.optimization.precision], dropout)
    assert hint.startswith(first) and "delete the output of the stage reference" in hint


@pytest.mark.parametrize("seed", [20251130093000, 2**53 - 1])
def test_any_seed_that_a_configuration_accepts_trains(policy, tokenizer, tmp_path: Path, seed: int) -> None:
    task = make_task(policy, tokenizer, make_data(policy, tokenizer))
    optimization = OptimizationConfig(seed=seed, max_steps=2, batch_size=2)
    report = fit(task, optimization, Execution(), Worker(), FolderHooks(tmp_path))
    assert len(report.curve["objective"]) == 2


def test_alignment_raises_the_preferred_response(policy, tokenizer, tmp_path: Path) -> None:
    task = make_task(policy, tokenizer, make_data(policy, tokenizer))
    report = fit(task, OptimizationConfig(epochs=15, batch_size=3, learning_rate=3e-3), Execution(), Worker(), FolderHooks(tmp_path))
    assert report.curve["accuracy"][-1] == 1.0
    assert report.curve["objective"][-1] < report.curve["objective"][0]
    assert report.curve["margin"][0] == pytest.approx(0.0, abs=1e-4), "policy equals reference before the first step"


@pytest.mark.parametrize("loss", ["kto", "bco"])
@pytest.mark.parametrize("records", [UNPAIRED, [*RECORDS, *UNPAIRED]], ids=["unpaired", "mixed"])
def test_labels_are_learned_alone_and_beside_pairs(policy, tokenizer, tmp_path: Path, loss: str, records: list[dict]) -> None:
    data = make_data(policy, tokenizer, records=records)
    assert data.unpaired == 2
    task = make_task(policy, tokenizer, data, loss=loss)
    report = fit(task, OptimizationConfig(epochs=25, batch_size=5, learning_rate=3e-3), Execution(), Worker(), FolderHooks(tmp_path))
    assert report.curve["accuracy"][-1] == 1.0 and report.curve["margin"][-1] > 0.1
    assert report.curve["margin"][0] == pytest.approx(0.0, abs=1e-4)
    last = task._forward(task.module, [data[i] for i in range(len(data))])
    lr = last.log_ratios_BN[last.unpaired_B, 0].tolist()
    assert lr[0] > 0 > lr[1], "the desirable response has become more likely, the undesirable one less"


def test_a_loss_that_compares_responses_refuses_labels(policy, tokenizer) -> None:
    with pytest.raises(DataError, match=r"2 of 7 training records are unpaired .* align.loss.name: dpo_pl"):
        make_task(policy, tokenizer, make_data(policy, tokenizer, records=[*RECORDS, *UNPAIRED]))


def test_label_probabilities_are_soft_labels_in_training(policy, tokenizer) -> None:
    """q = ½ leaves dpo no direction to push a pair in; q of the other records keeps theirs. `ignore` trains as if none were given."""
    soft = [RECORDS[0] | {"label_probability": 0.5}, RECORDS[1] | {"label_probability": 0.8}, RECORDS[4]]
    data = make_data(policy, tokenizer, records=soft)
    assert data.uncertain == 2 and [data[i].label_probability for i in range(3)] == [0.5, 0.8, 1.0]
    task = make_task(policy, tokenizer, data, loss="dpo")
    batch = task._forward(task.module, [data[i] for i in range(3)])
    leaf = batch.policy_logps_BN.detach().requires_grad_()
    task._config.loss(dataclasses.replace(batch, policy_logps_BN=leaf)).sum().backward()
    # at the reference ∂ℓ/∂lr_best = −β(2q − 1)/2
    assert leaf.grad[:, 0].tolist() == pytest.approx([0.0, -0.1 * 0.6 / 2, -0.1 / 2], abs=1e-6)
    ignoring = make_task(policy, tokenizer, data, loss="dpo", label_probability="ignore")
    assert ignoring._forward(task.module, [data[0]]).label_probability_B is None


def test_a_loss_on_lists_refuses_label_probabilities_until_told_to_ignore_them(policy, tokenizer) -> None:
    data = make_data(policy, tokenizer, records=[r | {"label_probability": 0.9} for r in RECORDS])
    with pytest.raises(DataError, match=r"3 of 5 training records have a label_probability below 1, and align.loss.name: rrhf"):
        make_task(policy, tokenizer, data, loss="rrhf")
    make_task(policy, tokenizer, data, loss="rrhf", label_probability="ignore")


def test_noise_rates_are_reported_and_go_on_after_an_interruption(policy, tokenizer, tmp_path: Path) -> None:
    """lcpo: 12 steps at once, and 12 with a checkpoint after 8 from which a new task goes on, end with the same rates."""
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    loss = {"name": "lcpo", "burn_in": 0.25, "initial_noise": 0.2, "base": {"name": "dpo", "beta": 1.0}}
    settings = OptimizationConfig(epochs=12, batch_size=3, learning_rate=3e-3)
    execution = Execution(checkpoint_every=8)
    reports = []
    for _ in range(2):  # the second starts from the first one's checkpoint
        policy.load_state_dict(start)
        task = make_task(policy, tokenizer, make_data(policy, tokenizer), loss=loss, optimization=settings)
        reports.append(fit(task, settings, execution, Worker(), FolderHooks(tmp_path)))
    assert [report.resumed_from for report in reports] == [None, 8]
    rates = [report.curve["label_noise_human"] for report in reports]
    assert rates[0] == rates[1]
    assert set(rates[0][:3]) == {0.2}, "a burn-in of a quarter of 12 steps"
    assert 0 < rates[0][-1] < 0.2 and rates[0][3:] == sorted(rates[0][3:], reverse=True), "the labels agree with the policy more and more"
