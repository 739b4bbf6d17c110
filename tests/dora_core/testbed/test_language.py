"""The vocabulary of the known mixture can be split into sentences again, and its probabilities are normalised."""

from __future__ import annotations

import itertools
import re

import pytest

from dora_core.testbed import language


def sentences() -> list[str]:
    advice = [form.format(p=phrase) for phrases in language.TOPICS.values() for phrase in phrases for form in language.ADVICE]
    return [*advice, *language.REASONS, *language.FILLER, *language.FLATTERY]


def test_sentences_are_distinct_and_end_as_the_parser_expects() -> None:
    texts = sentences() + [text for text, _, _ in (*language.OPENERS, *language.CLOSERS) if text]
    assert len(set(texts)) == len(texts)
    assert all(re.fullmatch(r"[^.!]+[.!]", text) for text in texts)


def test_prompts_are_distinct() -> None:
    prompts = [
        ask.format(t=topic, a=audience, c=context)
        for topic, ask, audience, context in itertools.product(language.TOPICS, language.ASKS, language.AUDIENCES, language.CONTEXTS)
    ]
    assert len(set(prompts)) == len(prompts) == 16 * 4 * 12 * 8


@pytest.mark.parametrize("parts", [language.OPENERS, language.CLOSERS])
def test_openers_and_closers_have_probabilities(parts: tuple[tuple[str, float, int], ...]) -> None:
    assert sum(probability for _, probability, _ in parts) == pytest.approx(1.0)
    assert parts[0][0] == "", "index 0 stands for none in the parser"


def test_every_topic_has_three_pieces_of_advice() -> None:
    assert {len(phrases) for phrases in language.TOPICS.values()} == {3}
