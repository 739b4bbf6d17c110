from pathlib import Path

import pytest

from infra.registry import aliases, rollback
from infra.store import Store
from infra.tracking import mlflow_client
from tasks.promote import Spec, Tracking, decide, run
from tasks.stage import StageRef, execute

PASSED = {
    "passed": True,
    "rules": [{"name": "accuracy", "passed": True, "value": 0.6, "threshold": 0.5, "message": "accuracy above 0.5: 0.6"}],
}
FAILED = {
    "passed": False,
    "rules": [*PASSED["rules"], {"name": "kl", "passed": False, "value": 60.0, "threshold": 50.0, "message": "KL at most 50: 60"}],
}


@pytest.mark.parametrize(
    ("gate", "mode", "decision", "reasons"),
    [
        (PASSED, "auto", "promoted", ["accuracy above 0.5: 0.6"]),
        (PASSED, "never", "challenger", ["accuracy above 0.5: 0.6", "promotion.mode is never"]),
        (FAILED, "auto", "refused", ["KL at most 50: 60"]),
        (FAILED, "never", "refused", ["KL at most 50: 60"]),
    ],
)
def test_decide(gate: dict, mode: str, decision: str, reasons: list[str]) -> None:
    assert decide(gate, mode) == (decision, reasons)


def finished(store: Store, stage: str, letter: str, facts: dict) -> StageRef:
    ref = StageRef(stage=stage, digest=letter * 64)
    folder = store.folder(ref.stage, ref.digest)
    if stage == "align":
        (folder.path / "model").mkdir(exist_ok=True)
        (folder.path / "model/config.json").write_text("{}")
    store.mark_done(folder, {"stage": stage, "digest": ref.digest, "facts": facts})
    return ref


def test_three_models_one_registry(tmp_path: Path) -> None:
    """Promoted, then refused, then a challenger; a finished promotion does not undo a rollback."""
    store, uri = Store(str(tmp_path / "store")), f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"

    def promote(letter: str, gate: dict, mode: str = "auto") -> dict:
        evaluation, policy = finished(store, "evaluate", letter, {"gate": gate}), finished(store, "align", letter, {})
        return execute(Spec(evaluation=evaluation, policy=policy, model_name="policy", mode=mode, tracking=Tracking(uri=uri)), run, store)

    first = promote("a", PASSED)
    assert first["metrics"] == {"promoted": 1.0} and first["facts"] == {
        "decision": "promoted",
        "model_name": "policy",
        "version": "1",
        "aliases": {"champion": "1"},
        "reasons": ["accuracy above 0.5: 0.6"],
    }
    refused = promote("b", FAILED)
    assert refused["facts"]["decision"] == "refused" and refused["facts"]["version"] == "2"
    assert refused["facts"]["aliases"] == {"champion": "1"} and refused["metrics"] == {"promoted": 0.0}
    assert promote("c", PASSED, "never")["facts"]["aliases"] == {"champion": "1", "challenger": "3"}
    promote("d", PASSED)
    assert rollback(uri, "policy") == "1"
    assert promote("d", PASSED)["facts"]["aliases"] == {"champion": "4", "previous": "1", "challenger": "3"}  # what it was, from the store
    assert aliases(uri, "policy") == {"champion": "1", "challenger": "3"}

    stored = mlflow_client(uri).get_model_version("policy", "2")
    assert stored.source == f"{store.uri}/align/{'b' * 64}/model"
    assert stored.tags["dora.digest"] == "b" * 64 and stored.tags["dora.reasons"] == "KL at most 50: 60"


def test_the_address_of_the_registry_is_not_part_of_the_digest() -> None:
    ref = StageRef(stage="align", digest="a" * 64)
    plan = Spec(evaluation=ref, policy=ref, model_name="policy")
    assert plan.digest() == plan.model_copy(update={"tracking": Tracking(uri="http://host")}).digest()
    assert plan.digest() != plan.model_copy(update={"mode": "never"}).digest()
