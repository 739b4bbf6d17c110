"""The declared contents are those that a stage writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dora_core.errors import DataError
from infra.store.json_files import StoredError, StoredResult
from infra.store.store import ERROR, RESULT, Store
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import StageContext, StageOutput, execute


class Spec(StageSpec):
    stage = "toy"
    number: int = 1


def test_a_result_has_the_declared_keys(tmp_path: Path) -> None:
    store, spec = Store(str(tmp_path)), Spec()

    def run(spec: Spec, context: StageContext) -> StageOutput:
        (context.path / "a.bin").write_bytes(b"abc")
        return StageOutput(rows=1)

    execute(spec, run, store)
    written = json.loads((tmp_path / "toy" / spec.digest() / RESULT).read_text())
    assert written.keys() == StoredResult.__annotations__.keys()
    assert written["files"] == {"a.bin": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}


@pytest.mark.parametrize(("error", "traced"), [(DataError("no", hint="h"), False), (RuntimeError("no"), True)])
def test_an_error_has_the_declared_keys(error: Exception, traced: bool, tmp_path: Path) -> None:
    store, spec = Store(str(tmp_path)), Spec()

    def run(spec: Spec, context: StageContext) -> StageOutput:
        raise error

    with pytest.raises(type(error)):
        execute(spec, run, store)
    written = json.loads((tmp_path / "toy" / spec.digest() / ERROR).read_text())
    assert written.keys() == StoredError.__annotations__.keys() - (set() if traced else {"traceback"})
