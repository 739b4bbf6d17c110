"""One Ray for all tests with actors in this process: modules that use it run one after the other, and it ends with the last of them.

A start and an end of Ray take 8 s, and a test of actors one or two.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EQUAL_PRIORITY = {"RAY_worker_niceness": "0"}
"""Environment of a Ray whose workers run at the priority of other processes. Ray gives them niceness 15: beside the tests of another
process they would get 1/28 of a core."""
_modules: set[str] = set()
_started: list[bool] = []


def module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _end() -> None:
    if _started:
        import ray

        ray.shutdown()
        _started.clear()


@pytest.fixture(scope="module")
def ray_cluster() -> None:
    """Ray on this machine with two CPUs, in which this process is the driver; test files can be imported in its workers."""
    import ray

    if not _started:
        importable = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", "runtime_env": importable}
        ray.init(address="local", num_cpus=2, num_gpus=0, **options)
        _started.append(True)


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is not connected to Ray, and its environment names no cluster."""
    import ray

    _end()
    assert not ray.is_initialized(), "a test left its own Ray behind"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def pytest_collection_finish(session: pytest.Session) -> None:
    _modules.update(module_of(item) for item in session.items if "ray_cluster" in getattr(item, "fixturenames", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Other tests find no Ray."""
    if module_of(item) not in _modules:
        _end()


def pytest_sessionfinish() -> None:
    _end()
