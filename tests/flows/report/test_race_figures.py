from __future__ import annotations

from dora_core.objectives.settings import ObjectiveConfig
from flows.report.race_figures import SHOWN, entrants_of_the_race
from tasks.stages import race
from tasks.stages._race_facts import Standing


def test_the_best_entrants_and_always_the_baselines() -> None:
    names = [f"κ {i}" for i in range(SHOWN + 3)] + ["golden_only", "erm"]
    rows = [Standing(name=name, loss=0.5 + i / 100, excess=i / 100, error=0.01 if i else None, share=0.0) for i, name in enumerate(names)]
    facts = race.Facts(
        standings=rows, reason="erm", decided=True, objective=ObjectiveConfig(name="reweight"), golden_prompts=50, pairs=100, ridge=1.0,
        mean_weight={"golden": 1.0},
    )  # fmt: skip
    figure = entrants_of_the_race(facts)
    assert figure is not None
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {"golden_only", "erm", "κ 0"} <= set(shown) and len(shown) == SHOWN + 2
