"""The reward stage on a tiny realignment, in one process and on Ray, there with the judge that it trains."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from dora_core.config.execution import Execution
from dora_core.config.judging import RewardModelJudge, RewardTrainingConfig
from dora_core.config.method import LoraConfig, ModelConfig, OptimizationConfig
from dora_core.errors import DataError
from infra.store.store import Store, sha256_file
from tasks.runtime.stage import execute
from tasks.stages import reward
from tests.tasks.judged import Start, judge_spec, records_of, reward_spec, scores_of


@pytest.fixture
def store(pipeline_start: Start, tmp_path: Path) -> Store:
    shutil.copytree(pipeline_start[0], tmp_path / "store")
    return Store(str(tmp_path / "store"))


def golden_pairs(records: list[dict]) -> int:
    responses = [list(zip(r["rewards"], r["sources"], strict=True)) for r in records]
    trusted = [[reward for reward, source in row if source == "human"] for row in responses]
    return sum(a != b for row in trusted for a, b in itertools.combinations(row, 2))


def test_a_reward_model_learns_every_pair_and_reports_its_accuracy(pipeline_start: Start, store: Store) -> None:
    spec = reward_spec(pipeline_start)
    result = execute(spec, reward.run, store)
    facts, metrics = result["facts"], result["metrics"]
    assert facts["curve"]["loss"][0] == pytest.approx(np.log(2), abs=0.1)
    assert len(facts["curve"]["step"]) == facts["steps"] and {"loss", "accuracy", "margin", "grad_norm"} <= facts["curve"].keys()
    assert metrics["accuracy_train"] > 0.75
    for split in ("train", "eval"):
        rewards = [r["rewards"] for r in records_of(store, pipeline_start, split)]  # without ties, all measured
        assert metrics[f"pairs_{split}"] == sum(a != b for row in rewards for a, b in itertools.combinations(row, 2))
    # What the judge makes of the held-out records agrees with the accuracy that the stage reports on them.
    scores = scores_of(store, judge_spec(pipeline_start, RewardModelJudge(), model=spec.ref()))
    rows = [(score, label) for score, label in zip(scores, itertools.chain.from_iterable(rewards), strict=True)]
    of_records = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    hits = [np.mean([(s > t) == (a > b) for (s, a), (t, b) in itertools.combinations(record, 2) if a != b]) for record in of_records]
    assert facts["accuracy"]["eval"]["value"] == pytest.approx(np.mean(hits))
    assert facts["accuracy"]["eval"]["n"] == len(hits)


def test_golden_data_is_pairs_of_golden_sources_alone(pipeline_start: Start, store: Store) -> None:
    spec = reward_spec(pipeline_start, data="golden")
    result = execute(spec, reward.run, store)
    for split in ("train", "eval"):
        assert result["metrics"][f"pairs_{split}"] == golden_pairs(records_of(store, pipeline_start, split)) > 0
    assert "is not shown to be above chance" in result["facts"]["warnings"][0], "five held-out pairs cannot show it"
    nobody = reward_spec(pipeline_start, data="golden", golden_sources=["editor"])
    with pytest.raises(DataError, match=r"no training record has two measured responses of golden sources \(editor\)") as error:
        execute(nobody, reward.run, store)
    assert "training.data: all" in error.value.hint


@pytest.mark.parametrize(("enough", "data"), [(1, "golden"), (10_000, "all")])
def test_auto_asks_whether_golden_pairs_are_enough(
    pipeline_start: Start, store: Store, monkeypatch: pytest.MonkeyPatch, enough: int, data: str
) -> None:
    monkeypatch.setattr(reward, "GOLDEN_PAIRS", enough)
    facts = execute(reward_spec(pipeline_start, data="auto"), reward.run, store)["facts"]
    assert facts["data"] == data and any("bias of their labels" in line for line in facts["warnings"]) == (data == "all")


def test_the_tiny_reward_model_needs_a_trained_start(pipeline_start: Start) -> None:
    with pytest.raises(ValidationError, match="give the sft stage"):
        reward_spec(pipeline_start, start=None)


def test_adapters_are_merged_and_the_head_is_trained_whole(pipeline_start: Start, store: Store) -> None:
    from dora_core.models.loading import grow_reward_model, load_reward_model

    training = RewardTrainingConfig(
        data="all", optimization=OptimizationConfig(epochs=4, batch_size=8, learning_rate=1e-2, lora=LoraConfig(rank=4))
    )
    model = ModelConfig(source=str(store.fetch("sft", pipeline_start[2].digest) / "model"))
    spec = reward_spec(pipeline_start, Execution(workers=0, gradient_checkpointing=True), start=None, model=model, training=training)
    facts = execute(spec, reward.run, store)["facts"]
    assert facts["curve"]["loss"][-1] < facts["curve"]["loss"][0]
    folder = store.fetch("reward", spec.digest()) / "model"
    assert not list(folder.glob("adapter*"))
    before, after = grow_reward_model(model)[0].state_dict(), load_reward_model(folder)[0].state_dict()
    changed = {name for name in before if name != "score.weight" and not np.allclose(before[name], after[name])}
    assert changed and all("_proj" in name for name in changed), "the trunk changes where adapters were, and nowhere else"
    assert after["score.weight"].norm() > before["score.weight"].norm()


@pytest.mark.component
def test_on_ray_it_is_the_same_model_and_the_same_scores(pipeline_start: Start, store: Store, tmp_path: Path, ray_cluster: None) -> None:
    """Two training workers make the steps of one process, up to rounding; two actors write the bytes of one process."""
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    other, results = Store(str(tmp_path / "other")), []
    for place, workers in ((store, 0), (other, 2)):
        execution = Execution(workers=workers, micro_batch_size=2)
        results.append(execute(reward_spec(pipeline_start, execution), reward.run, place)["facts"])
    one, two = (facts["curve"] for facts in results)
    for name in ("loss", "margin", "grad_norm"):
        assert two[name] == pytest.approx(one[name], abs=1e-3), name
    assert results[1]["accuracy"]["train"]["value"] == pytest.approx(results[0]["accuracy"]["train"]["value"], abs=0.02)

    trained, files = reward_spec(pipeline_start).ref(), []
    shutil.rmtree(tmp_path / "other" / "reward")
    shutil.copytree(tmp_path / "store" / "reward", tmp_path / "other" / "reward")
    for place, workers in ((store, 0), (other, 2)):
        spec = judge_spec(pipeline_start, RewardModelJudge(), Execution(workers=workers, shard_rows=40), model=trained, split="train")
        scores_of(place, spec)
        files.append(sha256_file(place.fetch("judge", spec.digest()) / "scores.parquet"))
    assert files[0] == files[1]
