"""Reward-conditioned records, by hand: a pair becomes two, each of which prefers the response of the reward that it asks for."""

from __future__ import annotations

from typing import Any

from dora_core.config.adapter import Adapter
from dora_core.config.goals import Goal
from dora_core.data.adapter.canonical import CanonicalRow
from dora_core.data.goals import conditioned, states_weights, without_rewards
from dora_core.data.records import Record, Rules, hash_prompt, parse_canonical, with_goal

GOAL = Goal(best=10, text="Aim at {goal}.", digits=0)


def record(rewards: list[float | None], prompt: list[dict[str, str]] | None = None, **fields: Any) -> Record:
    given = {"id": "r", "prompt": prompt or [{"role": "user", "content": "why?"}], "responses": [f"y{i}" for i in range(len(rewards))]}
    found = parse_canonical(CanonicalRow("listwise", given | {"rewards": rewards, "sources": [None] * len(rewards)} | fields), Rules())
    assert isinstance(found, Record)
    return found


def test_a_pair_becomes_two_records() -> None:
    """Rewards 8 and 3: asked for 8 they are 0 and −25, asked for 3 they are −25 and 0."""
    high, low = conditioned(record([8.0, 3.0]), "train", GOAL)
    assert (high.rewards, low.rewards) == ([0.0, -25.0], [-25.0, 0.0])
    assert [one.prompt[0]["content"] for one in (high, low)] == ["Aim at 8.\n\nwhy?", "Aim at 3.\n\nwhy?"]
    assert (high.record_id, low.record_id) == ("r@8", "r@3") and {high.reward_kind, low.reward_kind} == {"goal"}
    assert high.content != low.content


def test_both_keep_the_hash_of_the_prompt_so_that_they_share_split_and_fold() -> None:
    whole = record([8.0, 3.0])
    assert {one.prompt_hash for one in conditioned(whole, "train", GOAL)} == {whole.prompt_hash} == {hash_prompt(whole.prompt)}


def test_equal_and_missing_rewards_make_no_further_record() -> None:
    found = conditioned(record([8.2, 7.9, None, 3.0]), "train", GOAL)
    assert [one.rewards for one in found] == [[0.0, 0.0, None, -25.0], [-25.0, -25.0, None, 0.0]]


def test_held_out_prompts_ask_for_the_best_and_keep_their_rewards() -> None:
    (one,) = conditioned(record([8.0, 3.0]), "eval", GOAL)
    assert (one.rewards, one.record_id, one.reward_kind) == ([8.0, 3.0], "r", "reward")
    assert one.prompt[0]["content"] == "Aim at 10.\n\nwhy?"


def test_without_a_goal_nothing_changes() -> None:
    whole = record([8.0, 3.0])
    assert conditioned(whole, "train", None) == [whole] and not without_rewards(whole, None)


def test_a_goal_stands_in_front_of_the_first_user_message() -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    asked = with_goal(record([1.0, 0.0], turns), "Aim.")
    assert [message["content"] for message in asked.prompt] == ["Be kind.", "Aim.\n\na", "b"]
    assert [m["content"] for m in with_goal(record([1.0, 0.0], turns[:1]), "Aim.").prompt] == ["Be kind.", "Aim."]


def test_a_goal_joins_the_weights_that_the_prompt_states() -> None:
    weighed = record([8.0, 3.0], goal="Weigh 1.")
    assert weighed.prompt[0]["content"] == "Weigh 1.\n\nwhy?" and weighed.prompt_hash == record([8.0, 3.0]).prompt_hash
    (one,) = conditioned(weighed, "eval", GOAL)
    assert (one.goal, one.prompt[0]["content"]) == ("Weigh 1. Aim at 10.", "Weigh 1. Aim at 10.\n\nwhy?")


def test_a_plain_preference_has_no_reward_to_ask_for() -> None:
    fields = {"id": "r", "prompt": [{"role": "user", "content": "?"}], "chosen": "a", "rejected": "b"}
    pair = parse_canonical(CanonicalRow("pairwise", fields), Rules())
    assert isinstance(pair, Record)
    (problem,) = without_rewards(pair, GOAL)
    assert "the label is a preference" in problem.detail and "label: {scores" in problem.detail


def test_inputs_whose_prompts_state_weights() -> None:
    say = {"scores": ["s", "t"], "weights": {"sampled": 1}, "say": "{w1} {w2}"}
    assert states_weights(Adapter.model_validate({"shape": "list", "label": say}))
    assert not states_weights(Adapter.model_validate({"shape": "list", "label": {"scores": ["s"]}}))
