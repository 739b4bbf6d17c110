"""The head of a run's page: its own state, the reason, the next command."""

from __future__ import annotations

from typing import Any

import pytest

from flows.report.head import head_of, promotion_of
from flows.run_record import RunRecord
from infra.store.store import Store
from tasks.stages import promote

PROMOTION = promote.Facts(decision="promoted", model_name="chat", version="4", reasons=["KL at most 50: 12"], aliases={"champion": "4"})


def run(**changes: Any) -> RunRecord:
    stages = [{"stage": "ingest", "label": "ingest", "digest": "a" * 64, "state": "cached"}]
    stages += [{"stage": "promote", "label": "promote", "digest": "b" * 64, "state": "ran"}]
    whole = {"run_id": "chat-20260131-120000-ab12", "project": "chat", "started": 0.0, "status": "completed", "stages": stages}
    return RunRecord.model_validate(whole | changes)


@pytest.mark.parametrize("decision", [*promote.DECISIONS])
def test_a_decision_is_the_title(decision: str) -> None:
    head = head_of(run(decision=decision), PROMOTION.evolve(decision=decision))
    assert head.title == decision and head.text == promote.DECISIONS[decision]
    assert head.reason == ("" if decision == "promoted" else "KL at most 50: 12")


def test_a_run_that_failed_names_one_reason_and_the_next_command() -> None:
    error = {"message": "stage align: the loss became NaN\nat step 7", "hint": "lower align.optimization.learning_rate\njob log: /x/y.log"}
    error["hint"] += "\nits last lines:\nTraceback\n  File x"
    head = head_of(run(status="failed", error=error, command="dora realign -c a.yaml"), None)
    assert (head.title, head.reason) == ("failed", "stage align: the loss became NaN")
    assert head.steps == (
        "lower align.optimization.learning_rate",
        "job log: /x/y.log",
        "run it again, what is finished is kept: dora realign -c a.yaml",
    )
    assert "champion stays" in head.text and "Traceback" in head.details


def test_a_run_that_failed_after_its_decision_says_both() -> None:
    head = head_of(run(status="failed", decision="promoted", error={"message": "disk full", "hint": "dora gc"}), PROMOTION)
    assert head.title == "failed" and "after it had decided: promoted" in head.text and head.steps == ("dora gc",)
    assert head.details == "", "reason and steps are the whole message"


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"command": "dora demo"}, "dora demo"),
        ({"links": {"prefect": "http://127.0.0.1:4200/runs/flow-run/1"}}, "Retry on its page in Prefect"),
        ({"flow": "self-train"}, "dora self-train -c FILE"),
    ],
)
def test_a_cancelled_run_names_how_to_go_on(changes: dict[str, Any], again: str) -> None:
    error = {"message": "stopped before it was finished", "hint": "run the same command again: it resumes from what is finished"}
    head = head_of(run(status="cancelled", error=error, **changes))
    assert head.title == "cancelled" and head.steps == (f"run it again, what is finished is kept: {again}",)


def test_a_run_that_waits_names_the_commands_of_the_decision() -> None:
    head = head_of(run(status="waiting", decision="challenger"), PROMOTION.evolve(decision="challenger", waits="person"))
    assert head.title == "waiting" and head.reason == "version 4 of chat waits"
    assert head.steps == ("dora promote chat 4 --why REASON", "dora reject chat 4 --why REASON")


def test_a_run_that_runs_names_its_stage() -> None:
    stages = [{"stage": s, "label": s, "digest": "", "state": state} for s, state in (("ingest", "ran"), ("align", "running"))]
    head = head_of(run(status="running", stages=stages))
    assert head.title == "running" and head.reason == "1 of 2 stages are finished; now: align"
    assert head.steps[0] == "look again: dora report chat-20260131-120000-ab12" and "dora reap" in head.steps[1]


def test_a_night_without_news_is_unchanged() -> None:
    head = head_of(run(decision="unchanged"), PROMOTION)
    assert head.title == "unchanged" and "version 4 of chat was decided about: promoted" in head.text


def test_the_promotion_is_the_one_this_run_saw(tmp_path: Any) -> None:
    """A challenger waits for a person; a later run promotes it, and writes its result under the same digest."""
    store = Store(str(tmp_path))
    later = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "seconds": 1.0, "stage": "promote", "digest": "b" * 64}
    store.mark_done(store.folder("promote", "b" * 64), later | {"facts": PROMOTION.model_dump(mode="json")})
    seen = PROMOTION.evolve(decision="challenger")
    assert promotion_of(store, run(decision="challenger", promotion=seen.model_dump(mode="json"))) == seen
    assert promotion_of(store, run(decision="challenger")) is None, "kept by an earlier release, and replaced since"
    assert promotion_of(store, run(decision="promoted")) == PROMOTION
    pending = [{"stage": "promote", "label": "promote", "digest": "b" * 64, "state": "pending"}]
    assert promotion_of(store, run(status="failed", stages=pending)) is None
