"""Facts of a search survive the way through ``result.json``."""

from __future__ import annotations

from dora_core.evaluation.metrics import Interval
from tasks.stages._tune_facts import Facts, TrialFacts, TrialRung


def test_they_are_read_as_they_were_written_and_the_first_trial_is_the_best() -> None:
    interval = Interval(value=0.6, low=0.5, high=0.7, n=30)
    rungs = [TrialRung(step=2, loss=0.6, accuracy=0.55)]
    values = {"align.objective.lambda": 0.3}
    first = TrialFacts(name="trial 1", digest="1", values=values, state="finished", steps=2, planned=2, loss=interval, rungs=rungs)
    late = TrialFacts(name="as configured", digest="0", values={}, state="out of time")
    facts = Facts(trials=[first, late], metric="loss", reason="best: lambda 0.3", improves=False, golden_prompts=30, computed=1)
    assert Facts.model_validate(facts.dump()) == facts and facts.best == first
