"""The environment of children: ours, and nothing that another server left in this one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.child_environment import child_environment, child_folder, forget, python, without_proxy

ROOT = Path(__file__).parents[2]
SPAWNERS = {"infra/processes.py", "infra/doctor.py", "flows/running/session.py"}
"""Files that start processes: the one way, and two programs that are no children of ours (nvidia-smi, git)."""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "MLFLOW_", "RAY_", "DORA_")) or name.lower() == "no_proxy":
            monkeypatch.delenv(name)


def test_variables_of_other_servers_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "PREFECT_API_URL": "http://elsewhere/api",
        "PREFECT_API_KEY": "pnu_1",
        "PREFECT_SERVER_API_AUTH_STRING": "a:b",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://elsewhere/prefect",
        "PREFECT_TASKS_DEFAULT_RETRIES": "3",
        "MLFLOW_TRACKING_URI": "http://elsewhere",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "_MLFLOW_SERVER_FILE_STORE": "/elsewhere",
        "RAY_ADDRESS": "ray://elsewhere",
        "RAY_TMPDIR": "/elsewhere",
        "DORA_STORE": "",
    }
    ours = {"PREFECT_HOME": "/h/prefect", "MLFLOW_S3_ENDPOINT_URL": "http://s3", "RAY_worker_niceness": "0", "LANG": "C"}
    for name, value in (theirs | ours).items():
        monkeypatch.setenv(name, value)
    found = child_environment({"PREFECT_HOME": "/h/prefect"}, {"RAY_ADDRESS": "ours"}, keep={"MLFLOW_TRACKING_PASSWORD"})
    assert {name: found.get(name) for name in ours} == ours
    assert found["RAY_ADDRESS"] == "ours" and found["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert not theirs.keys() - {"RAY_ADDRESS", "MLFLOW_TRACKING_PASSWORD"} & found.keys()


def test_relative_paths_hold_in_the_folder_of_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":lib{os.pathsep}/abs{os.pathsep}")
    monkeypatch.setenv("DORA_CACHE", "cache")
    found = child_environment()
    assert found["PYTHONPATH"] == f"{tmp_path}/lib{os.pathsep}/abs", "an empty part is the working folder"
    assert found["DORA_CACHE"] == f"{tmp_path}/cache"


def test_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_proxy({})["NO_PROXY"] == without_proxy({})["no_proxy"] == "127.0.0.1,localhost,::1,127.0.0.2"
    given = without_proxy({"no_proxy": "a.example, 127.0.0.1", "NO_PROXY": ".corp"}, ["10.0.0.7"])["NO_PROXY"]
    assert given == "a.example,127.0.0.1,.corp,localhost,::1,127.0.0.2,10.0.0.7"
    assert without_proxy({"NO_PROXY": "*"})["no_proxy"] == "*"
    import httpx

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name, value in without_proxy(os.environ).items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:
        for url in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
            assert not hasattr(client._transport_for_url(httpx.URL(url))._pool, "_proxy_url"), url
        assert hasattr(client._transport_for_url(httpx.URL("http://example.com"))._pool, "_proxy_url")


def test_a_file_named_like_a_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the child nor by a Python that it starts."""
    (tmp_path / "psutil.py").write_text("raise SystemExit('the file of the user ran')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep)
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import psutil'], check=True)"
    for code in ("import psutil", nested):
        command = [*python(), "-c", code]
        subprocess.run(command, cwd=tmp_path, env=child_environment(), check=True, capture_output=True)
    assert child_folder(tmp_path) == tmp_path / "work" and list((tmp_path / "work").iterdir()) == []


def test_children_write_utf8_whatever_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("LC_ALL", "C")
    done = subprocess.run([sys.executable, "-c", "print('→')"], env=child_environment(), capture_output=True, check=True)
    assert done.stdout.decode() == "→\n"


def test_forgotten_variables_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "x")
    forget({"PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"})
    assert "PREFECT_API_KEY" not in os.environ


def test_there_is_one_way_to_start_a_child() -> None:
    """A new place that starts a process uses `infra.processes.spawn` and `child_environment`, or is listed here with its reason."""
    found = set()
    for package in ("dora_core", "tasks", "flows", "infra"):
        for path in (ROOT / package).rglob("*.py"):
            names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names}
            if names & {"subprocess", "multiprocessing"}:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == SPAWNERS
