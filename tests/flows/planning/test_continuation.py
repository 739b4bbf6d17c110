"""Lineages of champions as the store has them, and where a run continues from each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dora_core.config.method import ModelConfig
from dora_core.errors import ConfigError
from flows.planning.continuation import Continuation, continuation
from infra.store.store import Store
from tasks.runtime.stage import StageRef

MODEL = ModelConfig(hidden_size=32, heads=2)


class Lineage:
    """Results in a store, as far as a plan reads them: their specs."""

    def __init__(self, folder: Path):
        self.store, self._made = Store(str(folder)), 0

    def done(self, stage: str, **spec: Any) -> StageRef:
        self._made += 1
        ref = StageRef(stage=stage, digest=f"{self._made:064x}")
        payload = {
            key: value.model_dump(mode="json") if isinstance(value, StageRef | ModelConfig) else value for key, value in spec.items()
        }
        result = {"stage": stage, "digest": ref.digest, "seconds": 1.0, "facts": {}, "spec": payload}
        self.store.mark_done(self.store.folder(stage, ref.digest), result)  # type: ignore[typeddict-item]
        return ref

    def night(self, start: StageRef | None, records: StageRef, stage: str = "align") -> StageRef:
        return self.done(stage, model=MODEL, start=start, records=records)

    def continued(self, champion: StageRef | None, given: StageRef, model: ModelConfig = MODEL) -> tuple[Continuation | None, list[str]]:
        notes = list[str]()
        return continuation(champion, given, model, self.store, notes.append), notes


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    return Lineage(tmp_path / "store")


def test_without_a_champion_the_base_is_the_start(lineage: Lineage) -> None:
    found, notes = lineage.continued(None, lineage.done("ingest"))
    assert found is None and "no champion yet: this run starts from the base" in notes[0]


def test_three_nights_have_one_base(lineage: Lineage) -> None:
    first, second, third = (lineage.done("ingest", night=i) for i in range(3))
    base = lineage.night(None, first, "sft")
    one = lineage.night(base, first)
    assert lineage.continued(one, second) == (Continuation(one, first, base), [])
    two = lineage.night(one, lineage.done("replay", records=second, earlier=first))
    assert lineage.continued(two, third) == (Continuation(two, second, base), [])


def test_a_model_without_a_supervised_start_is_the_base_itself(lineage: Lineage) -> None:
    first = lineage.done("ingest")
    one = lineage.night(None, first)
    assert lineage.continued(one, lineage.done("ingest", other=1))[0] == Continuation(one, first, None)


def test_rounds_lead_to_the_records_they_were_mixed_from(lineage: Lineage) -> None:
    first = lineage.done("ingest")
    mixture = lineage.done("mix", records=first)
    base = lineage.night(None, first, "sft")
    learned = lineage.night(lineage.night(base, first), mixture)
    assert lineage.continued(learned, lineage.done("ingest", other=1))[0] == Continuation(learned, first, base)


def test_the_champions_own_records_start_where_it_did(lineage: Lineage) -> None:
    first, second = lineage.done("ingest"), lineage.done("ingest", other=1)
    base = lineage.night(None, first, "sft")
    one = lineage.night(base, first)
    found, notes = lineage.continued(one, first)
    assert found is None and "these very records, from the base" in notes[0]
    two = lineage.night(one, lineage.done("replay", records=second, earlier=first))
    found, notes = lineage.continued(two, second)
    assert found == Continuation(one, first, base) and "starts where the champion's did" in notes[0]


def test_another_model_or_a_lost_lineage_is_refused(lineage: Lineage) -> None:
    first = lineage.done("ingest")
    one = lineage.night(None, first)
    with pytest.raises(ConfigError, match="trained from tiny of width 32 and depth 2, and policy names tiny of width 64"):
        lineage.continued(one, lineage.done("ingest", other=1), MODEL.evolve(hidden_size=64))
    orphan = lineage.night(StageRef(stage="sft", digest="f" * 64), first)
    with pytest.raises(ConfigError, match="sft/ffffffffffff of its lineage is not in"):
        lineage.continued(orphan, lineage.done("ingest", other=2))
    forgotten = lineage.night(None, StageRef(stage="ingest", digest="e" * 64))
    with pytest.raises(ConfigError, match="ingest/eeeeeeeeeeee of its lineage"):
        lineage.continued(forgotten, lineage.done("ingest", other=3))
