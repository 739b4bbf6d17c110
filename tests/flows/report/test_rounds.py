"""The page of a self-training run: rounds side by side, guard rails, and sections that show the last round."""

import re
from pathlib import Path
from typing import Any

import pytest

from flows.report.page import render
from flows.report.rounds import Point, Rounds, rounds_figure, rounds_view
from flows.run_record import read_record
from infra.store.store import Store
from tasks.stages.registry import parse_result
from tests.flows.report.runs import EVIL, Page, estimate, make_facts
from tests.tasks.facts import mixture


def guard(**passed: bool | None) -> dict[str, Any]:
    rules = [
        {"name": name, "value": None if ok is None else 0.31, "threshold": 0.2, "passed": ok, "message": f"{name} of {EVIL} is 0.31"}
        for name, ok in passed.items()
    ]
    stop = None if all(ok is not False for ok in passed.values()) else {"message": f"stopped by {EVIL}", "hint": "raise the temperature"}
    return {"round": 1, "passed": stop is None, "rules": rules, "stop": stop, "diversity": None}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make_rounds(store: Store, **manifest: Any) -> str:
    """Round 0 and 1 are done, the guard of round 2 stopped the run; each round's win rate is .05 above the last one's."""
    stages: list[dict[str, Any]] = []

    def add(number: int, name: str, facts: dict[str, Any] | None, stage: str | None = None) -> None:
        label, digest = f"r{number} {name}" if number else name, f"{len(stages):02x}" * 32
        stage = stage or name.split()[0]
        if facts is not None:
            empty = {"spec": {}, "inputs": {}, "rows": 1, "seconds": 1.0, "metrics": {}, "files": {}}
            result = {"stage": stage, "digest": digest, "facts": facts} | empty
            store.write_json(f"{stage}/{digest}/result.json", result)
        state = {"state": "pending" if facts is None else "ran", "reason": "runs", "seconds": 1.0}
        ids = {"mlflow_run_id": None, "submission_id": None}
        stages.append({"stage": stage, "label": label, "round": number, "digest": digest} | state | ids)

    for number in (0, 1, 2):
        facts = make_facts(["human", f"policy-r{number}"])
        wins = {"win_rate": estimate(0.5 + 0.05 * number), "length_controlled": estimate(0.49 + 0.05 * number)}
        facts["compare"]["wins"]["start"] |= wins
        if number == 0:
            for name in ("ingest", "drift"):
                add(0, name, facts[name])
        else:
            add(number, "generate", {})
            add(number, "guard samples", guard(distinct=number == 1, self_bleu=True))
            add(number, "mix", mixture(golden_share=0.2) if number == 1 else None)
        for name in ("calibrate", "align", "compare", "evaluate"):
            add(number, name, facts[name] if number < 2 else None)
        if number:
            add(number, "guard policy", guard(kl=True, source_regression=None) if number == 1 else None)
    add(2, "promote", None)
    error = {"message": f"stopped by {EVIL}", "hint": "raise the temperature"}
    run = {"run_id": "r", "name": "n", "project": "p", "config": {}, "started": 1.0, "finished": 2.0, "status": "stopped", "error": error}
    store.write_json("runs/r/run.json", run | {"stages": stages, "links": {}, "decision": None} | manifest)
    return "r"


def test_rounds_guard_rails_and_the_last_round_of_every_section(store: Store) -> None:
    page = Page(render(store, make_rounds(store)))
    text = re.sub(r"\s+", " ", page.text)
    for words in (
        "The run was stopped before a decision",
        "0.5000.470 … 0.530",  # win rate of round 0
        "0.5500.520 … 0.580",  # and of round 1
        "Calibration · round 1",
        "Against others · round 1",
        "r1 align",
        "Drift since the last run · round 0",
        f"✗ distinct of {EVIL} is 0.31",
        f"✓ kl of {EVIL} is 0.31",
        "○ source_regression",
        "raise the temperature",
        "The stage did not finish: the run was stopped first.",
    ):
        assert words in text, words
    counted = re.search(r"Stages: (\d+) computed, (\d+) not", text)
    assert counted and sum(map(int, counted.groups())) == 23
    assert "policy-r1" in text and "script" not in {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def values_of(view: Rounds, name: str) -> list[float | None]:
    return [point and point.value for point in (row.measures[name] for row in view.rows)]


def test_a_row_for_every_round_and_a_column_for_every_measure_that_is_known(store: Store) -> None:
    make_rounds(store)
    run = read_record(store, "r")
    assert run is not None
    results = {s.label: parse_result(result) for s in run.stages if (result := store.read_result(s.stage, s.digest))}
    view = rounds_view(run, results)
    assert view is not None
    assert [row.round for row in view.rows] == [0, 1, 2]
    assert [row.state for row in view.rows] == ["ran", "ran", "pending"]
    assert [values_of(view, name) for name in ("win_rate", "distinct")] == [[0.5, 0.55, None], [None, 0.31, 0.31]]
    assert [row.measures["golden_share"] for row in view.rows] == [None, Point(0.2, None, None), None]
    assert [len(row.guards) for row in view.rows] == [0, 2, 1]
    drawn = rounds_figure(view.rows, view.measures).axes
    assert [axes.get_title(loc="left") or axes.get_title() for axes in drawn if axes.axison] == list(view.measures.values())
    assert drawn[0].lines[-1].get_xydata().tolist() == [[0.0, 0.5], [1.0, 0.55]]
    without = run.evolve(stages=[entry.evolve(round=None) for entry in run.stages])
    assert rounds_view(without, results) is None
