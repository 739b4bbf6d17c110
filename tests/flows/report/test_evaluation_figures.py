"""Figures of held-out prompts: which opponents and groups they show."""

from __future__ import annotations

from flows.report.evaluation_figures import opponent, wins_of
from flows.report.figures import FIGURES
from tasks.stages import compare, evaluate
from tests.flows.report.runs import make_facts
from tests.tasks import facts


def test_opponents_have_one_order_and_those_named_after_a_file_come_last() -> None:
    wins = {name: facts.wins(0.5) for name in ("other.parquet", "chosen", "start")}
    shown = wins_of(compare.Facts.model_validate({"judge": "gold", "wins": wins}))
    assert list(shown) == ["start", "chosen", "other.parquet"]
    assert [opponent(name) for name in shown] == ["the start", "chosen responses", "other.parquet"]


def test_groups_are_compared_only_where_there_are_two() -> None:
    drawn = FIGURES["compare"]["win_groups"].draw
    one = {"start": facts.wins(0.5, by_source={"human": facts.outcomes(0.5)})}
    two = {"start": facts.wins(0.5, by_source={"human": facts.outcomes(0.5), "model": facts.outcomes(0.4)})}
    assert drawn(compare.Facts.model_validate({"judge": "gold", "wins": one})) is None
    assert drawn(compare.Facts.model_validate({"judge": "gold", "wins": two})) is not None


def test_the_largest_group_is_the_first_row() -> None:
    found = evaluate.Facts.model_validate(make_facts(["human", "model"])["evaluate"])
    small, large = (found.by_source["human"].model_copy(update={"n": n}) for n in (10, 90))
    figure = FIGURES["evaluate"]["by_source"].draw(found.model_copy(update={"by_source": {"small": small, "large": large}}))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["large", "small"]


def test_an_evaluation_without_a_twin_a_task_or_gaps_has_fewer_figures() -> None:
    plain = evaluate.Facts.model_validate(facts.evaluation(reward_confidence={"bins": [], "accuracy": [], "count": []}))
    drawn = {name for name, figure in FIGURES["evaluate"].items() if figure.draw(plain) is not None}
    assert drawn == {"comparison", "margins", "reward_calibration"}


def test_an_evaluation_without_pairs_has_no_figures() -> None:
    bare = {"parts": {}, "margins": {"edges": [], "policy": []}, "reward_calibration": None, "lift": {}}
    found = evaluate.Facts.model_validate(facts.evaluation(reward_confidence={"bins": [], "accuracy": [], "count": []}, **bare))
    assert not any(figure.draw(found) for figure in FIGURES["evaluate"].values())
