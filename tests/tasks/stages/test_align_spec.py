"""The spec of an alignment: what later fields leave alone, and the training data that follows from it."""

from __future__ import annotations

from dora_core.config.alignment import AlignConfig
from dora_core.config.method import ModelConfig, TextConfig
from tasks.runtime.spec import StageRef
from tasks.stages._align_spec import Spec
from tasks.tables.record_selection import HeldOutPrompts

RECORDS, REFERENCE = StageRef(stage="ingest", digest="a" * 64), StageRef(stage="reference", digest="b" * 64)


def spec(**changes: object) -> Spec:
    fields = {"records": RECORDS, "calibration": None, "reference": REFERENCE, "start": None, "model": ModelConfig(), "text": TextConfig()}
    return Spec(**fields | changes, align=AlignConfig())  # type: ignore[arg-type]


def test_fields_of_later_releases_are_no_part_of_the_digest_while_they_are_empty() -> None:
    assert not {"selection", "held_out", "recipe", "equal_steps"} & spec().payload().keys()
    assert spec(recipe="erm").digest() != spec().digest()


def test_held_out_prompts_and_the_finalist_reach_the_training_data() -> None:
    held_out = HeldOutPrompts(folds=5, fold=1)
    data = spec(held_out=held_out, recipe="erm").preparation()["data"]
    assert (data.held_out, data.recipe) == (held_out, "erm")  # type: ignore[attr-defined]
    assert data.digest() != spec().preparation()["data"].digest()
