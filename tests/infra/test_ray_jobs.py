"""RayJobs against a real head: real stages as jobs, and every kind of end."""

from __future__ import annotations

import _thread
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dora_core.errors import ServiceError, StageFailed
from infra.ports import free_port
from infra.processes import process_tree
from infra.ray_head import RayHead
from infra.ray_jobs import RayJobs, _cause_of_death, _killed_from_outside, _LogTail

STAGE = '''
"""A stage for tests: does what its spec says."""
import os, signal, sys, time
from dora_core.errors import DataError
from tasks.runtime.stage import StageOutput, StageSpec

class Spec(StageSpec):
    stage = "probe"
    version = 1
    act: str

def run(spec, context):
    print(f"acting: {spec.act}")
    (context.path / "pid").write_text(str(os.getpid()))
    if spec.act.startswith("wait"):
        time.sleep(300)
    if spec.act == "bad":
        raise DataError("row 7 has no response", hint="fix the row")
    if spec.act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    (context.path / "out").write_text("x")
    return StageOutput(rows=1)
'''


ENTRY_POINT = """
from probes.probe import Spec, run
from tasks.runtime.stage import main

main({"probe": (Spec, run)})
"""


class Probe:
    """One stage of the test package in a store, with the callables that ``RayJobs.run`` takes."""

    def __init__(self, jobs: RayJobs, root: Path, act: str):
        from probes.probe import Spec

        from infra.store.store import Store
        from tasks.runtime.stage import write_spec

        self.jobs, self.store, spec = jobs, Store(str(root / "store")), Spec(act=act)
        self.digest = spec.digest()
        self.uri = write_spec(spec, self.store)
        self.path = self.store.local_root / "probe" / self.digest
        self.log: list[str] = []

    def run(self, **arguments) -> str:
        return self.jobs.run(
            stage="probe",
            digest=self.digest,
            spec_uri=self.uri,
            is_done=lambda: self.store.is_done("probe", self.digest),
            on_log=self.log.append,
            poll_seconds=0.1,
            read_error=lambda: self.store.read_json(f"probe/{self.digest}/error.json"),
            **arguments,
        )

    def wait_until_running(self) -> psutil.Process:
        deadline = time.monotonic() + 60
        while not (self.path / "pid").exists():
            assert time.monotonic() < deadline, "the stage did not start"
            time.sleep(0.05)
        return psutil.Process(int((self.path / "pid").read_text()))


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[RayHead]:
    with RayHead.start(tmp_path_factory.mktemp("head"), num_cpus=1) as head:
        yield head


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("package")
    (root / "probes").mkdir()
    (root / "probes" / "__init__.py").touch()
    (root / "probes" / "__main__.py").write_text(ENTRY_POINT)
    (root / "probes" / "probe.py").write_text(STAGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield root


@pytest.fixture
def jobs(head: RayHead, package: Path, tmp_path: Path) -> RayJobs:
    environment = {"PYTHONPATH": str(package)}
    return RayJobs(head.dashboard_url, head.environment(), entry_point="probes", job_environment=environment, log_folder=tmp_path / "logs")


@pytest.mark.component
def test_success_then_skip_then_next_attempt(jobs: RayJobs, tmp_path: Path) -> None:
    probe, submitted = Probe(jobs, tmp_path, "succeed"), []
    first = probe.run(on_submitted=submitted.append)
    assert first == f"dora-probe-{probe.digest[:12]}-1" and submitted == [first]
    assert probe.log[0] == "acting: succeed" and json.loads(probe.log[-1])["rows"] == 1
    assert not any("job_manager.py" in line for line in probe.log)

    assert probe.run(on_submitted=submitted.append) == first and submitted == [first]  # done: nothing was submitted
    (probe.path / "out").unlink()
    assert probe.run() == first[:-1] + "2"


@pytest.mark.component
def test_failure_is_the_stages_own_error_with_its_hint(jobs: RayJobs, tmp_path: Path) -> None:
    probe = Probe(jobs, tmp_path, "bad")
    with pytest.raises(StageFailed) as caught:
        probe.run()
    assert caught.value.message == "stage probe: row 7 has no response" and not caught.value.retryable
    assert caught.value.hint.startswith("fix the row\njob log: ")
    assert "row 7" in (tmp_path / "logs" / f"dora-probe-{probe.digest[:12]}-1.log").read_text()


@pytest.mark.fault(6)
@pytest.mark.component
def test_killed_process_is_named_and_a_stale_error_is_not_believed(jobs: RayJobs, tmp_path: Path) -> None:
    probe = Probe(jobs, tmp_path, "kill")
    (probe.path / "error.json").write_text(json.dumps({"message": "an old story", "hint": ""}))
    with pytest.raises(StageFailed, match=r"killed by SIGKILL .*out of memory") as caught:
        probe.run()
    assert caught.value.retryable, "the machine's fault, not the stage's"
    log = tmp_path / "logs" / f"dora-probe-{probe.digest[:12]}-1.log"
    assert caught.value.hint.startswith("run the same command again") and f"job log: {log}" in caught.value.hint
    assert "acting: kill" in log.read_text()


@pytest.mark.component
def test_interrupt_stops_the_job_before_it_is_raised(jobs: RayJobs, tmp_path: Path) -> None:
    probe, seen = Probe(jobs, tmp_path, "wait for interrupt"), []

    def interrupt() -> None:
        seen.append(probe.wait_until_running())
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        probe.run()
    assert jobs._job(f"dora-probe-{probe.digest[:12]}-1")["status"] == "STOPPED"
    assert not seen[0].is_running()


@pytest.mark.fault(16)
@pytest.mark.component
def test_second_watcher_attaches_and_stop_all_ends_both(head: RayHead, jobs: RayJobs, tmp_path: Path) -> None:
    probe, ended = Probe(jobs, tmp_path, "wait for a friend"), []

    def watch() -> None:
        with pytest.raises(StageFailed) as caught:
            probe.run()
        ended.append(caught.value.message)

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    watchers[0].start()
    stage = probe.wait_until_running()
    watchers[1].start()
    deadline = time.monotonic() + 30
    while probe.log.count("acting: wait for a friend") < 2:  # each watcher follows the one job from its beginning
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(jobs._submissions(f"dora-probe-{probe.digest[:12]}-").values()) == ["RUNNING"]
    jobs.stop_all()
    for watcher in watchers:
        watcher.join(30)
    assert ended == ["stage probe: the job was stopped"] * 2
    assert not stage.is_running() and stage.pid not in {p.pid for p in process_tree([head.process])}
    with pytest.raises(StageFailed, match="being stopped"):
        probe.run()


@pytest.mark.component
def test_wrong_token_is_refused_at_once(head: RayHead) -> None:
    jobs = RayJobs(head.dashboard_url, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    with pytest.raises(ServiceError, match="refused our token") as caught:
        jobs.run(stage="probe", digest="0" * 64, spec_uri="nowhere", is_done=lambda: False)
    assert not caught.value.retryable


@pytest.mark.fault(12)
def test_silent_head_is_given_up_after_the_limit() -> None:
    jobs = RayJobs(f"http://127.0.0.1:{free_port()}", unreachable_seconds=0.5)
    with pytest.raises(ServiceError, match="has not answered for") as caught:
        jobs.run(stage="probe", digest="0" * 64, spec_uri="nowhere", is_done=lambda: False)
    assert caught.value.retryable and "dora doctor" in caught.value.hint


@pytest.mark.fault(12)
def test_nobody_waits_for_a_head_that_has_ended() -> None:
    jobs = RayJobs(f"http://127.0.0.1:{free_port()}", is_alive=lambda: False)
    with pytest.raises(ServiceError, match=r"the Ray head at http://127.* has ended") as caught:
        jobs.run(stage="probe", digest="0" * 64, spec_uri="nowhere", is_done=lambda: False)
    assert caught.value.retryable


@pytest.mark.fault(6, 12)
@pytest.mark.parametrize(
    ("job", "retried"),
    [
        ({"status": "FAILED", "driver_exit_code": -9}, True),
        ({"status": "FAILED", "driver_exit_code": 143}, True),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED"}, True),
        ({"status": "FAILED", "driver_exit_code": -11}, False),
        ({"status": "FAILED", "driver_exit_code": 1, "error_type": "JOB_ENTRYPOINT_COMMAND_ERROR"}, False),
        ({"status": "STOPPED", "driver_exit_code": -15}, False),
    ],
)
def test_only_a_job_that_was_killed_from_outside_is_worth_another_attempt(job: dict, retried: bool) -> None:
    assert _killed_from_outside(job) == retried


def test_log_tail_yields_each_whole_line_once_and_clean() -> None:
    lines: list[str] = []
    tail = _LogTail(lines.append)
    tail.feed("Running entrypoint for job x: y\n\x1b[32mgreen\x1b[0m\nhal", final=False)
    assert lines == ["green"]
    whole = "Running entrypoint for job x: y\n\x1b[32mgreen\x1b[0m\nhalf\n 10%\r 20%\r 30%\r\nend"
    tail.feed(whole, final=False)
    assert lines == ["green", "half", " 30%"]
    tail.feed(whole, final=True)
    assert lines == ["green", "half", " 30%", "end"] == tail.text.split("\n")
    tail.feed("", final=True)  # the log became unreadable
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("job", "log", "cause"),
    [
        ({"status": "FAILED", "driver_exit_code": 1}, "Traceback\nValueError: no\nKeyError: 'a'", "KeyError: 'a'"),
        ({"status": "FAILED", "driver_exit_code": 1}, "align failed: loss is NaN", "align failed: loss is NaN"),
        (
            {"status": "FAILED", "driver_exit_code": -9},
            "KeyError: 'a'",
            "its process was killed by SIGKILL (out of memory is the usual cause)",
        ),
        ({"status": "FAILED", "driver_exit_code": 139}, "", "its process was killed by SIGSEGV"),
        ({"status": "FAILED", "message": "Job supervisor actor died: OOM\nmore"}, "", "out of memory: Job supervisor actor died: OOM"),
        ({"status": "FAILED", "driver_exit_code": 3}, "", "the job ended with exit code 3"),
        ({"status": "SUCCEEDED"}, "", "the job succeeded but left no valid result"),
    ],
)
def test_cause_of_death(job: dict, log: str, cause: str) -> None:
    assert _cause_of_death(job, log) == cause
