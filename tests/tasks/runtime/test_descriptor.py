"""The descriptor of a stage: typed results, defaults, and results that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from dora_core.errors import StoreError
from infra.store.store import Store
from tasks.runtime.descriptor import Stage, StageResult, read_result
from tasks.runtime.facts import AnyFacts, Facts
from tasks.runtime.stage import StageContext, StageOutput, StageRef, StageSpec, execute

INPUT = StageRef(stage="ingest", digest="a" * 64)


class Spec(StageSpec):
    stage: ClassVar[str] = "toy"

    records: StageRef = INPUT


class Counted(Facts):
    good: int


def run(spec: Spec, context: StageContext) -> StageOutput:
    return StageOutput(rows=7, metrics={"accuracy": 0.5}, facts=Counted(good=3))


TOY = Stage(Spec, run, Counted)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    execute(Spec(), run, store)
    return store


def content(store: Store) -> dict[str, Any]:
    found = store.read_result("toy", Spec().digest())
    assert found is not None
    return found


def test_a_written_result_is_read_with_typed_facts(store: Store) -> None:
    result = read_result(store, Spec().ref(), Counted)
    assert result is not None and result.facts == Counted(good=3)
    assert (result.stage, result.digest, result.rows, result.metrics) == ("toy", Spec().digest(), 7, {"accuracy": 0.5})
    assert result.inputs == {"records": INPUT} and result.payload == Spec().payload() and result.seconds >= 0
    assert TOY.parse(content(store)) == result


def test_a_stage_without_a_result_has_none(store: Store) -> None:
    assert read_result(store, StageRef(stage="toy", digest="b" * 64), Counted) is None


def test_facts_that_the_stage_does_not_have_are_refused(store: Store) -> None:
    class Other(Facts):
        bad: int

    with pytest.raises(StoreError, match=r"result\.json was written by another release .*: bad: Field required"):
        StageResult.parse(content(store), Other)


def test_defaults_show_the_rows_and_send_no_event(store: Store) -> None:
    plain = Stage(Spec, run)
    result = plain.parse(content(store))
    assert plain.name == "toy" and plain.headline(result) == "7 rows" and plain.event(result, store) is None
    assert plain.facts is AnyFacts and (plain.tracked, plain.keeps, plain.row_cache, plain.section) == ((), (), None, None)
