"""Weights of a trial that has no result are found; any other source is a mistake of the program."""

from __future__ import annotations

import shutil
from pathlib import Path

from infra.store.store import Store
from tasks.runtime.stage import StageRef
from tasks.stages._trial_scorer import TrialScorer
from tasks.stages.reference import LogpArguments
from tests.tasks.conftest import IN_PROCESS, TEXT

Start = tuple[Path, StageRef, StageRef, StageRef]


def test_it_scores_with_the_model_that_lies_in_the_folder(pipeline_start: Start, tmp_path: Path) -> None:
    import pyarrow as pa

    store = Store(str(shutil.copytree(pipeline_start[0], tmp_path / "store")))
    _, _, policy, _ = pipeline_start
    trial = StageRef(stage="trial", digest="c" * 64)
    shutil.copytree(store.fetch(policy.stage, policy.digest) / "model", store.folder("trial", trial.digest).path / "model")
    arguments = LogpArguments(store_uri=store.uri, execution=IN_PROCESS, models={"policy": trial}, text=TEXT)
    rows = pa.table({"prompt": [[{"role": "user", "content": "why"}]] * 2, "response": ["so", "because"], "record_id": ["0", "0"]})
    scored = TrialScorer(arguments)(rows)
    assert scored["record_id"].to_pylist() == ["0", "0"] and all(value < 0 for value in scored["logp_policy"].to_pylist())
