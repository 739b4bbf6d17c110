"""First screen of a run's page: numbers, caveats, changes, commands."""

from __future__ import annotations

from typing import Any

import pytest

from dora_core.evaluation.metrics import Interval
from flows.report.cost import Cost, Hours
from flows.report.overview import Evidence, caveats, overview
from flows.run_record import RunRecord
from tasks.runtime.facts import Facts
from tasks.stages import promote
from tests.flows.report.runs import estimate, make_facts, result_of

COST = Cost(Hours(1.5, 0.25), Hours(3.0, 0.5), 255.0, 2_345_000_000)
PROMOTION = promote.Facts(decision="promoted", model_name="chat", version="4", reasons=[], aliases={"champion": "4"})


def run(**changes: Any) -> RunRecord:
    whole = {"run_id": "chat-20260131-120000-ab12", "project": "chat", "started": 0.0, "status": "completed", "stages": []}
    return RunRecord.model_validate(whole | changes)


def facts(**changes: dict[str, Any]) -> dict[str, Facts]:
    """Facts of a run by stage, with changed fields."""
    made = make_facts(["human", "model"])
    return {stage: result_of(stage, made[stage] | changes.get(stage, {})).facts for stage in ("compare", "evaluate", "calibrate", "value")}


def wins(rate: float, equal: float, **more: Any) -> dict[str, Any]:
    """A comparison with the start alone, ± .05."""
    start = make_facts(["human", "model"])["compare"]["wins"]["start"]
    return {
        "wins": {
            "start": start | {"win_rate": estimate(rate, 0.05), "length_controlled": estimate(equal, 0.05), "worst_group": None} | more
        }
    }


def texts(**changes: dict[str, Any]) -> list[str]:
    quiet = {
        "worst_group": None,
        "twins": {"erm": {"accuracy": None, "ranking": None, "accuracy_lift": None, "win_rate": None} | {"win_rate_lift": estimate(0.1)}},
    }
    changed = {"evaluate": quiet | changes.pop("evaluate", {}), "compare": wins(0.62, 0.58)} | changes
    return [caveat.text for caveat in caveats(Evidence.of(facts(**changed)))]


def test_the_five_numbers_stand_beside_the_last_runs() -> None:
    before = Evidence.of(facts(compare=wins(0.57, 0.52)))
    found = overview(
        run(), facts(), COST, run(run_id="chat-20260130-120000-ab12"), before, None, Interval(value=0.03, low=-0.01, high=0.07, n=9)
    )
    shown = {number.title: [(line.label, line.value, line.last, line.tone) for line in number.lines] for number in found.numbers}
    assert list(shown) == ["Win rate", "Preference accuracy: golden against synthetic", "Gain in win rate", "KL to the start", "Cost"]
    assert shown["Win rate"] == [
        ("against the champion", "0.550 [0.500, 0.600]", "", "wait"),
        ("… at equal length", "0.500 [0.440, 0.560]", "", "wait"),
        ("against the start", "0.620 [0.570, 0.670]", "0.570 [0.520, 0.620]", "good"),
        ("… at equal length", "0.570 [0.510, 0.630]", "0.520 [0.470, 0.570]", "good"),
        ("gain over the last run", "+0.030 [-0.010, +0.070]", "", "wait"),
    ]
    assert shown["Gain in win rate"][0] == ("over plain training (erm)", "+0.060 [+0.030, +0.090]", "+0.060 [+0.030, +0.090]", "good")
    assert shown["KL to the start"] == [("nats per response", "61.20 [57.20, 65.20]", "61.20 [57.20, 65.20]", "")]
    assert [line[1] for line in shown["Cost"]] == ["4 min 15 s", "1.50 CPU h, 0.25 GPU h", "3.00 CPU h, 0.50 GPU h", "2.35 GB"]


def test_a_run_without_evidence_says_why_and_has_no_caveat() -> None:
    found = overview(run(status="failed"), {}, Cost(Hours(), Hours(), None, None), None, Evidence(), None)
    assert [number.missing for number in found.numbers[:4] if not number.lines] == [number.missing for number in found.numbers[:4]]
    assert all(number.missing for number in found.numbers[:4]) and found.caveats == [] and found.commands == []


def test_a_win_that_length_explains_is_a_caveat() -> None:
    assert texts() == []
    assert texts(compare=wins(0.62, 0.52)) == ["the win against the start may be length: 0.520 [0.470, 0.570] at equal length"]
    assert texts(compare=wins(0.62, 0.6, longer=0.999)) == ["the win against the start may be length: no pairs of equal length"]
    assert texts(compare=wins(0.52, 0.45)) == [], "no win that could be explained"


def test_no_gain_over_plain_training_is_a_caveat() -> None:
    def lift(value: float) -> dict[str, Any]:
        return {
            "twins": {"erm": {"accuracy": None, "ranking": None, "accuracy_lift": estimate(value), "win_rate": None, "win_rate_lift": None}}
        }

    assert texts(evaluate=lift(0.1)) == []
    assert texts(evaluate=lift(0.01)) == ["no gain over plain training (erm) shown: +0.010 [-0.020, +0.040]"]
    assert texts(evaluate=lift(-0.1)) == ["worse than plain training (erm): -0.100 [-0.130, -0.070]"]
    assert texts(evaluate={"twins": {}}) == ["not compared with plain training: evaluate.twins names no twin"]


def test_the_worst_source_and_few_heavy_records_are_caveats() -> None:
    group = {"by": "source", "name": "human"} | estimate(0.48, 0.05)
    assert texts(evaluate={"worst_group": group}) == ["worst source: human, preference accuracy 0.480 [0.430, 0.530]"]
    assert texts(evaluate={"worst_group": group | estimate(0.6)}) == []
    assert texts(calibrate={"ess": 0.1}) == ["few records carry the weights: effective sample size 10%"]
    assert texts(calibrate={"no_shift": True}) == ["no source can be told from golden: every record has h = 1, as in plain training"]


def test_changes_are_settings_and_the_reasons_of_what_was_computed() -> None:
    stages = [
        {"stage": s, "label": s, "digest": "", "state": state, "reason": reason}
        for s, state, reason in (
            ("ingest", "cached", "cached: computed before"),
            ("align", "ran", "runs: align.loss changed"),
            ("evaluate", "ran", "runs: align.loss changed"),
        )
    ]
    before, now = ({"align": {"loss": {"name": "dpo", "beta": beta}}} for beta in (0.1, 0.2))
    found = overview(run(config=now, stages=stages), {}, COST, run(config=before), Evidence(), None)
    assert found.changes == {"align.loss.beta": ("0.1", "0.2")}
    assert found.reasons == {"align.loss changed": ["align", "evaluate"]}


@pytest.mark.parametrize(
    ("decision", "purposes"),
    [
        ("promoted", ["export", "try", "roll back"]),
        ("challenger", ["approve", "reject", "export", "try"]),
        ("refused", ["approve", "export", "try"]),
    ],
)
def test_commands_fit_the_decision(decision: str, purposes: list[str]) -> None:
    found = overview(run(), {}, COST, None, Evidence(), PROMOTION.evolve(decision=decision))
    assert [purpose for purpose, _ in found.commands] == purposes
    assert dict(found.commands)["export"] == "dora model export chat:4 FOLDER"
    waiting = overview(run(status="waiting"), {}, COST, None, Evidence(), PROMOTION.evolve(decision="challenger"))
    assert [purpose for purpose, _ in waiting.commands] == ["export", "try"], "the answers are its next steps"
