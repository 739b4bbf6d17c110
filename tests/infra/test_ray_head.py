"""RayHead on real processes: start, attach, exact clean-up, also after the starter was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from dora_core.errors import ServiceError
from infra.processes import RecordedProcess, free_port, process_tree, spawn, terminate_tree
from infra.ray_head import RayHead, auth_headers

START_AND_WAIT = """
import sys, time
from pathlib import Path
from infra.ray_head import RayHead
head = RayHead.start(Path(sys.argv[1]), num_cpus=1)
print(head.dashboard_url, flush=True)
time.sleep(600)
"""


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_terminate_tree_ends_leader_children_and_orphans_of_its_session(tmp_path: Path) -> None:
    """The leader dies first and by force: its orphan, no longer a descendant, is found through the session."""
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


def test_terminate_tree_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    record = spawn("stubborn", ["bash", "-c", "trap '' TERM; echo ready; while true; do sleep 1; done"], log=log)
    while "ready" not in log.read_text():
        pass
    tree = process_tree([record])
    assert terminate_tree([record], grace=0.2) == ["stubborn"]
    assert running(tree) == [] and terminate_tree([record]) == []


def test_reused_pid_is_not_ours() -> None:
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
    """What it does to psutil: the boot time moves, and with it all creation times."""
    child = spawn("sleeper", ["sleep", "60"], log=Path("/dev/null"))
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot_time + seconds)
    assert psutil.Process(child.pid).create_time() == pytest.approx(child.created + seconds, abs=2), "the clock was set"
    assert child.alive() and RecordedProcess.model_validate_json(child.model_dump_json()).alive()
    assert terminate_tree([child], grace=5.0) == ["sleeper"]


def test_a_port_belongs_to_who_listens_on_it() -> None:
    """Another server on our port is not ours: what it answers says nothing about ours."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    other = RecordedProcess(name="other", pid=child.pid, created=psutil.Process(child.pid).create_time())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert RecordedProcess.current().listens_on(port) and not other.listens_on(port)
    assert not RecordedProcess.current().listens_on(port)
    child.kill()
    child.wait()


def test_free_port_avoids_one_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_failed_start_reports_the_log_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho no module named ray\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(ServiceError, match="ended while starting") as caught:
        RayHead.start(tmp_path)
    assert "no module named ray" in caught.value.hint
    assert RayHead.attach(tmp_path) is None and not (tmp_path / "ray.json").exists()


def test_lost_port_is_chosen_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter, tries = tmp_path / "python", tmp_path / "tries"
    interpreter.write_text(f"#!/bin/sh\necho x >> {tries}\necho 'Failed to bind: it is already occupied'\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(ServiceError, match="ended while starting"):
        RayHead.start(tmp_path / "head")
    assert tries.read_text().count("x") == 3


@pytest.mark.fault(7)
@pytest.mark.component
def test_killed_starter_leaves_a_head_that_the_record_ends(tmp_path: Path) -> None:
    folder = tmp_path / "heads" / "one"
    starter = subprocess.Popen([sys.executable, "-c", START_AND_WAIT, str(folder)], stdout=subprocess.PIPE, text=True)
    url = starter.stdout.readline().strip()
    try:
        with pytest.raises(ServiceError, match="already runs"):
            RayHead.start(folder)
        assert RayHead.stop_orphans(folder.parent) == []  # its owner lives
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()

    head = RayHead.attach(folder)
    assert head is not None and head.dashboard_url == url
    token = folder / "ray-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert requests.get(f"{url}/api/version", timeout=10).status_code in (401, 403)
    assert requests.get(f"{url}/api/version", headers=auth_headers(head.environment()), timeout=10).ok
    tree, temp_dir = process_tree([head.process]), Path(head._record.temp_dir)
    assert len(tree) > 10 and temp_dir.exists()

    secret = token.read_text()
    assert RayHead.stop_orphans(folder.parent) == ["one"]
    assert running(tree) == [] and not temp_dir.exists()
    assert RayHead.attach(folder) is None and not RayHead.stop_recorded(folder)
    head.stop()  # idempotent
    assert token.read_text() == secret  # clients of the next head keep working
