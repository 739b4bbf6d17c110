"""Stage classify: quality, resume, rows to fit on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dora_core.errors import DataError
from dora_core.testbed.mixture import Testbed
from infra.store.store import Store
from tasks.runtime.stage import StageContext, StageOutput, execute
from tasks.stages import classify
from tests.tasks.classified import CONFIG, WORLD, classify_spec
from tests.tasks.conftest import GOLDEN, IN_PROCESS
from tests.tasks.stages.conftest import Fitted


@pytest.fixture
def store(fitted: Fitted, tmp_path: Path) -> Store:
    """A copy of ``fitted``'s."""
    return Store(str(shutil.copytree(fitted.root, tmp_path / "store")))


def test_classifiers_tell_sources_apart_and_say_how_well(store, fitted):
    facts = store.read_result("classify", fitted.classifier.digest)["facts"]
    assert facts["reused"] is False and facts["classifier"] == fitted.classifier.model_dump()
    assert set(facts["sources"]) == {s for s in Testbed(WORLD).sources if s not in GOLDEN}
    for source in facts["sources"].values():
        assert source["auc"] > 0.65 and source["auc_low"] < source["auc"] < source["auc_high"]
        assert source["prompt_only_auc"] == pytest.approx(0.5, abs=0.12)  # prompts are independent of sources here
        assert source["ece"] < 0.15
    assert {point["fold"] for point in facts["curve"]} == {0, 1}
    assert "How" not in json.dumps(facts["sources"])


def test_after_a_crash_only_unfinished_folds_are_fitted(store, fitted):
    """Fold 0 is whole, fold 1's weights were torn by the crash; both end as they were. The run that crashes finds both folds done."""
    stage = store.local_root / "classify" / fitted.classifier.digest
    (stage / "result.json").unlink()

    def fits_and_dies(spec: classify.Spec, context: StageContext) -> StageOutput:
        classify.run(spec, context)
        raise ConnectionError("the node is gone before the result is written")

    with pytest.raises(ConnectionError):
        execute(classify_spec(fitted.records), fits_and_dies, store)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in stage.glob("classifier/fold-*/*")}
    heads = stage / "classifier/fold-1/heads.safetensors"
    heads.write_bytes(heads.read_bytes()[:-8])
    execute(classify_spec(fitted.records), classify.run, store)
    assert {p: p.read_bytes() for p in before} == {p: content for p, (content, _) in before.items()}
    rewritten = {p.parent.name for p, (_, written) in before.items() if p.stat().st_mtime_ns != written}
    assert rewritten == {"fold-1"}


def test_without_golden_or_without_synthetic_the_remedy_is_named(store, fitted, tmp_path):
    records = fitted.records
    nobody = classify.Spec(records=records, classifier=CONFIG, golden_sources=["nobody"], execution=IN_PROCESS)
    with pytest.raises(DataError, match="golden source") as error:
        execute(nobody, classify.run, store)
    assert "human" in error.value.hint
    everybody = classify.Spec(records=records, classifier=CONFIG, golden_sources=["*"], execution=IN_PROCESS)
    with pytest.raises(DataError, match="nothing to distinguish"):
        execute(everybody, classify.run, store)


def test_planning_imports_no_heavy_library():
    import subprocess
    import sys

    heavy = "{'torch', 'ray', 'transformers', 'mlflow', 'matplotlib'}"
    code = f"import sys, tasks.stages.classify, tasks.stages.calibrate; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
