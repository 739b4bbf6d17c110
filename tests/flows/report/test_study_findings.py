"""Findings of a study, as sentences."""

from __future__ import annotations

from typing import Any

from dora_core.evaluation.study_statistics import Cell, Estimate
from flows.report.study_findings import Finding, findings, relation
from tasks.stages.study import Facts
from tests.flows.report.studies import ROBUST, estimate, make_facts


def found_in(facts: dict[str, Any]) -> list[Finding]:
    return findings(Facts.model_validate(facts))


def place(value: float) -> Estimate:
    return Estimate.model_validate(estimate(value, 0.02))


def test_relation() -> None:
    cases = {0.70: "above", 0.62: "ahead of", 0.6001: "level with", 0.58: "behind", 0.50: "below"}
    assert {value: relation(place(value), place(0.6)) for value in cases} == cases


def test_findings_say_what_the_numbers_say() -> None:
    found = {f.headline: f for f in found_in(make_facts())}
    text = "\n".join(found)
    assert found["Of 17 policies of different losses, 17 are better than their start and 0 worse, intervals clear of ½"].mark == "met"
    above, below = "Above plain training (erm): dpo + dora, simpo + dora, dpo_pl + dora, rrhf + dora, lire + dora", "Below erm: exo + dora"
    assert above in found and below in found and "Ahead of erm by the paired difference only: r_dpo + dora" in found
    assert found[above].items[0] == (
        "dpo · dora λ=auto · mixture τ=auto: 0.740 [0.715, 0.765] against 0.660 [0.635, 0.685]; paired +0.080 [+0.065, +0.095]"
    )
    golden = found["Above golden records alone: dpo + dora"]
    assert golden.mark == "met" and golden.items[0].endswith("against 0.680 [0.655, 0.705]; paired +0.060 [+0.045, +0.075]")
    assert found["Below golden records alone: lire + dora"].mark == "broken"
    assert found[below].items[0].startswith("exo · dora λ=auto · mixture τ=auto: 0.630 ")
    assert "lire: the paper's order dora > reweight > dro holds (dora is ahead of reweight, reweight is ahead of dro)" in found
    assert "dpo: best λ is auto, win rate 0.740 [0.715, 0.765]; erm has 0.660 [0.635, 0.685]" in found
    assert "Label noise: dpo + dora λ=1 · mixture τ=1 is below erm at 40%" in found
    assert found["Label noise: dpo + dora λ=auto · mixture τ=auto is not behind erm at any level tried"].mark == "met"
    assert "h of form mixture is closest to the truth; intervals apart from released and paper" in found
    assert "1e" not in text and "None" not in text and "nan" not in text


def test_policies_that_lose_to_their_start_are_named() -> None:
    facts = make_facts()
    facts["cells"][Cell(loss="exo", **ROBUST).key()]["estimates"]["win_rate"] = estimate(0.4)
    first = found_in(facts)[0]
    assert first.mark == "broken" and "16 are better than their start and 1 worse" in first.headline
    assert first.items == ("worse: exo · dora λ=auto · mixture τ=auto: 0.400 [0.380, 0.420]",)


def test_an_order_that_fails_is_said_to_fail() -> None:
    facts = make_facts()
    for cell in facts["cells"].values():
        if cell["params"]["objective"] == "dro":
            cell["estimates"]["win_rate"] = estimate(0.90)
    found = [f for f in found_in(facts) if "paper's order" in f.headline]
    assert [f.mark for f in found] == ["broken", "broken"] and "reweight is below dro" in found[0].headline


def test_a_paired_difference_is_doubted_where_t_disagrees() -> None:
    facts = make_facts()
    lift = facts["cells"][Cell(loss="dpo", **ROBUST).key()]["estimates"]["win_rate_lift"]
    lift |= {"t_low": -0.01, "t_high": 0.17}
    above = next(f for f in found_in(facts) if f.headline.startswith("Above"))
    assert above.items[0].endswith("but the t-interval over seeds contains 0")


def test_rounds_are_judged_by_their_paired_rise() -> None:
    """dora rises by .06 and .03 (± .02), erm by .04 and then falls by .01, which is not shown."""
    found = [f for f in found_in(make_facts()) if f.headline.startswith("Rounds")]
    assert [(f.mark, f.headline) for f in found] == [
        ("open", "Rounds: dpo · erm is shown to rise in round 1 only"),
        ("met", "Rounds: dpo · dora λ=auto · mixture τ=auto rises in every round"),
    ]
    assert found[1].items[1].startswith("round 2: 0.830 [0.805, 0.855]; paired +0.030 [+0.010, +0.050]; against erm paired +0.140")


def test_a_round_that_the_guard_rails_would_stop_says_so() -> None:
    facts = make_facts()
    assert not any("guard rails" in item for f in found_in(facts) for item in f.items)
    of_round_1 = facts["cells"][Cell(loss="dpo", round=1, **ROBUST).key()]
    of_round_1["broken_rules"] = {"0": {"kl": "…"}, "3": {"kl": "…", "one_answer": "…"}}
    items = next(f for f in found_in(facts) if f.headline.startswith("Rounds: dpo · dora")).items
    assert items[0].endswith("; guard rails would stop it: kl in 2, one_answer in 1 of 5 seeds") and "guard rails" not in items[1]
