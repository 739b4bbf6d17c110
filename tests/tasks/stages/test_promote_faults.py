"""The registry under a promotion that is killed, doubled, or finds that it has moved; each process is a real one, and so is the kill."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from infra.tracking import model_registry as registry
from infra.tracking.mlflow_client import mlflow_client
from infra.tracking.model_registry import RegistryError, RegistryMoved
from tasks.runtime.stage import execute
from tasks.stages.promote import Spec, Tracking, run
from tests.faults import Recovery
from tests.tasks.stages.test_promote import NO, YES, Models

WRITES = ("create_", "set_", "delete_", "update_")
MOVED = 3  # exit code of a process whose promotion came too late


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """Child processes that need not import MLflow each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "mlflow"])
    yield context
    from multiprocessing import forkserver

    forkserver._forkserver._stop()  # the server process, which would live as long as this one


def in_process(context: ForkServerContext, target: Callable[..., None], *arguments: Any) -> int:
    """Exit code; negative for a signal."""
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


# ---------------------------------------------------------------------------------------------- killed, at each of its steps


class Mortal:
    """A client of MLflow whose process is killed right after it has written so many times."""

    def __init__(self, uri: str, writes: int):
        self._client, self._left = mlflow_client(uri), writes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not name.startswith(WRITES):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            answer = method(*arguments, **named)
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call


def promote_and_die(spec: Spec, store: str, writes: int) -> None:
    from infra.store.store import Store

    mortal = Mortal(spec.tracking.uri, writes)  # type: ignore[union-attr]
    registry._client = lambda uri: mortal  # type: ignore[assignment]
    execute(spec, run, Store(store))


def state(uri: str) -> dict[str, Any]:
    """All that the registry says, without times."""
    versions = {
        v.version: {k: t for k, t in v.tags.items() if k not in (registry.HISTORY, "dora.promoted", "dora.challenger", "dora.rejected")}
        for v in mlflow_client(uri).search_model_versions("name='policy'")
    }
    audits = {v: [{k: e[k] for k in e if k != "when"} for e in registry.history(uri, "policy", v)] for v in versions}
    return {"aliases": registry.aliases(uri, "policy"), "versions": versions, "audits": audits}


CASES = {"auto": ("auto", None), "approved": ("ask", YES), "rejected": ("ask", NO), "never": ("never", None)}
QUICK = {("auto", 1), ("auto", 7), ("approved", 6)}
"""What CI kills: when the version is there and nothing else, and when the alias has moved without its audit."""


@pytest.mark.fault(24)
@pytest.mark.component
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        *((case, [step for name, step in sorted(QUICK) if name == case]) for case in ("auto", "approved")),
        *(pytest.param(case, None, marks=pytest.mark.chaos, id=f"{case}-all") for case in CASES),
    ],
)
def test_killed_after_any_write_and_run_again_the_registry_is_as_if_nothing_had_happened(
    case: str, steps: list[int] | None, tmp_path: Path, empty_mlflow_database: Path, processes: ForkServerContext, recovery: Recovery
) -> None:
    mode, answer = CASES[case]
    models = Models(tmp_path, f"sqlite:///{shutil.copy(empty_mlflow_database, tmp_path / 'before.db')}")
    models.promote("a", mode="auto")
    if answer is not None:
        models.promote("b", mode=mode)  # the question
    spec = models.spec("b", mode=mode, answer=answer)
    stage = models.store.local_root / "promote" / spec.digest()
    if stage.exists():
        shutil.copytree(stage, tmp_path / "asked")

    def attempt(name: str, writes: int) -> tuple[Spec, int]:
        """From the same start in a database of its own; the exit code of the process."""
        shutil.rmtree(stage, ignore_errors=True)
        if answer is not None:
            shutil.copytree(tmp_path / "asked", stage)
        uri = f"sqlite:///{shutil.copy(tmp_path / 'before.db', tmp_path / f'{name}.db')}"
        own = spec.model_copy(update={"tracking": Tracking(uri=uri)})
        return own, in_process(processes, promote_and_die, own, models.store.uri, writes)

    whole, code = attempt("whole", -1)
    expected, decision = state(whole.tracking.uri), execute(whole, run, models.store)["facts"]["decision"]
    assert code == 0 and len(expected["versions"]) == 2
    for step in steps or range(1, 100):
        half, code = attempt(f"killed{step}", step)
        if steps is None and code == 0:
            break  # there are no more writes
        assert code == -signal.SIGKILL
        recovery.begins()
        again = execute(half, run, models.store)["facts"]
        recovery.ends()
        assert again["decision"] == decision and half.is_done(models.store)
        assert without_reasons(state(half.tracking.uri)) == without_reasons(expected), f"killed after write {step}"
    assert steps or step > 8


