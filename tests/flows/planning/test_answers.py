"""Kept answers of another server are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.config.execution import Endpoint, Execution
from dora_core.config.method import GenerateConfig, ModelConfig, TextConfig
from flows.planning.answers import answered_elsewhere
from infra.store.json_files import StoredResult
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.stages import generate


def spec(url: str) -> generate.Spec:
    records = StageRef(stage="ingest", digest="a" * 64)
    served = GenerateConfig(served_model="m")
    execution = Execution(endpoint=Endpoint(url=url))
    return generate.Spec(records=records, policy=None, model=ModelConfig(), text=TextConfig(), generate=served, execution=execution)


@pytest.mark.parametrize(
    ("origins", "named"),
    [
        ({"http://one/v1 m version 0.9": 3}, "kept ones of http://one/v1, not of http://two/v1"),
        ({"http://two/v1 m": 3}, None),
        ({"unknown": 3}, None),
        ({}, None),
    ],
)
def test_the_note_names_both_servers(origins: dict[str, int], named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, two = Store(str(tmp_path)), spec("http://two/v1/")
    assert spec("http://one/v1").digest() == two.digest(), "the address is no part of it"
    assert answered_elsewhere(two, store) is None, "nothing is kept"
    facts: Any = {"facts": {"origins": origins}}

    def result(stage: str, digest: str) -> StoredResult:
        assert (stage, digest) == ("generate", two.digest())
        return facts  # type: ignore[no-any-return]

    monkeypatch.setattr(store, "read_result", result)
    note = answered_elsewhere(two, store)
    assert (note is None) if named is None else (note is not None and named in note and str(tmp_path) in note)
