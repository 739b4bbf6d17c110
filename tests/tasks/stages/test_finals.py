"""The stage ``finals``: the proxy's choice stays unless another finalist is clearly better, and the winner's tables are copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.evaluation.metrics import Interval
from dora_core.objectives.settings import ObjectiveConfig
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import finals, race, tune
from tasks.stages._race_facts import Finalist, Standing
from tasks.stages._tune_facts import TrialFacts
from tests.tasks.facts import assert_round_trip

CONFIDENCE = 0.95


def finalist(name: str, gain: tuple[float, float] | None = None) -> Finalist:
    """``gain``: estimate and half the width of its interval."""
    interval = None if gain is None else Interval(value=gain[0], low=gain[0] - gain[1], high=gain[0] + gain[1], n=50)
    return Finalist(title=name, objective=ObjectiveConfig(name="reweight"), mean_weight={"golden": 1.0}, gain=interval)


def test_one_standard_error_decides() -> None:
    # An interval of ±.0196 at 95 % has a standard error of .0196/1.96 = .01.
    assert finals.standard_error(Interval(value=0, low=-0.0196, high=0.0196, n=9), CONFIDENCE) == pytest.approx(0.01, rel=1e-4)
    field = {"choice": finalist("average"), "other": finalist("dora", (0.009, 0.0196)), "erm": finalist("erm", (-0.2, 0.0196))}
    assert finals.choose(field, CONFIDENCE) == "choice"
    assert finals.choose(field | {"other": finalist("dora", (0.011, 0.0196))}, CONFIDENCE) == "other"
    both = {"golden_only": finalist("golden_only", (0.05, 0.0196)), "other": finalist("dora", (0.03, 0.01))}
    assert finals.choose(field | both, CONFIDENCE) == "golden_only", "the larger gain"


def stored(store: Store, spec: finals.Spec, facts: race.Facts, search: tune.Facts) -> None:
    """Write results of the race and of the search, as these stages would."""
    for ref, content in ((spec.race, facts), (spec.tune, search)):
        folder = store.folder(ref.stage, ref.digest)
        for name in facts.finalists if ref == spec.race else ():
            for table in ("calibration.parquet", "label_trust.parquet"):
                path = folder.path / "finalists" / name / table
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{table} of {name}")
        store.mark_done(folder, {"stage": ref.stage, "digest": ref.digest, "spec": {}, "inputs": {}, "rows": 0, "metrics": {},
                                 "facts": content.dump(), "started": 0.0, "seconds": 0.0, "python": ""})  # fmt: skip


def test_the_winner_replaces_the_choice_of_the_race(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    standing = Standing(name="erm", loss=0.6, excess=0.0, error=None)
    robust = finalist("dora @ 0.7").evolve(objective=ObjectiveConfig(name="dora"))
    facts = race.Facts(
        standings=[standing],
        reason="average",
        decided=True,
        objective=ObjectiveConfig(name="reweight"),
        golden_prompts=50,
        pairs=99,
        ridge=1.0,
        mean_weight={"golden": 1.0, "gpt": 0.4},
        finalists={"choice": finalist("average of weightings"), "other": robust, "erm": finalist("erm")},
    )
    loss = Interval(value=0.6, low=0.55, high=0.65, n=50)
    gains = {"choice": None, "other": finalist("", (0.05, 0.02)).gain, "erm": finalist("", (0.01, 0.04)).gain}
    measured = {"values": {}, "state": "finished", "steps": 9, "planned": 9, "loss": loss}
    trials = [TrialFacts(name=name, digest=name, gain=gain, **measured) for name, gain in gains.items()]  # type: ignore[arg-type]
    search = tune.Facts(trials=trials, metric="loss", reason="", improves=True, golden_prompts=50, computed=9)
    spec = finals.Spec(race=StageRef(stage="race", digest="a" * 64), tune=StageRef(stage="tune", digest="b" * 64), confidence=CONFIDENCE)
    stored(store, spec, facts, search)
    content = execute(spec, finals.run, store)
    assert_round_trip(content)
    result = finals.STAGE.parse(content)
    assert result.facts.objective.name == "dora" and result.facts.finalists["other"].steps == 9
    assert "dora @ 0.7: after 9 steps better than the proxy's choice (average of weightings) by +0.0500" in result.facts.reason
    folder = store.fetch("finals", spec.digest())
    assert (folder / "calibration.parquet").read_text() == "calibration.parquet of other"
    assert (folder / "label_trust.parquet").read_text() == "label_trust.parquet of other"
