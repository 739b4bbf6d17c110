"""Reward-conditioned records (reward-augmented data, arXiv 2410.08067): see :class:`dora_core.config.goals.Goal`."""

from __future__ import annotations

from dataclasses import replace

from dora_core.config.adapter import Adapter, ScoresLabel
from dora_core.config.goals import Goal
from dora_core.data.problems import Problem, Reason
from dora_core.data.records import Record, Split, with_goal


def conditioned(record: Record, split: Split, goal: Goal | None) -> list[Record]:
    """The records that one record of preferences becomes: of the train split one for each distinct reward, of the other one that asks for
    the best reward and keeps its rewards; itself without a goal. Their ids are ``<id>@<goal>``."""
    if goal is None:
        return [record]
    if split == "eval":
        return [with_goal(record, goal.said(goal.best))]
    found = []
    for wanted in sorted({round(reward, goal.digits) for reward in record.rewards if reward is not None}, reverse=True):
        rewards = [None if reward is None else 0.0 - (round(reward, goal.digits) - wanted) ** 2 for reward in record.rewards]
        asked = with_goal(replace(record, rewards=rewards, reward_kind="goal"), goal.said(wanted))
        found.append(replace(asked, record_id=f"{record.record_id}@{wanted:.{goal.digits}f}"))
    return found or [with_goal(record, goal.said(goal.best))]


def without_rewards(record: Record, goal: Goal | None) -> list[Problem]:
    """The problem of a record that has no rewards to ask for, where prompts state goals; empty for any other."""
    if goal is None or record.reward_kind == "reward":
        return []
    needed = "data.goal asks for the reward of a response: map scores with `label: {scores: […]}`"
    detail = f"the label is a {record.reward_kind}, and {needed}"
    return [Problem("rewards", Reason.MISSING_LABEL, detail)]


def states_weights(source: Adapter) -> bool:
    """Whether the prompts of an input state the weights of their rewards."""
    return isinstance(source.label, ScoresLabel) and source.label.say is not None