def without_reasons(found: dict[str, Any]) -> dict[str, Any]:
    """A decision that is found in the audit is told as such: "promoted by ann" for "approved by ann"."""
    kept = {version: {k: t for k, t in tags.items() if k != "dora.reasons"} for version, tags in found["versions"].items()}
    return found | {"versions": kept}


# ------------------------------------------------------------------------------------------------------- two at the same time


def promote_at_once(uri: str, version: str, who: str, barrier: Barrier) -> None:
    mlflow_client(uri).search_registered_models()  # connected, before both start
    barrier.wait()
    try:
        registry.promote(uri, "policy", version, "reads well", who=who, instead_of="1")
    except RegistryMoved:
        raise SystemExit(MOVED) from None


def register_at_once(uri: str, version: str, who: str, barrier: Barrier) -> None:
    mlflow_client(uri).search_registered_models()
    barrier.wait()
    registry.register(uri, "policy", "s3://bucket/same")


def together(context: ForkServerContext, target: Callable[..., None], uri: str, versions: tuple[str, str]) -> list[int]:
    barrier = context.Barrier(2)
    both = [context.Process(target=target, args=(uri, v, who, barrier)) for v, who in zip(versions, ("ann", "bob"), strict=True)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    return sorted(process.exitcode or 0 for process in both)


@pytest.mark.fault(22)
@pytest.mark.component
def test_two_people_approve_at_the_same_moment(mlflow_sqlite: str, processes: ForkServerContext) -> None:
    """The same version: the alias moves once, with one entry in the audit. Two versions: one wins, the other is told."""
    for letter in "abc":
        registry.register(mlflow_sqlite, "policy", f"s3://bucket/{letter}")
    registry.promote(mlflow_sqlite, "policy", "1")
    assert together(processes, promote_at_once, mlflow_sqlite, ("2", "2")) == [0, 0]
    assert registry.aliases(mlflow_sqlite, "policy") == {"champion": "2", "previous": "1"}
    (entry,) = registry.history(mlflow_sqlite, "policy", "2")
    assert entry["action"] == "promoted" and entry["who"] in ("ann", "bob")

    assert registry.rollback(mlflow_sqlite, "policy") == "1"
    assert together(processes, promote_at_once, mlflow_sqlite, ("2", "3")) == [0, MOVED]
    found = registry.aliases(mlflow_sqlite, "policy")
    assert found["champion"] in "23" and found["previous"] == "1"
    loser = {"2": "3", "3": "2"}[found["champion"]]
    assert [e["action"] for e in registry.history(mlflow_sqlite, "policy", loser)][-1:] in ([], ["rolled_back"])


@pytest.mark.fault(24)
@pytest.mark.component
def test_two_runs_that_register_the_same_policy_make_one_version(mlflow_sqlite: str, processes: ForkServerContext) -> None:
    assert together(processes, register_at_once, mlflow_sqlite, ("", "")) == [0, 0]
    assert len(mlflow_client(mlflow_sqlite).search_model_versions("name='policy'")) == 1


# ------------------------------------------------------------------------------- moved between the look and the alias


@pytest.fixture
def models(tmp_path: Path, mlflow_sqlite: str) -> Models:
    """Version 1 is champion."""
    models = Models(tmp_path, mlflow_sqlite)
    models.promote("a", mode="auto")
    return models


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Once, after the stage has looked at the champion and before it moves the alias."""
    promote = registry.promote

    def late(*arguments: Any, **named: Any) -> None:
        monkeypatch.setattr(registry, "promote", promote)
        happens()
        promote(*arguments, **named)

    monkeypatch.setattr(registry, "promote", late)


@pytest.mark.fault(24)
def test_another_champion_in_that_moment_stays_and_is_compared_with(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(models.uri, "policy", "s3://bucket/other")
    meanwhile(monkeypatch, lambda: registry.promote(models.uri, "policy", "2", "by hand", who="bob"))
    with pytest.raises(RegistryMoved, match="version 3 of policy was to replace version 1, but version 2 is champion now") as caught:
        models.promote("b", mode="auto", against="a")
    assert caught.value.retryable and "run again" in caught.value.hint
    facts = models.promote("b", mode="auto", against="a")
    assert (facts["decision"], facts["waits"]) == ("challenger", "comparison")
    assert "its files are not in" in facts["reasons"][0] and facts["reasons"][0].endswith("to replace it: dora promote policy 3")
    assert models.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}


@pytest.mark.fault(24)
def test_no_champion_any_more_and_the_next_run_promotes(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client(models.uri)
    meanwhile(monkeypatch, lambda: client.delete_registered_model_alias("policy", "champion"))
    with pytest.raises(RegistryMoved, match="but none is champion now"):
        models.promote("b", mode="auto", against="a")
    assert models.promote("b", mode="auto", against="a")["decision"] == "promoted"
    assert models.aliases() == {"champion": "2"}


@pytest.mark.fault(24)
def test_a_version_deleted_in_that_moment_is_registered_anew_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client(models.uri)
    meanwhile(monkeypatch, lambda: client.delete_model_version("policy", "2"))
    with pytest.raises(RegistryError, match="no version '2'"):
        models.promote("b", mode="auto")
    assert models.promote("b", mode="auto")["decision"] == "promoted"
    assert len(client.search_model_versions("name='policy'")) == 2
    assert models.aliases() == {"champion": "3", "previous": "1"}


@pytest.mark.fault(24)
def test_the_champions_version_deleted_by_hand_blocks_nothing(models: Models) -> None:
    client = mlflow_client(models.uri)
    client.delete_registered_model_alias("policy", "champion")
    client.delete_model_version("policy", "1")
    assert models.promote("b", mode="auto", against="a")["decision"] == "promoted"
    assert set(models.aliases()) == {"champion"}


@pytest.mark.fault(24)
def test_a_champion_that_the_comparison_could_not_see_is_not_replaced_by_itself(models: Models) -> None:
    """The plan found no champion to compare with; since then there is one."""
    wanted = {"mode": "auto", "compares": True}
    facts = models.promote("b", **wanted)
    assert (facts["decision"], facts["waits"]) == ("challenger", "comparison")
    assert facts["reasons"][0] == "version 1 became champion after the comparison; run again to be compared with it"
    assert models.aliases() == {"champion": "1", "challenger": "2"} and not models.is_done("b", **wanted)
    assert models.promote("b", against="a", **wanted)["decision"] == "promoted"  # what the next run's plan makes of it
    assert models.aliases() == {"champion": "2", "previous": "1"}
    assert models.promote("c", mode="auto")["decision"] == "promoted", "where compare is off, the gate decides"

    registry.register(models.uri, "policy", "s3://bucket/by-hand")  # without a word of where it comes from
    registry.promote(models.uri, "policy", "4")
    unknown = models.promote("d", **wanted)
    assert unknown["waits"] == "comparison" and unknown["reasons"][0].endswith("; to replace it: dora promote policy 5")
