"""A promotion that is decided on a terminal: a real pseudo-terminal, with a person's keystrokes in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from rich.console import Console

from flows.cli.decide import ask_here
from flows.running.approval import Question
from infra.tracking.mlflow_client import user_name
from tasks.stages.promote import Answer

QUESTION = Question(
    "demo", "2", "d" * 64, "1", 0.0, "### Promote version 2 of `demo`?\n\n| rule | |\n| --- | --- |\n| KL at most 50: 0.6 | met |"
)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    master, slave = os.openpty()
    with open(slave, closefd=True) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield lambda keys: os.write(master, keys.encode())
    os.close(master)


def test_the_evaluation_is_shown_and_a_reason_is_asked_until_there_is_one(typed: Callable[[str], None]) -> None:
    typed("maybe\nreject\n\nno\ntoo   long\n")
    shown = StringIO()
    answer = ask_here(Console(file=shown, force_terminal=True, width=100), QUESTION)
    assert answer == Answer(approve=False, who=user_name(), why="too long", champion="1")
    assert "Promote version 2" in shown.getvalue() and "KL at most 50" in shown.getvalue()


def test_later_decides_nothing(typed: Callable[[str], None]) -> None:
    typed("\n")
    assert ask_here(Console(file=StringIO(), force_terminal=True), QUESTION) is None


def test_without_a_keyboard_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr(sys, "stdin", StringIO("approve\nreads well\n"))
    assert ask_here(Console(file=shown, force_terminal=True), QUESTION) is None and shown.getvalue() == ""


def test_one_question_per_champion_and_the_commands_that_decide_it() -> None:
    assert QUESTION.key == f"{'d' * 12}-1" and QUESTION.inputs["response"] == f"suspended-{'d' * 12}-1-response"
    assert QUESTION.commands() == "dora promote demo 2 --why …, or: dora reject demo 2 --why …"
