"""What every test may rely on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.machine import Machine

# A slow machine is no bug, and the same examples everywhere make a failure repeatable.
hypothesis.settings.register_profile("dora", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dora")


pytest_plugins = ["tests.leftovers", "tests.faults", "tests.shared_ray"]
ORDER = ("browser", "machine", "system", "component")
USES_OF_RAY = ("unconnected", "ray_cluster")
"""Fixtures of ``tests/shared_ray.py``, in the order in which modules with them run: Ray then starts once."""
SERVERS = {
    f"tests/{name}.py" for name in ("browser/test_pages", "system/test_servers", "system/test_backends", "system/test_faults_servers")
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first, and those that share servers or a Ray together; the quick ones fill what is left.

    Within a module the order stays: fixtures build on it.
    """
    from tests.shared_ray import module_of

    words: dict[str, set[str]] = {}
    for item in items:
        found = {mark.name for mark in item.iter_markers()} | {*getattr(item, "fixturenames", ())}
        words.setdefault(module_of(item), set()).update(found)
    order = (*ORDER, *USES_OF_RAY)

    def rank(item: pytest.Item) -> int:
        mine = words[module_of(item)]
        wanted = USES_OF_RAY if mine.intersection(USES_OF_RAY) else ORDER
        return next((order.index(word) for word in wanted if word in mine), len(order))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one module stay in one worker, for their fixtures; so do all that need servers, which take their turns.

    Not ``--dist loadgroup``: pytest-xdist 3.8 writes groups into node ids, which pytest 9.2 no longer lets it.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "servers" if module in SERVERS else module

    return ByModule(config, log)


@pytest.fixture(scope="session", autouse=True)
def environment_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that choose no home of their own leave nothing in the working directory; Ray's workers have no lower priority."""
    from tests.shared_ray import EQUAL_PRIORITY

    os.environ.setdefault("DORA_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    os.environ |= EQUAL_PRIORITY


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """Commands run in this process set PREFECT_*, MLFLOW_* and RAY_* variables; the next test must not inherit them."""
    saved = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(autouse=True)
def interruptible() -> None:
    """Ray and Prefect change what SIGINT does in a process that has used them; tests of Ctrl-C need Python's own handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a file that the workers of `pytest -n` share; the first to need it makes it."""
    from filelock import FileLock

    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    with FileLock(f"{path}.lock"):
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its migrations take seconds: copy it."""
    from infra.tracking.mlflow_client import mlflow_client

    return made_once(tmp_path_factory, "mlflow-template.db", lambda path: mlflow_client(f"sqlite:///{path}").search_experiments())


@pytest.fixture(scope="session")
def empty_prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its migrations take seconds: copy it."""

    def make(path: Path) -> None:
        with TemporaryDirectory() as home:
            own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(command, env=own | {"PREFECT_HOME": home}, check=True, capture_output=True)
            shutil.copy(Path(home) / "prefect.db", path)

    return made_once(tmp_path_factory, "prefect-template.db", make)


@pytest.fixture
def mlflow_sqlite(empty_mlflow_database: Path, tmp_path: Path) -> str:
    """Address of an MLflow of the test's own."""
    return f"sqlite:///{shutil.copy(empty_mlflow_database, tmp_path / 'mlflow.db')}"


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Servers started by `dora up`, shared by all tests that need some: these stay in one worker."""
    from tests.machine import Machine

    machine = Machine(tmp_path_factory.mktemp("servers") / "home")
    try:
        machine.urls = machine.dora("up")["services"]
        yield machine
    finally:
        machine.dora("down")
