"""The question about a promotion."""

from __future__ import annotations

from dataclasses import replace

from flows.running.question import Question, Suspends

QUESTION = Question(model="m", version="2", digest="d" * 64, champion="1", deadline=0.0, text="?")


def test_another_champion_or_evaluation_makes_it_another_question() -> None:
    keys = {QUESTION.key, replace(QUESTION, champion=None).key, replace(QUESTION, champion="3").key, replace(QUESTION, digest="e" * 64).key}
    assert len(keys) == 4 and replace(QUESTION, deadline=9.0, text="later").key == QUESTION.key


def test_form_and_answer_have_inputs_of_their_own() -> None:
    assert QUESTION.inputs["schema"] != QUESTION.inputs["response"] and QUESTION.key in QUESTION.inputs["response"]


def test_it_names_the_commands_and_the_version() -> None:
    assert "dora promote m 2" in QUESTION.commands() and "dora reject m 2" in QUESTION.commands()
    assert str(Suspends(QUESTION)) == "waits for a decision about version 2 of m" and Suspends(QUESTION).question is QUESTION
