"""Self-training rounds as a plan: what follows what, for each strategy; and how a stage's finding ends a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.config.judging import ImplicitJudge
from dora_core.errors import ConfigError
from flows.config.loading import load_config
from flows.config.models import SelfTrainConfig
from flows.planning.plan import build_plan
from flows.planning.planned_stage import Plan
from infra.store.store import Store
from tasks.runtime.stage import StageRef
from tests.flows.planning.test_plan import finish

BASE = ["ingest", "drift", "classify", "calibrate", "sft", "reference", "training_data", "align"]
HELD_OUT = ["generate held-out", "judge held-out"]
FIRST = [*BASE, "reward", *HELD_OUT, "generate start", "judge start", "judge chosen", "compare", "evaluate"]
SAMPLED = ["generate", "guard samples", "judge", "mix"]
LEARNED = ["classify", "calibrate", "guard mixture", "reference", "training_data", "align"]
JUDGED = [*HELD_OUT, "compare", "evaluate", "guard policy"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def load(folder: Path, data: Path, *overrides: str) -> SelfTrainConfig:
    (folder / "c.yaml").write_text(f"project: demo\ndata: {{train: [{{path: {data}}}]}}\n")
    return load_config(folder / "c.yaml", ["rounds.rounds=2", *overrides], SelfTrainConfig)


def specs(plan: Plan) -> dict[str, object]:
    return {stage.label: stage.spec for stage in plan.stages}


def test_every_stage_of_every_round_is_known_beforehand(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture), store)
    rounds = [f"r{k} {label}" for k in (1, 2) for label in (*SAMPLED, *LEARNED, *JUDGED)]
    assert [s.label for s in plan.stages] == [*FIRST, *rounds, "promote"]
    assert {s.label: s.round for s in plan.stages} == dict.fromkeys(FIRST, 0) | {r: int(r[1]) for r in rounds} | {"promote": None}
    assert len({s.digest for s in plan.stages}) == len(plan.stages)


def test_a_round_goes_on_from_the_last_policy_and_is_judged_against_the_first_start(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture), store)
    by, upstream = specs(plan), {s.label: plan.upstream(s) for s in plan.stages}
    assert by["r2 generate"].policy == by["r1 align"].ref() == by["r2 align"].start == by["r2 reference"].start
    assert by["r2 align"].reference == by["r2 reference"].ref() and by["r2 align"].records == by["r2 mix"].ref()
    assert by["r1 generate"].generate.seed != by["r2 generate"].generate.seed and by["r1 generate"].split == "train"
    for label in ("evaluate", "r1 evaluate", "r2 evaluate"):
        assert (
            by[label].start == by["sft"].ref() and by[label].reference == by["reference"].ref() and by[label].records == by["ingest"].ref()
        )
    assert upstream["r2 mix"] == ["ingest", "r1 align", "r2 generate", "r2 judge"]
    assert upstream["r2 guard samples"] == ["r1 generate", "r2 generate"]
    assert upstream["r1 guard policy"] == ["evaluate", "r1 evaluate"]
    assert upstream["promote"] == ["r2 align", "r2 evaluate"]


def test_earlier_rounds_are_mixed_in_on_request(tmp_path: Path, mixture: Path, store: Store) -> None:
    by = specs(build_plan(load(tmp_path, mixture, "rounds.mix.earlier_rounds=true"), store))
    assert by["r2 mix"].samples == [by["r1 generate"].ref(), by["r2 generate"].ref()]
    assert by["r2 mix"].policies == [by["align"].ref(), by["r1 align"].ref()] and list(by["r2 mix"].rounds()) == [1, 2]


def test_raft_is_supervised_on_the_best_sample(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture, "rounds.strategy=raft"), store)
    assert [s.label for s in plan.stages if s.round == 1] == [f"r1 {label}" for label in (*SAMPLED, "guard mixture", "sft", *JUDGED)]
    tuned = specs(plan)["r1 sft"]
    assert tuned.start == specs(plan)["align"].ref() and tuned.sft.data == "best" and tuned.records == specs(plan)["r1 mix"].ref()


def test_selfie_labels_by_the_policy_itself(tmp_path: Path, mixture: Path, store: Store) -> None:
    by = specs(build_plan(load(tmp_path, mixture, "rounds.strategy=selfie", "compare=null"), store))
    judge = by["r2 judge"]
    assert isinstance(judge.judge, ImplicitJudge) and judge.model == by["r1 align"].ref() and judge.reference == by["sft"].ref()
    assert "reward" not in by


def test_an_endpoint_writes_under_its_own_name(tmp_path: Path, mixture: Path, store: Store) -> None:
    endpoint = "execution.generate={endpoint: {url: 'http://127.0.0.1:9/v1'}}"
    by = specs(build_plan(load(tmp_path, mixture, "generate={samples: 2, served_model: teacher}", endpoint), store))
    assert by["r1 generate"].policy is None and by["r1 generate"].execution.endpoint is not None
    assert by["r1 mix"].policies == [None]
    assert by["r1 generate held-out"].policy == by["r1 align"].ref() and by["r1 generate held-out"].execution.endpoint is None


def test_objectives_without_factors_fit_no_classifiers_in_any_round(tmp_path: Path, mixture: Path, store: Store) -> None:
    plan = build_plan(load(tmp_path, mixture, "align.objective.name=erm"), store)
    assert not {s.stage for s in plan.stages} & {"drift", "classify", "calibrate"}
    assert plan.upstream(next(s for s in plan.stages if s.label == "r1 guard mixture")) == ["r1 mix"]


def test_a_champion_that_is_the_policy_itself_is_compared_with_its_predecessor(tmp_path: Path, mixture: Path, store: Store) -> None:
    """So that running again after a promotion finds everything done."""
    from flows.planning.specs import Chain, pinned

    chain = Chain(pinned(load(tmp_path, mixture)), {})
    old, older, policy = (StageRef(stage="align", digest=c * 64) for c in "abc")
    start = chain.start()
    assert chain.compare(policy, start, [policy, old]) == chain.compare(policy, start, [old, older])
    assert chain.compare(policy, start, [policy]) == chain.compare(policy, start, []) != chain.compare(policy, start, [old])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generate.samples=1", "generate.samples: must be at least 2"),
        ("generate.prompts=5", "rounds.prompts is the number of"),
        ("evaluate.twins=[erm]", "evaluate.twins compare one alignment"),
        ("generate.served_model=teacher", "asks a server: give its address in execution.generate.endpoint.url"),
        ("judge={kind: llm, model: x}", "execution.judge.endpoint.url"),
        ("rounds.strategy=rafft", "did you mean 'raft'?"),
        ("rounds.mix.given_fraction=1", "rounds.mix.given_fraction: must be less than 1"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(tmp_path: Path, mixture: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, mixture, override)
    assert message in caught.value.message


def test_the_reason_names_what_changed_in_a_round(tmp_path: Path, mixture: Path, store: Store) -> None:
    finish(store, build_plan(load(tmp_path, mixture), store))
    reasons = {s.label: s.reason for s in build_plan(load(tmp_path, mixture, "generate.temperature=0.5"), store).stages}
    assert reasons["r1 generate"] == "runs: generate.temperature 1.0 → 0.5"
    assert reasons["r1 mix"] == "runs: r1 generate, r1 judge changed" and reasons["align"].startswith("cached")
    assert reasons["r2 mix"] == "runs: r2 generate, r2 judge, r1 align changed"
