"""RayHead on real processes: start, attach, exact clean-up, also after the starter was killed."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import requests

from dora_core.errors import ServiceError
from infra.processes import process_tree
from infra.ray_head import RayHead, auth_headers
from tests.infra.test_processes import running

START_AND_WAIT = """
import sys, time
from pathlib import Path
from infra.ray_head import RayHead
head = RayHead.start(Path(sys.argv[1]), num_cpus=1)
print(head.dashboard_url, flush=True)
time.sleep(600)
"""


def test_failed_start_reports_the_log_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho no module named ray\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(ServiceError, match="ended while starting") as caught:
        RayHead.start(tmp_path)
    assert "no module named ray" in caught.value.hint
    assert RayHead.attach(tmp_path) is None and not (tmp_path / "ray.json").exists()


def test_of_rays_environment_a_head_takes_the_priority_of_its_workers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter, seen = tmp_path / "python", tmp_path / "seen"
    interpreter.write_text(f"#!/bin/sh\nenv > {seen}\nexit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setenv("RAY_worker_niceness", "5")
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere")
    with pytest.raises(ServiceError):
        RayHead.start(tmp_path / "head")
    lines = seen.read_text().splitlines()
    assert "RAY_worker_niceness=5" in lines and not any(line.startswith("RAY_ADDRESS=") for line in lines)


def test_a_temporary_folder_that_takes_nothing_is_an_error_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/dora-ray-x")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(ServiceError, match=r"Ray cannot use the temporary folder: .*No space left") as error:
        RayHead.start(tmp_path)
    assert "TMPDIR" in error.value.hint


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
