"""The chain of specs: inputs by digest, labels of stages on demand and of rounds, equal specs once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.config.judging import GoldJudge, RewardModelJudge
from dora_core.config.method import GenerateConfig, ModelConfig, OptimizationConfig
from dora_core.errors import ModelError
from dora_core.models.loading import train_tokenizer
from flows.config.models import RealignConfig, SelfTrainConfig
from flows.planning.specs import CHAMPION_STREAM, START_STREAM, Chain, pinned
from tasks.runtime.stage import StageRef

POLICY, REFERENCE = StageRef(stage="align", digest="a" * 64), StageRef(stage="reference", digest="b" * 64)


def config(**keys: Any) -> RealignConfig:
    return RealignConfig.model_validate({"project": "demo", "data": {"train": [{"path": "x"}]}, **keys})


def rounds(**keys: Any) -> SelfTrainConfig:
    return SelfTrainConfig.model_validate({"project": "demo", "data": {"train": [{"path": "x"}]}, **keys})


def chain(**keys: Any) -> Chain:
    return Chain(config(**keys), {"x": "f" * 64})


def test_a_chain_starts_with_its_data() -> None:
    made = chain()
    assert list(made.specs) == ["ingest"] and made.records == made.given == made.specs["ingest"].ref()
    assert Chain(config(), {"x": "0" * 64}).given != made.given, "the bytes of the files count"
    assert made.round is None and Chain(rounds(), {}).round == 0


def test_an_equal_spec_is_there_once() -> None:
    made = chain()
    generate = GenerateConfig()
    first = made.generate("generate", POLICY, "eval", generate)
    assert made.generate("generate again", POLICY, "eval", generate) == first
    assert made.generate("generate more", POLICY, "eval", generate.evolve(seed=5)) != first
    assert list(made.specs) == ["ingest", "generate", "generate more"]


def test_a_stage_on_demand_comes_before_its_reader_with_its_label() -> None:
    made = chain()
    start = made.start()
    reference = made.reference(start)
    made.align(start, reference, None)
    made.align(start, reference, None, "align (other)", config().align.evolve(optimization=OptimizationConfig(seed=9)))
    assert list(made.specs) == ["ingest", "sft", "reference", "training_data", "align", "align (other)"]
    assert made.specs["align"].inputs()["reference"] == reference and made.specs["sft"].inputs() == {"records": made.records}


def test_labels_carry_the_round_from_the_first_one_on() -> None:
    made = Chain(rounds(), {})
    made.raft(POLICY, OptimizationConfig())
    made.round = 1
    made.raft(POLICY, OptimizationConfig(seed=3))
    assert list(made.specs) == ["ingest", "sft", "r1 sft"] and made.rounds == {"ingest": 0, "sft": 0, "r1 sft": 1}


def test_without_a_supervised_start_nothing_is_added() -> None:
    made = chain(sft={"enabled": False}, policy={"source": "folder"})
    assert made.start() is None and list(made.specs) == ["ingest"]


def test_a_reward_model_is_trained_only_for_a_judge_without_weights() -> None:
    made = chain()
    assert made.reward_model(GoldJudge(), None) is None
    assert made.reward_model(RewardModelJudge(model=ModelConfig(source="folder")), None) is None
    assert list(made.specs) == ["ingest"]
    trained = made.reward_model(RewardModelJudge(), POLICY)
    assert trained == made.specs["reward"].ref() and made.specs["reward"].inputs()["start"] == POLICY


def test_opponents_draw_their_own_random_numbers() -> None:
    made = chain()
    made.compare(POLICY, made.start(), [StageRef(stage="align", digest="c" * 64)])
    seeds = {label: made.specs[label].generate.seed for label in ("generate", "generate start", "generate champion")}  # type: ignore[attr-defined]
    seed = seeds["generate"]
    assert seeds == {"generate": seed, "generate start": seed + START_STREAM, "generate champion": seed + CHAMPION_STREAM}


def test_without_a_comparison_nothing_is_added() -> None:
    made = chain(compare=None)
    assert made.compare(POLICY, None, []) is None and list(made.specs) == ["ingest"]


def test_guard_rails_belong_to_rounds() -> None:
    with pytest.raises(AssertionError, match="guard rails need self-training rounds"):
        chain().guard("guard")


def test_a_model_is_pinned_by_its_weights(tmp_path: Path) -> None:
    train_tokenizer(["the cat sat on a mat"], 300).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    named = config(policy={"source": str(tmp_path)})
    before = pinned(named)
    assert before.policy != named.policy and pinned(config()) == config(), "a tiny model has no weights yet"
    (tmp_path / "model.safetensors").write_bytes(b"others!")
    assert pinned(named).policy != before.policy
    with pytest.raises(ModelError):
        pinned(config(policy={"source": str(tmp_path / "nothing")}))


def test_trust_reaches_the_alignment_by_its_setting() -> None:
    def aligned(apply: str, calibration: StageRef | None) -> tuple[Any, StageRef]:
        made = chain(trust={"apply": apply})
        trust = made.value(calibration)
        made.align(None, REFERENCE, calibration, label="align")
        return made.specs["align"], trust

    h = StageRef(stage="calibrate", digest="c" * 64)
    off, _ = aligned("off", h)
    soft, trust = aligned("soft_label", None)
    weight, weighed = aligned("weight", h)
    assert off.trust is None
    assert (soft.trust, soft.trust_use) == (trust, "soft_label") and (weight.trust, weight.trust_use) == (weighed, "weight")
    assert soft.preparation()["data"].trust == trust
    assert chain(trust={"apply": "weight"}).config.needs_valuation and not chain().config.needs_valuation


def test_a_twin_without_h_is_not_weighed() -> None:
    made = chain(trust={"apply": "weight"})
    made.value(None)
    made.align(None, REFERENCE, None, label="align twin")
    assert made.specs["align twin"].trust is None  # type: ignore[attr-defined]


def test_benchmarks_ask_the_start_once_and_the_policy(tmp_path: Path) -> None:
    task = tmp_path / "toy.yaml"
    task.write_text("task: toy\n")
    made = chain(benchmarks={"tasks": ["arc_easy", str(task)]})
    evaluation = made.evaluate(None, REFERENCE, POLICY)
    assert list(made.specs) == ["ingest", "benchmarks start", "benchmarks", "evaluate"]
    assert set(made.specs["evaluate"].inputs()) >= {"benchmarks.start", "benchmarks.policy"}
    assert made.specs["benchmarks start"].inputs() == {} and made.specs["benchmarks"].inputs() == {"policy": POLICY}
    task.write_text("task: toy\ntag: changed\n")
    again = chain(benchmarks={"tasks": ["arc_easy", str(task)]})
    assert again.evaluate(None, REFERENCE, POLICY) != evaluation, "the content of a task's file counts"
