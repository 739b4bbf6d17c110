"""Steps that look at all their records first are exact: the same gradient however records are spread over ranks and micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dora_core.objectives import find_objective
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.training.distributed import Worker
from tests.dora_core.objectives.test_global_batch import RECORDS, distance, flat_gradient, make_task, step_gradient
from tests.ranks import run_ranks

CASES: dict[str, tuple[dict[str, Any], ObjectiveConfig]] = {
    "aot": ({"name": "aot", "beta": 0.2}, ObjectiveConfig(name="erm")),
    "aot responses": ({"name": "aot", "beta": 0.2, "matching": "responses"}, ObjectiveConfig(name="erm")),
    "aot under dora": ({"name": "aot", "beta": 0.2}, ObjectiveConfig(name="dora", lam=0.3)),
    "aot under kldpo": ({"name": "aot", "beta": 0.2}, ObjectiveConfig(name="kldpo", lam=0.3)),
    "lcpo": ({"name": "lcpo", "burn_in": 0.0, "base": {"name": "dpo", "beta": 0.2}}, ObjectiveConfig(name="dora", lam=0.3)),
    "wpo": ({"name": "wpo", "base": {"name": "dpo", "beta": 0.2, "pairs": "all"}}, ObjectiveConfig(name="dora", lam=0.3)),
}


def whole_step(case: str) -> Tensor:
    """Gradient of the closed form over all records at once."""
    loss, objective = CASES[case]
    task = make_task(objective, Worker(), loss=loss)
    records = [task._data[i] for i in range(RECORDS)]
    losses = task._config.loss(task._forward(task.module, records))
    lam = objective.lam if isinstance(objective.lam, float) else 1.0
    find_objective(objective.name)(losses, losses.new_tensor([r.factor for r in records]), lam).backward()
    return flat_gradient(task.module)


@pytest.mark.parametrize("case", sorted(set(CASES) - {"lcpo"}))
def test_micro_batches_do_not_matter(case: str) -> None:
    loss, objective = CASES[case]
    expected = whole_step(case)
    for size in (8, 3, 1):
        assert distance(step_gradient(objective, Worker(), size, loss=loss)[0], expected) <= 1e-10


def _rank_main(worker: Worker, folder: str, cases: list[str]) -> None:
    results = {(case, size): step_gradient(CASES[case][1], worker, size, loss=CASES[case][0]) for case in cases for size in (4, 2)}
    torch.save(results, Path(folder) / f"rank{worker.rank}.pt")


def test_ranks_do_not_matter(tmp_path: Path) -> None:
    """For lcpo the second step reads the rates that the first one's records gave: they belong to the step, not to a rank."""
    run_ranks(_rank_main, str(tmp_path), sorted(CASES))
    for case, (loss, objective) in CASES.items():
        expected, metrics = step_gradient(objective, Worker(), 8, loss=loss)
        assert ("label_noise_human" in metrics) == (loss["name"] == "lcpo")
        for rank in range(2):
            found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
            for size in (4, 2):
                gradient, reported = found[case, size]
                assert distance(gradient, expected) <= 1e-10, (case, rank, size)
                assert reported == pytest.approx(metrics, rel=1e-9, abs=1e-12)
