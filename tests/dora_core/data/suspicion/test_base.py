"""All rules over one run: accepted findings become notes, refusals are raised together, unknown rules are named."""

from __future__ import annotations

import pytest

from dora_core.config.data import DataConfig
from dora_core.data.suspicion import Suspicion, refuse, rules
from dora_core.errors import ConfigError, DataError
from tests.dora_core.data.suspicion.given import seen

BAD = [seen(i, responses=("Wipe it.</s>", "No")) for i in range(3)]


def suspicion(*accept: str) -> Suspicion:
    return Suspicion(DataConfig.model_validate({"train": [{"path": "a"}], "accept": list(accept)}))


def test_a_refusal_names_rows_the_remedy_and_the_line_that_accepts_it() -> None:
    rules_ = suspicion()
    for one in BAD:
        rules_.see(one)
    with pytest.raises(DataError) as caught:
        refuse(rules_.findings())
    assert "3 of 3 records hold special tokens" in caught.value.message and "a.jsonl:0, a.jsonl:1, a.jsonl:2" in caught.value.message
    assert "data.accept: [special_tokens]" in caught.value.hint


def test_an_accepted_finding_is_a_note() -> None:
    rules_ = suspicion("special_tokens")
    for one in BAD:
        rules_.see(one)
    found = {finding.rule: finding.level for finding in rules_.findings()}
    assert found["special_tokens"] == "note"
    refuse(rules_.findings())


def test_a_rule_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        suspicion("special_token")
    assert "did you mean 'special_tokens'?" in caught.value.hint


def test_rules_have_the_names_of_their_files_and_a_next_step() -> None:
    for name, rule in rules().items():
        assert rule.__module__.endswith(f".{name}") and rule.hint and rule.__doc__
