"""Many stages in one job: order, resume, the cost of a failure, and deaths of real actors."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from dora_core.config.execution import Execution
from dora_core.errors import ConfigError, DataError, StageFailed, StoreError
from infra.store.journal import JournalReader
from infra.store.store import Store
from tasks.runtime.descriptor import Stage
from tasks.runtime.facts import AnyFacts
from tasks.runtime.stage import StageContext, StageOutput, StageRef, StageSpec, execute, write_spec
from tasks.stages import batch
from tasks.stages.registry import STAGES

IN_PROCESS = Execution(workers=0)


class Spec(StageSpec):
    """A stage that adds one to the largest of its inputs. ``mood``: none, "refuses", or "dies" and "dies once" (kill −9)."""

    stage: ClassVar[str] = "toy"

    name: str
    reads: list[StageRef] = Field(default_factory=list)
    mood: str = ""


def run(spec: Spec, context: StageContext) -> StageOutput:
    with (context.store.local_root / "calls").open("a") as calls:
        calls.write(f"{spec.name}\n")
    died = context.store.local_root / f"{spec.name}.died"
    if spec.mood == "refuses":
        raise DataError(f"{spec.name} refuses", hint="ask it nicely")
    if spec.mood == "dies" or (spec.mood == "dies once" and not died.exists()):
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    value = 1 + max((context.result(ref)["metrics"]["value"] for ref in spec.reads), default=0.0)
    (context.path / "value.txt").write_text(str(value))
    return StageOutput(rows=1, metrics={"value": value}, facts=AnyFacts(pid=os.getpid()))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setitem(STAGES, "toy", Stage(Spec, run))
    return Store(str(tmp_path / "store"))


class Toys:
    """Builds toy specs by name, writes them to the store and runs them as one batch."""

    def __init__(self, store: Store):
        self.store, self.specs = store, dict[str, Spec]()

    def add(self, name: str, *reads: str, mood: str = "", workers: int = 0) -> None:
        refs = [self.specs[other].ref() for other in reads]
        self.specs[name] = Spec(name=name, reads=refs, mood=mood, execution=Execution(workers=workers))
        write_spec(self.specs[name], self.store)

    def batch(self, execution: Execution = IN_PROCESS) -> batch.Spec:
        return batch.Spec(stages=[spec.ref() for spec in self.specs.values()], execution=execution)

    def run(self, execution: Execution = IN_PROCESS) -> dict:
        return execute(self.batch(execution), batch.run, self.store)

    def calls(self) -> list[str]:
        return (self.store.local_root / "calls").read_text().split()

    def value(self, name: str) -> float:
        result = self.store.read_result("toy", self.specs[name].digest())
        assert result is not None
        return result["metrics"]["value"]

    def is_done(self, name: str) -> bool:
        return self.specs[name].is_done(self.store)


@pytest.fixture
def toys(store: Store) -> Toys:
    return Toys(store)


def test_a_list_of_references_is_an_input_by_index(toys: Toys) -> None:
    toys.add("a")
    toys.add("b", "a")
    toys.add("c", "a", "b")
    assert toys.specs["c"].inputs() == {"reads.0": toys.specs["a"].ref(), "reads.1": toys.specs["b"].ref()}
    assert toys.batch().inputs() == {}


def test_longest_chain_first_whatever_the_order_of_the_batch(toys: Toys) -> None:
    toys.add("alone")
    toys.add("a")
    toys.add("b", "a")
    toys.add("c", "b", "alone")
    toys.add("short", "a")
    toys.specs = dict(sorted(toys.specs.items(), key=lambda item: ["short", "alone", "c", "a", "b"].index(item[0])))
    result = toys.run()
    assert toys.calls() == ["a", "alone", "b", "short", "c"]
    assert toys.value("c") == 3.0
    assert result["facts"]["done"] == 5 and result["facts"]["cached"] == 0 and set(result["facts"]["seconds"]) == {"toy"}


def test_progress_counts_stages_and_names_the_one_that_runs(toys: Toys) -> None:
    toys.add("a")
    toys.add("b", "a")
    spec = toys.batch()
    toys.run()
    events = [e for e in JournalReader(toys.store, "batch", spec.digest()).new_events() if e["kind"] == "progress"]
    assert {(e["total"], e["unit"]) for e in events} == {(2, "stages")}
    assert events[-1]["done"] == 2 and events[-1]["note"] == ""
    assert f"toy {toys.specs['b'].digest()[:8]}" in {e["note"] for e in events}


def test_a_failure_costs_what_depends_on_it_and_nothing_else(toys: Toys, caplog: pytest.LogCaptureFixture) -> None:
    toys.add("bad", mood="refuses")
    toys.add("after", "bad")
    toys.add("after that", "after")
    toys.add("worse", mood="refuses")
    toys.add("good")
    toys.add("better", "good")
    with caplog.at_level(logging.ERROR), pytest.raises(StageFailed, match="bad refuses") as caught:
        toys.run()
    hint = caught.value.hint
    assert hint.startswith("ask it nicely")
    assert "also failed: toy" in hint and "worse refuses" in hint
    assert "2 stages that depend on these were not run" in hint and "2 of 6 stages are finished and kept" in hint
    assert not caught.value.retryable
    assert toys.is_done("better") and not toys.is_done("after")
    assert caplog.text.count("refuses") == 2
    assert not toys.batch().is_done(toys.store)


def test_a_second_try_runs_only_what_is_missing(toys: Toys) -> None:
    toys.add("a")
    toys.run()
    toys.add("b", "a")
    result = toys.run()
    assert toys.calls() == ["a", "b"]
    assert result["facts"]["cached"] == 1 and result["facts"]["done"] == 2


def test_a_finished_batch_notices_that_a_stage_was_deleted(toys: Toys) -> None:
    toys.add("a")
    toys.add("b", "a")
    toys.run()
    spec = toys.batch()
    assert spec.is_done(toys.store)
    (toys.store.folder("toy", toys.specs["b"].digest()).path / "value.txt").unlink()
    assert not spec.is_done(toys.store)
    toys.run()
    assert toys.calls() == ["a", "b", "b"] and spec.is_done(toys.store)


def test_an_input_from_outside_must_be_finished(toys: Toys) -> None:
    toys.add("a")
    toys.add("b", "a")
    outside = toys.specs.pop("a")
    with pytest.raises(StoreError, match="neither in the batch nor finished"):
        toys.run()
    execute(outside, run, toys.store)
    toys.run()
    assert toys.value("b") == 2.0


def test_a_stage_with_workers_of_its_own_is_refused(toys: Toys) -> None:
    toys.add("a", workers=2)
    with pytest.raises(ConfigError, match=r"toy \w{8} has execution\.workers=2 inside a batch") as caught:
        toys.run()
    assert "execution.workers to 0" in caught.value.hint


def test_a_spec_that_was_never_written_is_named(store: Store) -> None:
    spec = batch.Spec(stages=[Spec(name="ghost").ref()], execution=IN_PROCESS)
    with pytest.raises(StoreError, match="no spec"):
        execute(spec, batch.run, store)


@pytest.mark.fault(1)
@pytest.mark.component
def test_a_killed_actor_is_replaced_and_its_stage_runs_again(ray_cluster: None, toys: Toys) -> None:
    toys.add("a", mood="dies once")
    toys.add("b", "a")
    toys.add("other")
    toys.add("another", "other")
    toys.run(Execution(workers=2))
    assert toys.value("b") == 2.0 and toys.value("another") == 2.0
    assert sorted(toys.calls()) == ["a", "a", "another", "b", "other"]
    pids = {toys.store.read_result("toy", spec.digest())["facts"]["pid"] for spec in toys.specs.values()}
    assert os.getpid() not in pids and len(pids) <= 3


@pytest.mark.fault(2)
@pytest.mark.component
def test_a_stage_that_always_dies_fails_alone(ray_cluster: None, toys: Toys) -> None:
    toys.add("killer", mood="dies")
    toys.add("after", "killer")
    toys.add("good")
    with pytest.raises(StageFailed, match=r"the same stage killed every worker that took it: toy \w{8} 2 times") as caught:
        toys.run(Execution(workers=2, max_failures=1))
    assert "out of memory" in caught.value.hint and "1 stages that depend on it were not run" in caught.value.hint
    assert toys.is_done("good") and toys.calls().count("killer") == 2


@pytest.mark.fault(1, 2)
@pytest.mark.component
def test_different_stages_that_kill_their_workers_are_an_unhealthy_node(ray_cluster: None, toys: Toys) -> None:
    """The batch ends at once: other stages are neither blamed nor sent to their deaths, and finished ones are kept."""
    toys.add("good")
    toys.run()
    for name in ("a", "b", "c", "d", "e", "f"):
        toys.add(name, mood="dies")
    # Usually at the second death; where the second worker starts late, the first stage has been tried again by then.
    times = r"(once|2 times)"
    with pytest.raises(StageFailed, match=rf"[234] workers died in different places: toy \w{{8}} {times}, toy \w{{8}} {times}") as caught:
        toys.run(Execution(workers=2, max_failures=1))
    assert "lower workers, batch_tokens or micro_batch_tokens of execution.default" in caught.value.hint
    assert toys.is_done("good") and len(toys.calls()) <= 1 + 4, "the deaths are bounded, whatever the number of stages"


class Prepared(Spec):
    """A toy that reads another one, which it computes from its own fields."""

    stage: ClassVar[str] = "prepared"

    def preparation(self) -> dict[str, StageSpec]:
        return {"data": Data(name="data of " + self.name.partition(" ")[0], execution=IN_PROCESS)}


class Data(Spec):
    stage: ClassVar[str] = "data"
    on_demand: ClassVar[bool] = True


def test_on_demand_stages_run_once_before_those_that_read_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "prepared", Stage(Prepared, run))
    monkeypatch.setitem(STAGES, "data", Stage(Data, run))
    first, second, other = (Prepared(name=name, execution=IN_PROCESS) for name in ("x 1", "x 2", "y"))
    for spec in (first, second, other):
        write_spec(spec, store)
    result = execute(batch.Spec(stages=[first.ref(), second.ref(), other.ref()], execution=IN_PROCESS), batch.run, store)
    calls = (store.local_root / "calls").read_text().splitlines()
    assert sorted(calls) == ["data of x", "data of y", "x 1", "x 2", "y"]
    assert calls.index("data of x") < min(calls.index("x 1"), calls.index("x 2")) and calls.index("data of y") < calls.index("y")
    assert result["facts"]["done"] == 3 and set(result["facts"]["seconds"]) == {"data", "prepared"}
    assert all(store.is_done("data", spec.preparation()["data"].digest()) for spec in (first, other))
