"""The optimisation step is exact: however the global batch is cut up, the gradient is that of the whole batch.

One tiny GPT-2 in float64 (the Llama of transformers normalises in float32 whatever the dtype), eight ragged records, every
objective. The reference gradient is autograd through the closed form (calling the objective) over all eight records at once;
the layouts go through the real training task: 1×8 (one process, one micro-batch), 8×1 (accumulation), 2×4 (two processes),
2×(2×2) (two processes, two micro-batches each).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import TextConfig
from dora_core.data.encoding import Encoder
from dora_core.models.loading import train_tokenizer
from dora_core.models.logprobs import ResponseLogps
from dora_core.objectives import find_objective
from dora_core.objectives.global_batch import GlobalBatch
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.training.alignment import AlignmentTask
from dora_core.training.distributed import Worker, scale_gradients, wrap
from dora_core.training.microbatches import split_step
from tests.dora_core.training_records import alignment_data
from tests.ranks import run_ranks

OBJECTIVES = ["erm", "reweight", "dro", "dora", "dora_outer", "dora_tilted", "dr_dpo", "kldpo"]
RECORDS = 8
Lam = float | str
LAMBDAS: tuple[Lam, ...] = (0.05, 1.0, "auto")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "very", "old", "dog", "run", "home"]


@cache
def tokenizer_of_words() -> transformers.PreTrainedTokenizerBase:
    return train_tokenizer(WORDS, 300)


def make_task(objective: ObjectiveConfig, worker: Worker, unpaired: str | None = None, loss: dict[str, Any] | None = None) -> AlignmentTask:
    """The same weights, records and reference in every process; ``unpaired``: a loss for labels, and every other record is one response."""
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(rng.choice(WORDS, size=n))

    records = [
        {
            "record_id": f"r{i}",
            "prompt": [{"role": "user", "content": text(3)}],
            "responses": [text(int(rng.integers(1, 9))) for _ in range(2 + i % 3)],
            "rewards": [float(r) for r in rng.permutation(2 + i % 3)],
            "sources": [["human", "a-lm", None][(i + j) % 3] for j in range(2 + i % 3)],
        }
        for i in range(RECORDS)
    ]
    if unpaired is not None:
        for i, record in enumerate(records[::2]):
            record |= {name: record[name][:1] for name in ("responses", "sources")} | {"rewards": [i % 2.0], "reward_kind": "label"}
    tokenizer = tokenizer_of_words()
    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(gpt2).double()
    logps = [-5.0 - 40.0 * rng.random() for r in records for _ in r["responses"]]
    factors = rng.gamma(1.0, 1.0, size=RECORDS)
    data = alignment_data(records, factors, logps, Encoder(tokenizer, TextConfig()))
    config = AlignConfig(loss=loss or {"name": unpaired or "dpo_pl", "beta": 0.2}, objective=objective)
    task = AlignmentTask(ResponseLogps(model), [], data, config, Execution(), worker, tokenizer.pad_token_id)
    task._check_reference = lambda batch: None  # the reference here is drawn at random so that scores differ widely
    return task


def flat_gradient(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def step_gradient(
    objective: ObjectiveConfig, worker: Worker, micro_batch_size: int, unpaired: str | None = None, loss: dict[str, Any] | None = None
) -> tuple[Tensor, dict[str, float]]:
    task = make_task(objective, worker, unpaired, loss)
    module = wrap(task.module, "ddp", worker, [])
    metrics = {}
    for step in (1, 2):  # the second step starts from the offset the first one left behind
        module.zero_grad()
        scale, metrics = task.backward(module, split_step([1] * RECORDS, worker.world_size, micro_batch_size)[worker.rank], step)
        scale_gradients(module, scale)
    return flat_gradient(module), metrics


def full_batch_gradient(objective: ObjectiveConfig, unpaired: str | None = None) -> tuple[Tensor, float]:
    task = make_task(objective, Worker(), unpaired)
    records = [task._data[i] for i in range(RECORDS)]
    losses = task._config.loss(task._forward(task.module, records))
    result = find_objective(objective.name)(losses, losses.new_tensor([r.factor for r in records]), objective.lam)
    result.backward()
    return flat_gradient(task.module), result.item()


def distance(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def _rank_main(worker: Worker, folder: str, cases: list[tuple[ObjectiveConfig, int]]) -> None:
    results = [step_gradient(objective, worker, micro) for objective, micro in cases]
    torch.save(results, Path(folder) / f"rank{worker.rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Lam, int], list[tuple[Tensor, dict[str, float]]]]:
    """Gradient and metrics on both ranks for every objective, λ and micro-batch size."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = [(ObjectiveConfig(name=n, lam=lam), micro) for n in OBJECTIVES for lam in LAMBDAS for micro in (4, 2)]
    run_ranks(_rank_main, str(folder), cases)
    ranks = [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]
    return {(c.name, c.lam, micro): [rank[i] for rank in ranks] for i, (c, micro) in enumerate(cases)}


