"""A registered model with its results, made by hand: a tiny policy in a store, an evaluation and its data, and the champion in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dora_core.config.alignment import AlignConfig
from dora_core.config.method import ModelConfig
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from infra.store.store import Store, sha256_of
from infra.tracking import model_registry as registry
from tasks.runtime.spec import StageRef
from tests.tasks import facts

SOURCES = {
    "human": {"responses": 30, "share": 0.25, "measured_rewards": 30, "mean_chars": 40.0},
    "a-bot": {"responses": 90, "share": 0.75, "measured_rewards": 90, "mean_chars": 60.0},
}
DATA = {"records": {"train": 36, "eval": 4}, "sources": SOURCES, "rows_in": 40, "rows_bad": 0, "golden_rows": 0}


def register_demo(uri: str, root: Path) -> Store:
    """Register version 1 of `demo`, the champion, in the registry ``uri``; its files and results are in the store ``root``."""
    store = Store(str(root))
    read = {"data": {"golden_sources": ["human"]}, "fingerprints": {"/data/pairs.parquet": "f" * 64}}
    records = _done(store, "ingest", read, DATA | {"fingerprint": "0" * 64, "bad_by_reason": {}, "repeated_responses": 0})
    trained = {"model": ModelConfig(source="lab/base-model").model_dump(), "align": AlignConfig().model_dump(mode="json", by_alias=True)}
    policy = _done(store, "align", trained, {}, {"records": records})
    wins = {"start": facts.wins(0.6), "chosen": facts.wins(0.5)}
    comparison = _done(store, "compare", {}, {"judge": "reward_model", "golden": ["human"], "wins": wins})
    measured = facts.measures() | {"gate": facts.UNDECIDED_GATE.model_dump()}
    evaluation = _done(store, "evaluate", {"evaluate": {"confidence": 0.9}}, measured, {"comparison": comparison})
    tags = {"dora.stage": "align", "dora.digest": policy.digest, "dora.evaluation": evaluation.digest}
    registry.register(uri, "demo", f"{root}/align/{policy.digest}/model", tags=tags)
    registry.promote(uri, "demo", "1", "a person looked at it", who="ann")
    registry.describe(uri, "demo", "1", "promoted", "accuracy above 0.5: 0.6", "win rate .600 [.550, .650] over the start")
    return store


def _done(store: Store, stage: str, spec: dict[str, Any], found: dict[str, Any], inputs: dict[str, StageRef] | None = None) -> StageRef:
    """Write a finished stage; `align` has a tiny policy."""
    ref = StageRef(stage=stage, digest=sha256_of(stage))
    folder = store.folder(stage, ref.digest)
    if stage == "align":
        torch.manual_seed(0)
        tokenizer = train_tokenizer(["how do I swim ? like this"], 300)
        save_model(build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, 64), tokenizer, folder.path / "model")
    result = {"rows": 1, "metrics": {}, "seconds": 1.0, "inputs": {name: at.model_dump() for name, at in (inputs or {}).items()}}
    store.mark_done(folder, {"stage": stage, "digest": ref.digest, "spec": spec, "facts": found} | result)  # type: ignore[typeddict-item]
    return ref
