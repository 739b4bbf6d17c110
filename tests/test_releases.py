"""A store of the release before stays readable: the fields of every document that a release writes and a later one reads.

``written_before.json`` has them, by document: fields that are always there, and those that may be left out. After a release,
``python -m tests.test_releases`` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dora_core.errors import StoreError
from flows.planning.latest import LatestStage
from flows.run_record import RunRecord, read_record, write_record
from infra.store.leases import Claim
from infra.store.store import Store
from infra.tracking.outbox import Artifact, Batch, Curves, Finish, Input, Start
from tasks.stages.registry import STAGES

PAGE = Path(__file__).parent / "written_before.json"
DOCUMENTS: dict[str, type[Any]] = {
    **{f"result.json of {name}": stage.facts for name, stage in STAGES.items()},
    **{f"outbox: {model.__name__}": model for model in (Artifact, Batch, Curves, Finish, Input, Start)},
    "run.json": RunRecord,
    "latest.json": LatestStage,
    "lease": Claim,
}
Fields = dict[str, list[str]]


def fields(model: type[Any]) -> Fields:
    """Return the paths of a document's fields, ``gate.rules[].name``, as ``{"always": …, "sometimes": …}``."""
    schema = model.model_json_schema(by_alias=True)
    found = dict(_paths(schema, schema.get("$defs", {}), "", ()))
    return {
        "always": sorted(path for path, required in found.items() if required),
        "sometimes": sorted(path for path, required in found.items() if not required),
    }


def _paths(node: dict[str, Any], models: dict[str, Any], prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    if reference := node.get("$ref"):
        name = reference.rpartition("/")[2]
        if name not in above:  # models may contain themselves
            yield from _paths(models[name], models, prefix, (*above, name))
    for one in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from _paths(one, models, prefix, above)
    for kind, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(kind), dict):
            yield from _paths(node[kind], models, prefix + suffix, above)
    for name, child in node.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield path, name in node.get("required", ())
        yield from _paths(child, models, path, above)


def page() -> str:
    return json.dumps({name: fields(model) for name, model in sorted(DOCUMENTS.items())}, indent=1) + "\n"


BEFORE: dict[str, Fields] = json.loads(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}


@pytest.mark.fault(36)
@pytest.mark.parametrize("document", sorted(BEFORE))
def test_documents_of_the_release_before_are_readable(document: str) -> None:
    """A field that was not always there needs a default, and one that was there must still be known."""
    assert document in DOCUMENTS, f"{document}: its stage is gone, and stores have its results"
    before, now = BEFORE[document], fields(DOCUMENTS[document])
    known = {*before["always"], *before["sometimes"]}
    parents_are_new = {path for path in now["always"] if any(path.startswith(f"{new}{mark}") for new in _new(now, known) for mark in ".[{")}
    assert {*now["always"]} - {*before["always"]} - parents_are_new == set(), "give these fields a default"
    assert known - {*now["always"], *now["sometimes"]} == set(), "keep these fields, with a default"


def _new(now: Fields, known: set[str]) -> set[str]:
    return {*now["always"], *now["sometimes"]} - known


def test_every_document_is_in_the_list() -> None:
    assert BEFORE.keys() == DOCUMENTS.keys(), "python -m tests.test_releases"


@pytest.mark.fault(36)
def test_a_manifest_of_the_first_release_is_read_and_keys_of_a_later_one_are_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = {
        "run_id": "p-1",
        "project": "p",
        "started": 1.0,
        "status": "completed",
        "stages": [{"stage": "align", "label": "align", "digest": None}],
    }
    store.write_json("runs/p-1/run.json", first | {"later": {"key": 1}})
    record = read_record(store, "p-1")
    assert record is not None and record.flow == "" and record.stages[0].digest == ""
    write_record(store, record)
    assert store.read_json("runs/p-1/run.json")["later"] == {"key": 1}


@pytest.mark.fault(35)
def test_a_manifest_that_this_release_cannot_read_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json(
        "runs/p-2/run.json", {"run_id": "p-2", "project": "p", "started": 1.0, "status": "paused by a later release", "stages": []}
    )
    with pytest.raises(
        StoreError, match=r"runs/p-2/run\.json was written by another release of DoRA Realign.*status: Input should be"
    ) as error:
        read_record(store, "p-2")
    assert "a later one" in error.value.hint


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
