"""Guard rails of a self-training round: what stops it, at which figure, and what it says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from dora_core.config.method import GenerateConfig
from dora_core.config.rounds import GuardConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import generate, guard
from tests.tasks.conftest import IN_PROCESS, TEXT, TINY
from tests.tasks.facts import calibration, evaluated, mixture
from tests.tasks.handmade import finished

WORDS = [f"word{i}" for i in range(200)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def sampled(store: Store, name: str, responses: list[list[str]]) -> StageRef:
    """A generate stage with these samples per prompt."""
    hashes = [i + 1 for i, of_prompt in enumerate(responses) for _ in of_prompt]
    table = pa.table({"prompt_hash": pa.array(hashes, pa.uint64()), "response": [y for of_prompt in responses for y in of_prompt]})
    return finished(store, "generate", name, {"samples.parquet": table}, spec={"generate": {"samples": len(responses[0])}})


def texts(seed: int, prompts: int = 60, samples: int = 4, words: int = 200) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [[" ".join(rng.choice(WORDS[:words], 12)) for _ in range(samples)] for _ in range(prompts)]


def guarded(store: Store, config: GuardConfig | None = None, **evidence: StageRef | None) -> dict[str, Any]:
    return execute(guard.Spec(round=2, guard=config or GuardConfig(), **evidence), guard.run, store)["facts"]


def broken(facts: dict[str, Any]) -> list[str]:
    return [rule["name"] for rule in facts["rules"] if rule["passed"] is False]


# --------------------------------------------------------------------------------------------------------------- samples


def test_healthy_samples_pass_and_their_figures_are_shown(store):
    facts = guarded(store, samples=sampled(store, "now", texts(1)), first_samples=sampled(store, "first", texts(2)))
    assert facts["passed"] and facts["stop"] is None and {rule["passed"] for rule in facts["rules"]} == {True}
    assert [rule["name"] for rule in facts["rules"]] == ["distinct", "self_bleu", "one_answer"]
    assert facts["diversity"]["samples"] == 240 and facts["diversity"]["mean_length"] == 12.0
    assert facts["diversity"]["self_bleu"] == facts["rules"][1]["value"] < 0.3


def test_one_answer_for_all_is_stopped_with_every_broken_rule_named(store):
    same = [["I cannot help with that."] * 4] * 60
    facts = guarded(store, samples=sampled(store, "now", same), first_samples=sampled(store, "first", texts(2)))
    assert broken(facts) == ["distinct", "self_bleu", "one_answer"] and not facts["passed"]
    message = facts["stop"]["message"]
    assert message.startswith("round 2 is stopped by its guard rails: ")
    assert "self-BLEU of a prompt's samples is 1.000, 100% of them repeat an earlier one; at most 0.95" in message
    assert "100% of 60 prompts have the same most common answer; at most 0.5" in message
    assert all(f"rounds.guard.{key}" in facts["stop"]["hint"] for key in ("min_distinct", "max_self_bleu", "max_one_answer"))


def test_greedy_samples_of_different_prompts_break_self_bleu_alone(store):
    greedy = [[of_prompt[0]] * 4 for of_prompt in texts(1)]
    facts = guarded(store, samples=sampled(store, "now", greedy), first_samples=sampled(store, "first", texts(2)))
    assert broken(facts) == ["self_bleu"] and "raise generate.temperature (0 is greedy)" in facts["stop"]["hint"]


def test_a_lost_vocabulary_is_seen_against_round_1(store):
    facts = guarded(store, samples=sampled(store, "now", texts(1, words=12)), first_samples=sampled(store, "first", texts(2)))
    assert broken(facts) == ["distinct"] and "% of round 1's" in facts["stop"]["message"]
    first = guarded(store, samples=sampled(store, "now", texts(1, words=12)))
    assert first["passed"] and first["rules"][0]["passed"] is None and first["rules"][0]["value"] > 0


def test_distinct_compares_as_many_prompts(store):
    """Ten times the samples have fewer distinct bigrams each; that is no loss."""
    vocabulary = GuardConfig(min_distinct=0.9)
    many, few = texts(1, prompts=250, words=30), texts(2, prompts=25, words=30)
    facts = guarded(store, vocabulary, samples=sampled(store, "now", many), first_samples=sampled(store, "first", few))
    assert facts["passed"] and facts["diversity"]["prompts"] == 25


def test_a_single_sample_is_judged_by_what_it_can_show(store):
    facts = guarded(store, samples=sampled(store, "now", [[y] for (y, *_) in texts(1)]), first_samples=sampled(store, "first", texts(2)))
    (rule,) = (rule for rule in facts["rules"] if rule["name"] == "self_bleu")
    assert (rule["value"], rule["passed"], rule["message"]) == (None, None, "one sample a prompt: self-BLEU needs two")


def test_samples_of_a_policy_at_temperature_0_are_stopped(pipeline_start, tmp_path):
    """The real stages: the same policy, greedy and not."""
    root, records, start, _ = pipeline_start
    shutil.copytree(root, tmp_path / "store")
    store = Store(str(tmp_path / "store"))

    def samples(temperature: float) -> StageRef:
        drawn = GenerateConfig(samples=3, temperature=temperature, max_new_tokens=16)
        spec = generate.Spec(records=records, policy=start, model=TINY, text=TEXT, generate=drawn, split="eval", execution=IN_PROCESS)
        execute(spec, generate.run, store)
        return spec.ref()

    assert guarded(store, samples=samples(1.0))["passed"]
    assert "self_bleu" in broken(guarded(store, samples=samples(0.0)))


# ---------------------------------------------------------------------------------------------------- mixture and policy


@pytest.mark.parametrize(("share", "stops"), [(0.05, False), (0.049, True)])
def test_golden_share_at_its_floor(store, share, stops):
    facts = guarded(store, mix=finished(store, "mix", "m", {}, facts=mixture(golden_share=share)))
    assert (broken(facts) == ["golden_share"]) is stops and facts["diversity"] is None


@pytest.mark.parametrize(("ess", "stops"), [(0.2, False), (0.19, True)])
def test_ess_at_its_floor(store, ess, stops):
    facts = guarded(
        store, calibration=finished(store, "calibrate", "c", {}, facts=calibration(ess=ess, tau=0.5, ess_by_form={"mixture": 0.11}))
    )
    assert (broken(facts) == ["ess"]) is stops
    assert "tempered with τ = 0.50 from 11.0%" in facts["rules"][0]["message"]


@pytest.mark.parametrize(("kl", "stops"), [(15.0, False), (15.5, True)])
def test_kl_budget(store, kl, stops):
    facts = guarded(store, evaluation=finished(store, "evaluate", "e", {}, facts=evaluated({}, kl)))
    assert (broken(facts) == ["kl"]) is stops
    assert f"KL(policy‖start) is {kl:.2f} nats per response; at most 15" in facts["rules"][0]["message"]


def regression(store: Store, before: dict[str, tuple[float, int]], now: dict[str, tuple[float, int]], **config: Any) -> dict[str, Any]:
    stages = {
        "before": finished(store, "evaluate", "before", {}, facts=evaluated(before)),
        "evaluation": finished(store, "evaluate", "now", {}, facts=evaluated(now)),
    }
    facts = guarded(store, GuardConfig(**config), **stages)
    return next(rule for rule in facts["rules"] if rule["name"] == "source_regression") | {"broken": broken(facts)}


def test_a_source_that_got_worse_stops_the_round(store):
    rule = regression(store, {"human": (0.8, 400), "bot": (0.7, 400)}, {"human": (0.55, 400), "bot": (0.75, 400)})
    error = np.sqrt(sum(p * (1 - p) / 400 for p in ((0.8 * 400 + 1) / 402, (0.55 * 400 + 1) / 402)))
    assert rule["broken"] == ["source_regression"] and rule["value"] == pytest.approx(0.25 - 1.645 * error)
    assert "ranking accuracy of human went from 0.800 to 0.550 on 400 prompts, a fall of 0.1" in rule["message"]


def test_the_same_fall_on_few_prompts_may_be_chance(store):
    rule = regression(store, {"human": (0.8, 25)}, {"human": (0.6, 25)})
    assert rule["broken"] == [] and rule["passed"] is True and rule["value"] < 0.1


def test_small_and_vanished_sources_are_not_judged(store):
    rule = regression(store, {"tiny": (0.9, 19), "gone": (0.9, 400)}, {"tiny": (0.1, 19), "new": (0.1, 400)})
    assert (rule["value"], rule["passed"]) == (None, None) and "no source has 20 held-out prompts" in rule["message"]
    assert regression(Store(str(store.local_root) + "-2"), {"tiny": (0.9, 19)}, {"tiny": (0.1, 19)}, min_source_prompts=10)["broken"]


# ------------------------------------------------------------------------------------------------------------- the stage


def test_a_rule_that_is_off_shows_its_figure(store):
    off = GuardConfig(max_self_bleu=None, max_one_answer=None, min_distinct=None)
    facts = guarded(store, off, samples=sampled(store, "now", [["Yes."] * 2] * 9), first_samples=sampled(store, "first", texts(2)))
    assert facts["passed"] and {rule["passed"] for rule in facts["rules"]} == {None}
    assert [rule["value"] for rule in facts["rules"]][1:] == [1.0, 1.0] and all("not judged" in rule["message"] for rule in facts["rules"])


def test_a_guard_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="nothing to guard"):
        guard.Spec(round=1, guard=GuardConfig())
