"""Guard rails as a list: each has a remedy and a threshold, chance alone does not break one, and a new one is one function."""

from __future__ import annotations

import numpy as np
import pytest

from dora_core.config.rounds import GuardConfig
from dora_core.evaluation.diversity import diversity
from tasks.stages import _guard_rules, evaluate, mix
from tasks.stages._guard_rules import GUARD_RAILS, Evidence, Found, Policy, Samples, guard_rail
from tests.tasks.facts import evaluated, mixture


def test_chance_alone_seldom_stops_a_round():
    """Equal policies, five sources of 60 prompts, measured on other prompts each time."""
    rng = np.random.default_rng(0)
    stops = 0
    for _ in range(1000):
        now, before = ({f"s{i}": (float(rng.binomial(60, 0.65) / 60), 60) for i in range(5)} for _ in range(2))
        evidence = Evidence(policy=Policy(*(evaluate.Facts.model_validate(evaluated(side)) for side in (now, before))))
        rule = GUARD_RAILS["source_regression"].judge(GuardConfig(), evidence)
        assert rule is not None
        stops += rule.passed is False
    assert stops / 1000 < 0.02


def test_rules_have_remedies():
    assert all(rail.remedy for rail in GUARD_RAILS.values())
    keys = {rail.key for rail in GUARD_RAILS.values()}
    assert keys == set(GuardConfig.model_fields) - {"min_source_prompts"}


def test_a_rule_without_its_evidence_is_left_out():
    assert [name for name, rail in GUARD_RAILS.items() if rail.judge(GuardConfig(), Evidence()) is not None] == []
    samples = Samples(diversity([["a b c", "a b d"], ["e f", "e g"]]), None)
    shown = [name for name, rail in GUARD_RAILS.items() if rail.judge(GuardConfig(), Evidence(samples=samples)) is not None]
    assert shown == ["distinct", "self_bleu", "one_answer"]


def test_a_new_rule_is_one_function(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_guard_rules, "GUARD_RAILS", {})

    @guard_rail(needs="mix", at_least="min_golden_share", remedy="raise it")
    def half(config: GuardConfig, mixture: mix.Facts) -> Found:
        return Found(mixture.golden_share / 2, f"half is {mixture.golden_share / 2:.2f}")

    evidence = Evidence(mix=mix.Facts.model_validate(mixture(golden_share=0.08)))
    rule = _guard_rules.GUARD_RAILS["half"].judge(GuardConfig(), evidence)
    assert rule is not None and (rule.passed, rule.message) == (False, "half is 0.04; at least 0.05")
