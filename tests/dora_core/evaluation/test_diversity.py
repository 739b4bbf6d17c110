"""Distinct-n, self-BLEU and collapse over prompts against arithmetic by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.evaluation.diversity import distinct, diversity, self_bleu, tokens


def test_tokens_are_words_marks_and_single_characters_of_unspaced_scripts():
    assert tokens("It's fine, naïve 2x!") == ["It", "'", "s", "fine", ",", "naïve", "2x", "!"]
    assert tokens("我爱 Python。") == ["我", "爱", "Python", "。"]
    assert tokens("Привет мир") == ["Привет", "мир"] and tokens(" \n") == []


def test_distinct_by_hand():
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4  # ab ba ab | ab
    assert distinct(texts, 3) == 2 / 2
    assert distinct(texts, 5) is None


def test_self_bleu_by_hand():
    """2 of x's 4 unigrams are in y, 1 of 3 bigrams, no tri- and no fourgram; one is added from order 2 on; y is shorter than x."""
    x, y = ["the", "cat", "sat", "here"], ["the", "cat", "ran"]
    of_x = (2 / 4 * (1 + 1) / (3 + 1) * 1 / (2 + 1) * 1 / (1 + 1)) ** (1 / 4)
    of_y = math.exp(1 - 4 / 3) * (2 / 3 * (1 + 1) / (2 + 1) * 1 / (1 + 1)) ** (1 / 3)
    assert self_bleu([x, y]) == pytest.approx((of_x + of_y) / 2)


def test_counts_are_clipped_by_the_largest_count_among_the_others():
    """Of 'a a a' two unigrams count, as the second text has two, one bigram and no trigram; the others are wholly covered."""
    first = (2 / 3 * (1 + 1) / (2 + 1) * (0 + 1) / (1 + 1)) ** (1 / 3)
    second = 1.0  # two tokens; of the references of one and three the shorter is the closest, so nothing is taken off
    third = math.exp(1 - 2 / 1)  # one token against two
    assert self_bleu([["a"] * 3, ["a"] * 2, ["a"]]) == pytest.approx((first + second + third) / 3)


def test_same_texts_have_self_bleu_1_and_disjoint_ones_0():
    assert self_bleu([["x", "y", "z"]] * 4) == 1.0 and self_bleu([["x"]] * 2) == 1.0 and self_bleu([[]] * 2) == 1.0
    assert self_bleu([["a", "b"], ["c", "d"]]) == 0.0
    assert self_bleu([["a"]]) is None


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=2, max_size=5))
def test_self_bleu_is_a_share_and_does_not_depend_on_order(texts):
    value = self_bleu(texts)
    assert 0.0 <= value <= 1.0 + 1e-12
    assert value == pytest.approx(self_bleu(texts[::-1]))


def test_diversity_of_collapses():
    greedy = diversity([["One answer here."] * 3, ["Quite another one."] * 3])
    assert (greedy.self_bleu, greedy.identical, greedy.one_answer) == (1.0, 1.0, 0.5)
    everywhere = diversity([["I cannot say.", "I cannot say.", "Well, no."]] * 4)
    assert everywhere.one_answer == 1.0 and everywhere.identical == 0.5
    healthy = diversity([["red apples taste sweet", "boats sail slowly"], ["green hills", "a stone bridge over water"]])
    assert (healthy.identical, healthy.one_answer, healthy.distinct_2, healthy.self_bleu) == (0.0, 0.5, 1.0, 0.0)
    assert (healthy.prompts, healthy.samples, healthy.mean_length) == (2, 4, 14 / 4)


def test_what_one_sample_or_one_prompt_cannot_say_is_none():
    one = diversity([["hello"]])
    assert (one.self_bleu, one.identical, one.one_answer, one.distinct_2, one.distinct_1) == (None, None, None, None, 1.0)
