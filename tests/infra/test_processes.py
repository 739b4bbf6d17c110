"""Recorded processes: recognised, ended with their trees, and nothing else ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.processes import RecordedProcess, process_tree, spawn, terminate_tree


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_for_end(record: RecordedProcess) -> None:
    while record.alive():
        time.sleep(0.01)


def test_terminate_tree_ends_leader_children_and_orphans_of_its_session(tmp_path: Path) -> None:
    """The leader is killed first: its orphan, no longer a descendant, is found through the session."""
    log = tmp_path / "log"
    record = spawn("shell", ["bash", "-c", "sleep 300 & echo $!; wait"], log=log)
    while not log.read_text().strip():
        pass
    orphan = psutil.Process(int(log.read_text()))
    os.kill(record.pid, signal.SIGKILL)
    os.waitpid(record.pid, 0)
    assert not record.alive() and running([orphan])
    assert terminate_tree([record], grace=1.0) == []  # the leader no longer ran
    assert running([orphan]) == []


def test_terminate_tree_kills_a_process_that_ignores_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    record = spawn("stubborn", ["bash", "-c", "trap '' TERM; echo ready; while true; do sleep 1; done"], log=log)
    while "ready" not in log.read_text():
        pass
    tree = process_tree([record])
    assert terminate_tree([record], grace=0.2) == ["stubborn"]
    assert running(tree) == [] and terminate_tree([record]) == []


def test_a_reused_pid_is_another_process() -> None:
    """A record whose creation time differs from the live process's describes a process that is gone."""
    me = RecordedProcess.current()
    assert me.alive()
    for seconds in (-3600, 3600):
        assert not me.model_copy(update={"since_boot": me.since_boot + seconds}).alive()
        assert not me.model_copy(update={"boot": "", "created": me.created + seconds}).alive()
    assert not me.model_copy(update={"boot": "another"}).alive()


@pytest.mark.fault(20)
@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_is_set_makes_no_live_process_look_dead(seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In psutil the boot time moves with the clock, and with it all creation times."""
    child = spawn("sleeper", ["sleep", "60"], log=Path("/dev/null"))
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + seconds)
    assert psutil.Process(child.pid).create_time() == pytest.approx(child.created + seconds, abs=2), "the clock was set"
    assert child.alive() and RecordedProcess.model_validate_json(child.model_dump_json()).alive()
    assert terminate_tree([child], grace=5.0) == ["sleeper"]


def test_a_port_belongs_to_the_process_that_listens_on_it() -> None:
    """Another server on the same port proves nothing about this one."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    other = RecordedProcess(name="other", pid=child.pid, created=psutil.Process(child.pid).create_time())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert RecordedProcess.current().listens_on(port) and not other.listens_on(port)
    assert not RecordedProcess.current().listens_on(port)
    child.kill()
    child.wait()


def test_a_lost_port_is_recognised_by_the_log_of_an_ended_process(tmp_path: Path) -> None:
    said = "echo started; echo 'OSError: [Errno 98] Address already in use' >&2"
    lost = spawn("server", ["bash", "-c", said], log=tmp_path / "lost.log")
    other = spawn("server", ["bash", "-c", "echo 'no module named mlflow'; exit 1"], log=tmp_path / "other.log")
    for record in (lost, other):
        wait_for_end(record)
    assert lost.lost_its_port() and not other.lost_its_port()
    assert lost.log_tail(1) == "OSError: [Errno 98] Address already in use" and len(lost.log_tail().splitlines()) == 2
    assert not lost.model_copy(update={"log": str(tmp_path / "none.log")}).lost_its_port(), "without a log there is no reason to retry"


def test_spawn_gives_the_whole_environment_and_folder_and_appends_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    for word in ("one", "two"):
        child = spawn("child", ["/bin/sh", "-c", "echo $WORD $HOME; pwd"], log=log, environment={"WORD": word}, folder=tmp_path)
        wait_for_end(child)
    assert log.read_text().splitlines() == ["one", str(tmp_path), "two", str(tmp_path)]
    with pytest.raises(OSError):
        spawn("none", [str(tmp_path / "none")], log=log)