@pytest.fixture(scope="module")
def layouts_of(two_processes) -> Callable[[ObjectiveConfig], dict[str, tuple[Tensor, dict[str, float]]]]:
    """Gradient and metrics by layout, of one objective and λ; computed once."""

    @cache
    def one_process(name: str, lam: Lam) -> dict[str, tuple[Tensor, dict[str, float]]]:
        sizes = {"1x8": 8, "8x1 accumulated": 1, "3+3+2 accumulated": 3}
        return {layout: step_gradient(ObjectiveConfig(name=name, lam=lam), Worker(), size) for layout, size in sizes.items()}

    def found(objective: ObjectiveConfig) -> dict[str, tuple[Tensor, dict[str, float]]]:
        ranks = {micro: two_processes[objective.name, objective.lam, micro] for micro in (4, 2)}
        two = {f"2x{micro} rank {rank}": result for micro, both in ranks.items() for rank, result in enumerate(both)}
        return one_process(objective.name, objective.lam) | two

    return found


@pytest.mark.parametrize("lam", [0.05, 1.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_layout_gives_the_full_batch_gradient(name: str, lam: float, layouts_of) -> None:
    objective = ObjectiveConfig(name=name, lam=lam)
    expected, value = full_batch_gradient(objective)
    layouts = layouts_of(objective)
    errors = {layout: distance(g, expected) for layout, (g, _) in layouts.items()}
    values = {layout: m["objective"] for layout, (_, m) in layouts.items()}
    assert max(errors.values()) <= 1e-10, errors
    assert all(math.isclose(v, value, rel_tol=1e-10) for v in values.values()), (values, value)


@pytest.mark.parametrize("loss", ["kto", "bco"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_beside_pairs_give_the_full_batch_gradient(name: str, loss: str) -> None:
    objective = ObjectiveConfig(name=name, lam=0.2)
    expected, value = full_batch_gradient(objective, loss)
    for micro_batch_size in (8, 3, 1):
        gradient, metrics = step_gradient(objective, Worker(), micro_batch_size, loss)
        assert distance(gradient, expected) <= 1e-10
        assert math.isclose(metrics["objective"], value, rel_tol=1e-10)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_layout_reports_the_same_diagnostics(name: str, lam: Lam, layouts_of) -> None:
    """ESS, heaviest record, normaliser, weight by source and the λ that ``auto`` chose belong to the step, not to its layout."""
    layouts = layouts_of(ObjectiveConfig(name=name, lam=lam))
    (gradient, expected), *others = layouts.values()
    shares = {"weight_share_human", "weight_share_a-lm", "weight_share_unknown"}
    assert shares | {"heaviest_row", "log_normalizer", "weight_ess", "max_weight"} <= set(expected)
    assert ("lambda" in expected) == find_objective(name).uses_lambda
    assert sum(v for k, v in expected.items() if k.startswith("weight_share_")) == pytest.approx(1.0)
    for other_gradient, metrics in others:
        assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert distance(other_gradient, gradient) <= 1e-10


@pytest.mark.parametrize("name", ["dro", "dora", "dora_outer", "dora_tilted", "dr_dpo"])
def test_a_micro_batch_mean_fails_the_same_comparison(name: str) -> None:
    """The behaviour of other code bases: with micro-batches of one, log-mean-exp silently becomes a plain (weighted) mean."""
    expected, _ = full_batch_gradient(ObjectiveConfig(name=name, lam=0.2))
    naive, _ = step_gradient(ObjectiveConfig(name=name, lam=0.2, scope="micro"), Worker(), 1)
    assert distance(naive, expected) > 1e-2


def test_an_unequal_last_micro_batch_breaks_the_naive_mean_even_for_erm() -> None:
    expected, _ = full_batch_gradient(ObjectiveConfig(name="erm"))
    naive, _ = step_gradient(ObjectiveConfig(name="erm", scope="micro"), Worker(), 3)
    exact, _ = step_gradient(ObjectiveConfig(name="erm"), Worker(), 3)
    assert distance(naive, expected) > 1e-2
    assert distance(exact, expected) <= 1e-10


def test_step_report_matches_arithmetic() -> None:
    """h = 1, λ = 1, ℓ = (0, log 3): weights 1:3, so p = (1/4, 3/4), value = log((1 + 3)/2) = log 2, ESS = 1/(2·(1/16 + 9/16)) = 0.8."""
    batch = GlobalBatch(ObjectiveConfig(name="dora"), groups=2, keep_records=True)
    batch.begin(2, 1.0)
    sources = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)  # the second record has responses of both sources
    for i, loss in enumerate((0.0, math.log(3.0))):
        loss_B, one_B = torch.tensor([loss], dtype=torch.float64), torch.ones(1)
        batch.add(loss_B, one_B, one_B.bool(), torch.tensor([70 + i]), sources[i : i + 1])
    batch.exchange()
    report = batch.report()
    assert report.value == pytest.approx(math.log(2.0))
    assert report.loss == pytest.approx(math.log(3.0) / 2)
    assert report.weight_ess == pytest.approx(0.8)
    assert report.max_weight == pytest.approx(0.75)
    assert report.heaviest == 71
    assert report.group_weights == pytest.approx((1 / 4 + 3 / 8, 3 / 8))
    assert report.log_normalizer == pytest.approx(math.log(2.0))
    assert report.records == 2
    losses, factors = batch.gather_records()
    assert losses.tolist() == [0.0, math.log(3.0)]
    assert factors.tolist() == [1.0, 1.0]


def test_scores_far_beyond_float_range_stay_exact() -> None:
    """exp(2000) overflows every float; the moving offset does not: the last record simply takes all the weight."""
    losses = torch.tensor([1.0, 50.0, 2000.0, 1990.0], dtype=torch.float32)
    batch = GlobalBatch(ObjectiveConfig(name="dro"))
    batch.begin(4, 1.0)
    gradient = torch.zeros(4)
    for i in range(4):
        weights, rescale = batch.add(losses[i : i + 1], torch.ones(1), torch.ones(1, dtype=torch.bool))
        if i == 3:
            correction = batch.exchange()
            weights, rescale = weights * correction, rescale * correction
        gradient *= rescale
        gradient[i] = weights.item()
    gradient *= batch.final_scale
    torch.testing.assert_close(gradient, losses.double().softmax(0).float(), rtol=1e-6, atol=1e-30)
    assert batch.report().value == pytest.approx(2000.0 + math.log1p(math.exp(-10.0)) - math.log(4.0))


def test_records_without_a_preference_count_for_nothing() -> None:
    def run(losses: list[float], valid: list[bool]) -> float:
        batch = GlobalBatch(ObjectiveConfig(name="dora"))
        batch.begin(1, 1.0)
        batch.add(torch.tensor(losses), torch.ones(len(losses)), torch.tensor(valid))
        batch.exchange()
        return batch.report().value

    assert run([0.3, 9.0, 0.7], [True, False, True]) == pytest.approx(run([0.3, 0.7], [True, True]))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_reaches_the_training_loop(loss: float) -> None:
    """Which refuses the step with its reason; the report names no heaviest record."""
    batch = GlobalBatch(ObjectiveConfig(name="dora"))
    batch.begin(1, 1.0)
    batch.add(torch.tensor([loss, 0.5]), torch.ones(2), torch.ones(2, dtype=torch.bool), torch.tensor([3, 4]))
    batch.exchange()
    assert not math.isfinite(batch.final_scale) or not math.isfinite(batch.report().value)
    assert batch.report().heaviest is None
