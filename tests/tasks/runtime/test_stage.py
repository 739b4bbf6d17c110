"""How a stage ends that fails: its own words, whatever stands in the way of writing them down."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from dora_core import remote_files
from dora_core.errors import DataError, StoreError
from infra.store.store import ERROR, Store
from tasks.runtime.facts import Facts
from tasks.runtime.spec import StageSpec
from tasks.runtime.stage import StageContext, StageOutput, describe_error, execute
from tests.faults import Recovery
from tests.s3_proxy import s3_proxy
from tests.s3_server import BUCKET, s3_server


class Spec(StageSpec):
    stage: ClassVar[str] = "toy"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def folder(store: Store) -> Path:
    return store.folder("toy", Spec().digest()).path


def fails_with(error: BaseException):
    def run(spec: Spec, context: StageContext) -> StageOutput:
        context.journal.metrics(1, {"loss": 1.0})
        raise error

    return run


def test_a_failure_is_written_down_with_its_metrics(store: Store) -> None:
    with pytest.raises(DataError):
        execute(Spec(), fails_with(DataError("row is bad", hint="drop it")), store)
    assert store.read_json(f"toy/{Spec().digest()}/{ERROR}")["message"] == "row is bad"
    assert len(list(folder(store).glob("journal/*.jsonl"))) == 1


def test_a_stop_is_no_error_of_the_stage(store: Store) -> None:
    with pytest.raises(SystemExit):
        execute(Spec(), fails_with(SystemExit(143)), store)
    assert not (folder(store) / ERROR).exists() and len(list(folder(store).glob("journal/*.jsonl"))) == 1


@pytest.mark.fault(13)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
def test_a_disk_that_is_too_full_for_the_error_does_not_hide_it(store: Store) -> None:
    (folder(store) / f".{ERROR}.{os.getpid()}-{threading.get_ident()}.tmp").symlink_to("/dev/full")
    with pytest.raises(DataError, match="row is bad"):
        execute(Spec(), fails_with(DataError("row is bad")), store)
    assert not list(folder(store).rglob("*.tmp"))


@pytest.mark.fault(13)
def test_a_full_disk_is_named_whatever_a_library_made_of_it(store: Store) -> None:
    """As safetensors inside a trainer's own exception."""
    wrapped = RuntimeError("the worker failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StoreError, match="the disk is full") as caught:
        execute(Spec(), fails_with(wrapped), store)
    assert caught.value.__cause__ is wrapped
    assert store.read_json(f"toy/{Spec().digest()}/{ERROR}")["message"] == caught.value.message


@pytest.mark.fault(1)
def test_an_exception_that_ray_raises_from_itself_is_described() -> None:
    """``RayTaskError.cause`` is the worker's exception, and that is raised from the ``RayTaskError``: a ring."""
    inner, outer = ConnectionError("the network is gone"), RuntimeError("task failed")
    inner.__cause__, outer.cause = outer, inner
    assert describe_error(inner)["message"] == "ConnectionError: the network is gone"


def test_warnings_of_how_it_ran_join_those_of_the_stage(store: Store, caplog) -> None:
    def run(spec: Spec, context: StageContext) -> StageOutput:
        context.warn("batches were cut")
        return StageOutput(rows=1, facts=Facts(warnings=["few rows"]))

    with caplog.at_level(logging.WARNING):
        assert execute(Spec(), run, store)["facts"]["warnings"] == ["few rows", "batches were cut"]
    assert "batches were cut" in caplog.text


@pytest.mark.parametrize("others", [[], [10**15]])
def test_memory_is_the_largest_peak_of_its_processes(store: Store, others: list[int]) -> None:
    def run(spec: Spec, context: StageContext) -> StageOutput:
        context.memory += others
        return StageOutput(rows=1)

    memory = execute(Spec(), run, store)["memory"]
    assert memory == 10**15 if others else 10**7 < memory < 10**12, "a Python process has tens of MB at least"


@pytest.mark.fault(28)
@pytest.mark.parametrize("seconds", [0.0, pytest.param(65.0, marks=pytest.mark.chaos)])
def test_an_outage_of_the_store_in_a_stage_is_waited_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovery: Recovery, seconds: float
) -> None:
    with s3_server() as server, s3_proxy(server) as proxy:
        for name, value in (proxy.server.environment | {"DORA_CACHE": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)

        def come_back() -> None:
            while not remote_files._away:  # until the outage is reported
                time.sleep(0.05)
            time.sleep(seconds)
            proxy.is_away = False

        def run(spec: Spec, context: StageContext) -> StageOutput:
            proxy.is_away = True
            recovery.begins()
            threading.Thread(target=come_back, daemon=True).start()
            context.folder.write_json("half.json", {"half": 1})
            recovery.ends()
            (context.path / "output.bin").write_bytes(b"12345")
            return StageOutput(rows=1)

        store = Store(f"s3://{BUCKET}/outage-{seconds}")
        result = execute(Spec(), run, store)
        [warning] = result["facts"]["warnings"]
        assert warning.startswith(f"s3://{BUCKET} did not answer for ") and warning.endswith(" s, which was waited out")
        assert sorted(result["files"]) == ["half.json", "output.bin"] and store.is_done("toy", Spec().digest())
