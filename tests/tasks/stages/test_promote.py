"""The promotion with a real registry in SQLite; evaluations and policies are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.store.store import Store
from infra.tracking import model_registry as registry
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.model_registry import aliases, history, rollback
from tasks.runtime.stage import StageRef, execute
from tasks.stages._evaluate_facts import GateResult
from tasks.stages.promote import NARROWER, Answer, Spec, Tracking, Verdict, decide, run
from tests.tasks.facts import FAILED_GATE as FAILED
from tests.tasks.facts import PASSED_GATE as PASSED
from tests.tasks.facts import UNDECIDED_GATE as UNDECIDED
from tests.tasks.facts import assert_round_trip, evaluation
from tests.tasks.handmade import finished

MET, NOT_MET = "accuracy: accuracy above 0.5: 0.6", "kl: KL at most 50: 60"
YES = Answer(approve=True, who="ann", why="reads well", champion="1")
NO = YES.model_copy(update={"approve": False, "why": "too long"})


@pytest.mark.parametrize(
    ("gate", "mode", "decision", "reasons"),
    [
        (PASSED, "auto", "promoted", [MET]),
        (PASSED, "ask", "promoted", [MET]),
        (PASSED, "never", "challenger", [MET, "promotion.mode is never"]),
        (FAILED, "auto", "refused", [NOT_MET]),
        (FAILED, "ask", "refused", [NOT_MET]),
        (FAILED, "never", "refused", [NOT_MET]),
        (UNDECIDED, "auto", "undecided", ["win_rate: win rate above 0.5: 0.4", NARROWER]),
        (UNDECIDED, "ask", "promoted", ["win_rate: win rate above 0.5: 0.4"]),  # if a person says so
        (UNDECIDED, "never", "undecided", ["win_rate: win rate above 0.5: 0.4", NARROWER]),
    ],
)
def test_the_gate_and_the_mode(gate: GateResult, mode: Any, decision: Any, reasons: list[str]) -> None:
    assert decide(gate, mode) == Verdict(decision, reasons)


class Models:
    """Policies named by a letter, registered as versions of one model."""

    def __init__(self, folder: Path, uri: str):
        self.store, self.uri = Store(str(folder / "store")), uri

    def spec(
        self,
        letter: str,
        gate: GateResult = PASSED,
        mode: Any = "ask",
        against: str | None = None,
        answer: Answer | None = None,
        compares: bool = False,
    ) -> Spec:
        policy = finished(self.store, "align", letter, {})
        compared = None
        if against is not None:
            theirs = finished(self.store, "generate", against, {}, {"policy": finished(self.store, "align", against, {}).model_dump()})
            compared = finished(self.store, "compare", letter + against, {}, {"champion_samples": theirs.model_dump()}).model_dump()
        judged = finished(self.store, "evaluate", f"{letter}{against}", {}, {"comparison": compared}, evaluation(gate))
        named = {"model_name": "policy", "mode": mode, "config": "c" * 64, "tracking": Tracking(uri=self.uri), "answer": answer}
        return Spec(evaluation=judged, policy=policy, compares=compares, **named)

    def promote(self, letter: str, **given: Any) -> dict[str, Any]:
        """The facts of the stage."""
        result = execute(self.spec(letter, **given), run, self.store)
        assert_round_trip(result)
        return result["facts"]

    def is_done(self, letter: str, **given: Any) -> bool:
        return self.spec(letter, **given).is_done(self.store)

    def aliases(self) -> dict[str, str]:
        return aliases(self.uri, "policy")

    def actions(self, version: str) -> list[str]:
        return [entry["action"] for entry in history(self.uri, "policy", version)]


@pytest.fixture
def models(tmp_path: Path, mlflow_sqlite: str) -> Models:
    return Models(tmp_path, mlflow_sqlite)


@pytest.fixture
def asked(models: Models) -> Models:
    """Version 1 is champion, version 2 (policy "b") waits for a person."""
    models.promote("a", mode="auto")
    facts = models.promote("b")
    assert (facts["decision"], facts["waits"], facts["champion_before"]) == ("challenger", "person", "1")
    assert models.aliases() == {"champion": "1", "challenger": "2"} and not models.is_done("b")
    return models


def test_three_models_one_registry(models: Models) -> None:
    """Promoted, then refused, then a challenger; a finished promotion does not undo a rollback."""
    first = models.promote("a", mode="auto")
    audit = first.pop("audit")
    assert first == {
        "decision": "promoted",
        "model_name": "policy",
        "version": "1",
        "reasons": [MET],
        "waits": None,
        "champion_before": None,
        "aliases": {"champion": "1"},
    }
    assert (audit["action"], audit["why"], audit["config"]) == ("promoted", MET, "c" * 64)
    refused = models.promote("b", gate=FAILED, mode="auto")
    assert (refused["decision"], refused["version"], refused["aliases"], refused["audit"]) == ("refused", "2", {"champion": "1"}, None)
    assert models.promote("c", mode="never")["aliases"] == {"champion": "1", "challenger": "3"}
    models.promote("d", mode="auto")
    assert rollback(models.uri, "policy") == "1"
    again = models.promote("d", mode="auto")["aliases"]
    assert again == {"champion": "4", "previous": "1", "challenger": "3"}  # what it was, from the store
    assert models.aliases() == {"champion": "1", "challenger": "3"}

    stored, policy = mlflow_client(models.uri).get_model_version("policy", "2"), models.spec("b").policy.digest
    assert stored.source == f"dora-store:/align/{policy}/model?root={models.store.uri}"
    assert (stored.tags["dora.digest"], stored.tags["dora.decision"]) == (policy, "refused")
    assert stored.tags["dora.reasons"] == NOT_MET


def test_an_undecided_gate_leaves_the_champion_and_is_final(models: Models) -> None:
    models.promote("a", mode="auto")
    facts = models.promote("b", gate=UNDECIDED, mode="auto")
    assert (facts["decision"], facts["waits"], facts["aliases"]) == ("undecided", None, {"champion": "1", "challenger": "2"})
    assert models.is_done("b", mode="auto", gate=UNDECIDED) and models.actions("2") == ["challenger"]


@pytest.mark.fault(22)
def test_approved(asked: Models) -> None:
    facts = asked.promote("b", answer=YES)
    assert facts["decision"] == "promoted" and facts["reasons"] == ["approved by ann: reads well", MET]
    assert asked.aliases() == {"champion": "2", "previous": "1"} and asked.is_done("b")
    spec = asked.spec("b")
    digests = {"policy": spec.policy.digest, "evaluation": spec.evaluation.digest, "config": "c" * 64}
    assert facts["audit"] == {"action": "promoted", "when": facts["audit"]["when"], "who": "ann", "why": "reads well"} | digests


@pytest.mark.fault(22)
@pytest.mark.parametrize("again", ["the answer", "by hand", "both"])
def test_a_second_approval_moves_nothing(asked: Models, again: str) -> None:
    if again != "the answer":
        registry.promote(asked.uri, "policy", "2", "by hand", who="bob")
    asked.promote("b", answer=YES)
    if again != "by hand":
        asked.promote("b", answer=YES)
    registry.promote(asked.uri, "policy", "2", "once more", who="eve")
    assert asked.aliases() == {"champion": "2", "previous": "1"}
    assert asked.actions("2") == ["challenger", "promoted"]


@pytest.mark.fault(22)
def test_rejected_stays_rejected(asked: Models) -> None:
    facts = asked.promote("b", answer=NO)
    assert facts["decision"] == "refused" and facts["reasons"][0] == "rejected by ann: too long"
    assert asked.aliases() == {"champion": "1"} and asked.is_done("b")
    assert asked.promote("b", answer=YES)["decision"] == "refused"
    tags = mlflow_client(asked.uri).get_model_version("policy", "2").tags
    assert tags["dora.decision"] == "refused" and tags["dora.rejected"].endswith("by ann: too long")


@pytest.mark.fault(22)
def test_unanswered_may_be_asked_again(asked: Models) -> None:
    assert asked.promote("b")["waits"] == "person"  # the next run
    assert asked.actions("2") == ["challenger"]
    assert asked.promote("b", answer=YES)["decision"] == "promoted"


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    ("by_hand", "decision", "said"),
    [
        (lambda uri: registry.reject(uri, "policy", "2", "unsafe", who="bob"), "refused", "rejected by bob: unsafe"),
        (lambda uri: registry.promote(uri, "policy", "2", who="bob"), "promoted", "promoted by bob: no reason given"),
    ],
)
def test_what_was_decided_by_hand_is_not_asked_or_overruled(
    asked: Models, by_hand: Callable[[str], None], decision: str, said: str
) -> None:
    by_hand(asked.uri)
    before, actions = asked.aliases(), asked.actions("2")
    facts = asked.promote("b", answer=NO if decision == "promoted" else YES)
    assert (facts["decision"], facts["reasons"][0], facts["waits"]) == (decision, said, None)
    assert (asked.aliases(), asked.actions("2")) == (before, actions)


@pytest.mark.fault(24)
def test_a_champion_of_the_meantime_is_not_replaced_unseen(asked: Models) -> None:
    asked.promote("c", mode="auto")
    facts = asked.promote("b", answer=YES)  # about version 1
    assert facts["waits"] == "person" and facts["champion_before"] == "3" and "another version was champion" in facts["reasons"][0]
    assert asked.aliases() == {"champion": "3", "previous": "1", "challenger": "2"}
    asked.promote("b", answer=YES.model_copy(update={"champion": "3"}))
    assert asked.aliases() == {"champion": "2", "previous": "3"}


@pytest.mark.fault(24)
@pytest.mark.parametrize("mode", ["auto", "ask"])
def test_a_comparison_counts_against_the_champion_it_saw(models: Models, mode: str) -> None:
    models.promote("a", mode="auto")
    models.promote("c", mode="auto", against="a")
    assert models.aliases() == {"champion": "2", "previous": "1"}
    outdated = models.promote("b", mode=mode, against="a", answer=YES.model_copy(update={"champion": "2"}))
    assert outdated["decision"] == "challenger" and outdated["waits"] == "comparison"
    assert outdated["reasons"][0].startswith("version 2 became champion after the comparison")
    assert models.aliases() == {"champion": "2", "previous": "1", "challenger": "3"} and not models.is_done("b", mode=mode, against="a")
    assert rollback(models.uri, "policy") == "1"  # then what it was compared with is champion again
    models.promote("b", mode=mode, against="a", answer=YES)
    assert models.aliases() == {"champion": "3", "previous": "1"}


def test_a_rolled_back_approval_is_not_repeated_and_can_be_taken_back(asked: Models) -> None:
    asked.promote("b", answer=YES)
    assert rollback(asked.uri, "policy", "worse in production") == "1"
    assert asked.promote("b")["decision"] == "promoted"  # what it was, from the store
    assert asked.aliases() == {"champion": "1"}
    assert asked.actions("2") == ["challenger", "promoted", "rolled_back"] and asked.actions("1") == ["promoted", "restored"]
    (asked.store.folder("promote", asked.spec("b").digest()).path / "result.json").unlink()
    lost = asked.promote("b", answer=YES)
    assert lost["decision"] == "refused" and lost["reasons"][0].startswith("rolled back by ")
    assert asked.aliases() == {"champion": "1"}


def test_how_it_is_decided_is_not_part_of_the_digest(models: Models) -> None:
    plan = models.spec("a")
    assert plan.digest() == plan.model_copy(update={"tracking": None, "answer": YES, "config": ""}).digest()
    assert plan.digest() != plan.model_copy(update={"mode": "never"}).digest()
    assert StageRef(stage="evaluate", digest=plan.evaluation.digest) in plan.inputs().values()
