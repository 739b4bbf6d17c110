"""The page of a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from dora_core.evaluation.metrics import Interval
from flows.report.find import ReportError
from flows.report.tune import render_tune
from infra.store.store import Store
from tasks.stages._tune_facts import Facts, TrialFacts, TrialRung
from tests.flows.report.runs import EVIL, make_run

LAMBDA = "align.objective.lambda"


def make_facts(name: str = "auto") -> Facts:
    """The best of three trials has λ = 0.3; one was stopped, one failed."""

    def interval(value: float) -> Interval:
        return Interval(value=value, low=value - 0.02, high=value + 0.02, n=40)

    def trial(name: str, loss: float, value: object, state: str, steps: int = 9) -> TrialFacts:
        rungs = [TrialRung(step=step, loss=loss + 1 / step, accuracy=0.6) for step in (1, 3, 9) if step <= steps]
        values = {} if value is None else {LAMBDA: value}
        more = {"loss": interval(loss), "accuracy": interval(0.6), "gain": None if value is None else interval(0.64 - loss)}
        return TrialFacts(name=name, digest=name, values=values, state=state, steps=steps, planned=9, rungs=rungs, **more)  # type: ignore[arg-type]

    failed = TrialFacts(name="trial 3", digest="3", values={LAMBDA: 5.0}, state="failed", reason="the gradient is not finite")
    trials = [
        trial("trial 1", 0.6, 0.3, "finished"),
        trial("as configured", 0.64, None, "finished"),
        trial("trial 2", 0.7, name, "stopped", 3),
    ]
    reason = "best: lambda 0.3, better than the configuration as it is by +0.0400"
    return Facts(
        trials=[*trials, failed], metric="loss", reason=reason, improves=True, golden_prompts=40, computed=9, warnings=["trial 3 failed"]
    )


def saved(folder: Path, facts: Facts) -> Store:
    store = Store(str(folder / "store"))
    make_run(store, ["human"], run_id="demo-1")
    manifest = store.read_json("runs/demo-1/run.json")
    manifest["flow"], digest = "tune", "c" * 64
    manifest["stages"].append({"stage": "tune", "label": "tune", "digest": digest, "state": "ran", "reason": "runs: first time"})
    store.write_json("runs/demo-1/run.json", manifest)
    store.mark_done(store.folder("tune", digest), {"stage": "tune", "digest": digest, "spec": {}, "inputs": {}, "rows": 4, "metrics": {},
                                                   "facts": facts.dump(), "started": 0.0, "seconds": 1.0, "python": ""})  # fmt: skip
    return store


def test_the_page_has_trials_figures_and_the_line_to_configure(tmp_path: Path) -> None:
    page = render_tune(saved(tmp_path, make_facts()), "demo-1")
    assert "--set align.objective.lambda=0.3" in page and "lambda: 0.3" in page
    assert page.count("<svg") == 2 and "trial 3 failed" in page and "0.580 … 0.620" in page
    assert "3 of 9" in page and "stopped" in page and "as it is" in page


def test_values_are_escaped(tmp_path: Path) -> None:
    page = render_tune(saved(tmp_path, make_facts(EVIL)), "demo-1")
    assert "<script" not in page and "&lt;script&gt;" in page


def test_another_run_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    make_run(store, ["human"], run_id="demo-1")
    with pytest.raises(ReportError, match="is not a search"):
        render_tune(store, "demo-1")
