"""`dora judge`: options become settings of the kind of judge, mistakes are named. Its scores: ``files/test_judging.py``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from dora_core.config.judging import Judge
from flows.cli.judge import JudgeKind
from tests.flows.cli.files.commands import write
from tests.flows.cli.invoked import assert_help, assert_wrong


@pytest.fixture
def responses(own_home: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "samples.jsonl", [{"prompt": "Why?", "response": "Because."}])


def test_help_has_an_example_and_the_options() -> None:
    assert_help("judge", "--judge", "--model", "--reference", "--against", "--endpoint")


def test_the_kinds_are_those_of_the_configuration() -> None:
    assert {kind.value for kind in JudgeKind} == {config.model_fields["kind"].default for config in get_args(get_args(Judge)[0])}


def test_a_judge_is_needed_and_must_be_known(responses: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    assert_wrong("judge", responses, "-o", output, says="Missing option '--judge'")
    assert_wrong(
        "judge", responses, "-o", output, "--judge", "human", says="'human' is not one of 'gold', 'reward_model', 'implicit', 'llm'"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--judge", "llm", "--model", "x"], "asks a server: give its address in execution.endpoint.url"),
        (["--judge", "implicit", "--model", "m", "--set", "judge.betta=1"], "did you mean"),
    ],
)
def test_a_judge_without_its_settings_is_refused(options: list[str], says: str, responses: Path, tmp_path: Path) -> None:
    assert_wrong("judge", responses, "-o", tmp_path / "scores.jsonl", *options, says=says)
    assert not (tmp_path / "scores.jsonl").exists()
