"""Digests of specs: computed once, not part of the spec, another one for a copy with other values; and the fields outside them."""

from __future__ import annotations

import pickle
from typing import Annotated, Any, ClassVar

import pytest

from tasks.runtime.spec import NotInDigest, StageRef, StageSpec


class Numbered(StageSpec):
    stage: ClassVar[str] = "numbered"

    number: int = 0


def test_a_digest_is_computed_once_per_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    payload, calls = StageSpec.payload, list[int]()

    def counted(spec: Numbered) -> dict[str, Any]:
        calls.append(spec.number)
        return payload(spec)

    monkeypatch.setattr(StageSpec, "payload", counted)
    spec = Numbered()
    assert spec.digest() == spec.digest() == spec.ref().digest and calls == [0]
    other = spec.model_copy(update={"number": 1})
    assert other.digest() != spec.digest() and calls == [0, 1], "a copy has its own"
    assert other.digest() == Numbered(number=1).digest()
    assert pickle.loads(pickle.dumps(other)).digest() == other.digest()


def test_a_digest_that_was_computed_is_no_part_of_the_spec() -> None:
    spec, fresh = Numbered(), Numbered()
    spec.digest()
    assert spec == fresh and spec.model_dump() == fresh.model_dump() and spec.inputs() == {}


class Referring(StageSpec):
    stage: ClassVar[str] = "referring"

    one: StageRef
    more: list[StageRef]
    hint: Annotated[StageRef | None, NotInDigest] = None


def test_references_are_found_by_field_and_hints_are_no_inputs() -> None:
    a, b, c = (Numbered(number=number).ref() for number in range(3))
    spec = Referring(one=a, more=[b, a], hint=c)
    assert spec.inputs() == {"one": a, "more.0": b, "more.1": a}
    assert spec.predecessors() == {**spec.inputs(), "hint": c}
    assert spec.digest() == Referring(one=a, more=[b, a]).digest() != Referring(one=b, more=[b, a]).digest()
