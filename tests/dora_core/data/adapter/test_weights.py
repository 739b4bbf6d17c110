"""Weights of several scores by prompt: from a column, or drawn for the prompt; the reward is that of the weights the prompt states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dora_core.data.adapter.weights import sampled_weights
from tests.dora_core.data.adapter.reading import one, read_rows

SAY = "Helpfulness {w1}, harmlessness {w2}."
AB = {"shape": "ab", "columns": {"prompt": "q", "a": "x", "b": "y"}}


def ab(weights: dict[str, Any]) -> dict[str, Any]:
    scores = [{"a": "h_a", "b": "h_b"}, {"a": "s_a", "b": "s_b"}]
    return AB | {"label": {"scores": scores, "weights": weights, "say": SAY}}


def row(**beside: Any) -> dict[str, Any]:
    return {"q": "why?", "x": "first", "y": "second", "h_a": 4, "h_b": 1, "s_a": 0, "s_b": 2} | beside


@pytest.mark.parametrize(("weights", "rewards"), [([0.25, 0.75], [1.0, 1.75]), (["1", 0], [4.0, 1.0])])
def test_a_column_has_the_weights_of_the_row(weights: list[Any], rewards: list[float]) -> None:
    """Scores (4, 0) and (1, 2): .25·4 + .75·0 = 1 against .25·1 + .75·2 = 1.75; and with weights 1 and 0, 4 against 1."""
    fields = one([row(w=weights)], ab({"column": "w"})).fields
    assert fields["rewards"] == rewards
    assert fields["goal"] == f"Helpfulness {float(weights[0]):.2f}, harmlessness {float(weights[1]):.2f}."


def test_lists_and_pairs_have_them_too() -> None:
    keys = {"shape": "list", "label": {"scores": ["h", "s"], "weights": {"column": "w"}, "say": SAY}}
    listed = one([{"prompt": "?", "responses": ["u", "v"], "h": [4, 1], "s": [0, 2], "w": [0.5, 0.5]}], keys)
    assert (listed.fields["rewards"], listed.fields["goal"]) == ([2.0, 1.5], "Helpfulness 0.50, harmlessness 0.50.")
    scores = [{"chosen": "h_c", "rejected": "h_r"}, {"chosen": "s_c", "rejected": "s_r"}]
    paired = {"label": {"scores": scores, "weights": {"column": "w"}, "say": SAY, "contradiction": "scores"}}
    pair = {"prompt": "?", "chosen": "u", "rejected": "v", "h_c": 0, "h_r": 3, "s_c": 2, "s_r": 0, "w": [1, 0]}
    assert one([pair], paired).fields["rewards"] == [0.0, 3.0]


def test_drawn_weights_depend_on_prompt_and_seed_alone() -> None:
    keys = ab({"sampled": 1.0, "seed": 3})
    first, again, other = (one([row(q=q)], keys).fields for q in ("why?", "why?", "how?"))
    assert first["goal"] == again["goal"] != other["goal"]
    w1, w2 = sampled_weights(first["prompt"], 2, 1.0, 3)
    assert first["goal"] == f"Helpfulness {w1:.2f}, harmlessness {w2:.2f}."
    assert first["rewards"] == pytest.approx([4 * w1, w1 + 2 * w2])
    assert sampled_weights(first["prompt"], 2, 1.0, 4) != [w1, w2]


def test_drawn_weights_are_uniform_on_the_simplex_at_concentration_1() -> None:
    """Of three uniform weights each has mean 1/3 and variance 2/(9·4) = 1/18; 2,000 prompts: 3 standard errors are .016."""
    drawn = np.array([sampled_weights([{"role": "user", "content": str(i)}], 3, 1.0, 0) for i in range(2000)])
    assert np.abs(drawn.sum(axis=1) - 1).max() <= 0.011  # rounded
    assert drawn.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.016)
    assert drawn.var(axis=0) == pytest.approx([1 / 18] * 3, rel=0.15)


@pytest.mark.parametrize(
    ("weights", "says"), [([1], "1 weights for 2 scores"), ([1, None], "null, or only zeros"), ([0, 0], "only zeros"), (["x", 1], "number")]
)
def test_weights_that_do_not_fit_are_a_problem(weights: list[Any], says: str) -> None:
    read = read_rows([row(w=[1, 1]), row(w=weights)], ab({"column": "w"}))
    assert says in read.problems[1][0].detail


def test_a_pair_without_scores_has_no_preference_under_the_weights_that_its_prompt_states() -> None:
    scores = [{"chosen": "h_c", "rejected": "h_r"}, {"chosen": "s_c", "rejected": "s_r"}]
    keys = {"label": {"scores": scores, "weights": {"column": "w"}, "say": SAY}}
    pair = {"prompt": "?", "chosen": "u", "rejected": "v", "h_c": 2, "h_r": 1, "s_c": 2, "s_r": 0, "w": [1, 1]}
    read = read_rows([pair, pair | {"s_r": None}], keys)
    assert "has no score" in read.problems[1][0].detail and read.rows.keys() == {0}
