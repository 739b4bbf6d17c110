"""From tables to training records, the reference check, and sharded training (FSDP2) against one process."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.errors import DataError, TrainingError
from dora_core.models.loading import build_policy, train_tokenizer
from dora_core.models.logprobs import ResponseLogps, score_responses
from dora_core.training.alignment import AlignmentTask
from dora_core.training.alignment_data import AlignmentData, choose_responses
from dora_core.training.distributed import Worker, full_weights
from dora_core.training.loop import FolderHooks, fit
from tests.dora_core.training_records import alignment_data

RECORDS = [
    {"record_id": "a", "prompt": "cat", "responses": ["sat", "ran far", "on"], "rewards": [1.0, None, 0.0]},
    {"record_id": "b", "prompt": "dog", "responses": ["home", "mat"], "rewards": [0.0, 2.0]},
    {"record_id": "tie", "prompt": "dog", "responses": ["home", "run"], "rewards": [1.0, 1.0]},
    {"record_id": "null", "prompt": "old", "responses": ["home", "one"], "rewards": [None, 1.0]},
    {"record_id": "c", "prompt": "one", "responses": ["very", "old", "dog"], "rewards": [3.0, 2.0, 1.0]},
]


def make_data(policy, tokenizer, shift: float = 0.0, records: list[dict] | None = None) -> AlignmentData:
    """Reference log-probabilities are those of ``policy`` itself, plus ``shift``."""
    rows = [
        r | {"prompt": [{"role": "user", "content": r["prompt"]}], "sources": ["human", None, "a-lm"][: len(r["responses"])]}
        for r in records or RECORDS
    ]
    encoder = Encoder(tokenizer, TextConfig())
    encoded = [encoder.encode(r["prompt"], y) for r in rows for y in r["responses"]]
    logps = score_responses(ResponseLogps(policy), encoded, tokenizer.pad_token_id, 4096, torch.device("cpu"))
    return alignment_data(rows, np.linspace(0.5, 2.0, len(rows)), [x + shift for x in logps], encoder)


def make_task(policy, tokenizer, data: AlignmentData, worker: Worker | None = None, execution: Execution | None = None) -> AlignmentTask:
    config = AlignConfig(loss={"name": "dpo_pl"}, objective={"name": "dora"})
    layers = list(policy.model.layers)
    return AlignmentTask(ResponseLogps(policy), layers, data, config, execution or Execution(), worker or Worker(), tokenizer.pad_token_id)


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


def test_alignment_raises_the_preferred_response(policy, tokenizer, tmp_path: Path) -> None:
    task = make_task(policy, tokenizer, make_data(policy, tokenizer))
    report = fit(task, OptimizationConfig(epochs=15, batch_size=3, learning_rate=3e-3), Execution(), Worker(), FolderHooks(tmp_path))
    assert report.curve["accuracy"][-1] == 1.0
    assert report.curve["objective"][-1] < report.curve["objective"][0]
    assert report.curve["margin"][0] == pytest.approx(0.0, abs=1e-4), "policy equals reference before the first step"


STEPS = 6


def _train(worker: Worker, strategy: str, folder: Path) -> tuple[int | None, dict[str, torch.Tensor]]:
    """(step of the checkpoint it went on from, weights) after six steps; leaves checkpoints of 2 and 4: call again to resume."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([w for r in RECORDS for w in (r["prompt"], *r["responses"])] * 3, 300)
    policy = build_policy(ModelConfig(hidden_size=32, layers=2, heads=2), tokenizer, 64)
    execution = Execution(strategy=strategy, micro_batch_size=1, checkpoint_every=2)
    task = make_task(policy, tokenizer, make_data(policy, tokenizer), worker, execution)
    report = fit(task, OptimizationConfig(epochs=STEPS, batch_size=3, learning_rate=1e-3), execution, worker, FolderHooks(folder))
    assert len(report.curve["loss"]) == report.steps == STEPS and not report.warnings
    return report.resumed_from, full_weights(task.module)


def _rank_main(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for strategy in ("ddp", "fsdp"):
        results = [_train(Worker.current(), strategy, Path(folder) / checkpoints) for checkpoints in (strategy, "alone")]
        if rank == 0:
            torch.save(results, Path(folder) / f"{strategy}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | None, dict[str, torch.Tensor]]]:
    """One process and two, replicated and sharded; and each gone on with from the checkpoint of the other number of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    trainings = {"alone": _train(Worker(), "ddp", folder / "alone")}
    mp.spawn(_rank_main, (str(folder),), nprocs=2)
    for strategy in ("ddp", "fsdp"):
        trainings[strategy], trainings[f"alone, then {strategy}"] = torch.load(folder / f"{strategy}.pt", weights_only=True)
        trainings[f"{strategy}, then alone"] = _train(Worker(), "ddp", folder / strategy)
    return trainings


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To float32 rounding after six steps: 1e-4 of the largest weight."""
    gap = max((got[k] - expected[k]).abs().max().item() for k in expected)
    assert gap < 1e-4 * max(w.abs().max().item() for w in expected.values())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_replicated_or_sharded_train_like_one(strategy: str, trainings) -> None:
    assert trainings[strategy][0] is trainings["alone"][0] is None
    assert_close(trainings[strategy][1], trainings["alone"][1])


@pytest.mark.fault(21)
@pytest.mark.parametrize("change", ["ddp, then alone", "alone, then ddp", "fsdp, then alone", "alone, then fsdp"])
def test_another_number_of_processes_goes_on_from_the_same_checkpoint(change: str, trainings) -> None:
    assert trainings[change][0] == 4
    assert_close(trainings[change][1], trainings["alone"][1])
