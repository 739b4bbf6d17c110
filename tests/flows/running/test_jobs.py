"""A stage as a Ray job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.running.jobs import run_as_job
from infra.store.store import ERROR, Store
from tasks.runtime.stage import StageOutput, execute
from tests.flows.running.planned import Spec


class Jobs:
    """In place of the Jobs API: computes the stage itself."""

    def __init__(self, store: Store, spec: Spec):
        self.store, self.spec, self.given = store, spec, dict[str, Any]()

    def run(self, **given: Any) -> str:
        self.given = given
        assert not given["is_done"]()
        self.store.folder("toy", self.spec.digest()).write_json(ERROR, {"message": "earlier"})
        assert given["read_error"]() == {"message": "earlier"}
        given["on_log"]("a line")
        execute(self.spec, lambda spec, context: StageOutput(rows=1), self.store)
        assert given["is_done"]()
        return "dora-toy-1"


def test_the_job_gets_the_stored_spec_and_sees_result_and_error(tmp_path: Path) -> None:
    store, spec, lines = Store(str(tmp_path)), Spec(number=3), list[str]()
    jobs = Jobs(store, spec)
    assert run_as_job(jobs, spec, store, on_log=lines.append) == "dora-toy-1"  # type: ignore[arg-type]
    assert (jobs.given["stage"], jobs.given["digest"], lines) == ("toy", spec.digest(), ["a line"])
    assert jobs.given["spec_uri"] == f"{store.uri}/toy/{spec.digest()}/spec.json"
    assert store.read_json(f"toy/{spec.digest()}/spec.json")["number"] == 3
