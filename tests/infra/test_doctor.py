"""The checks of `dora doctor` on a real machine and on simulated faults."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from infra import doctor, services
from infra.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return Settings(home=tmp_path / "home")


def by_name(settings: Settings) -> dict[str, doctor.Check]:
    found = doctor.checks(settings)
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


def test_sound_machine(settings: Settings) -> None:
    found = by_name(settings)
    assert {name for name, check in found.items() if check.ok is False} <= {"machine"}  # memory may be short while other tests run
    assert all(check.hint for check in found.values() if check.ok is not True)
    assert found["services"].ok is None and "dora up" in found["services"].hint


def test_importing_the_doctor_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'ray', 'prefect', 'mlflow', 'transformers'} & set(sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", f"import sys, infra.doctor; print({heavy})"], text=True).strip() == "set()"


def test_home_that_is_a_file(settings: Settings) -> None:
    settings.home.write_text("")
    check = by_name(settings)["home"]
    assert check.ok is False and "DORA_HOME" in check.hint


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("fastapi<0.1", "fastapi .* does not satisfy <0.1, newer ones break the Prefect server"),
        ("no-such-package>=1", "no-such-package is missing"),
    ],
)
def test_unfit_packages_are_named(requirement: str, problem: str) -> None:
    check = doctor._packages([requirement, "torch>=2", "nothing; extra == 'dev'"])
    assert check.ok is False
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(check.detail)


def test_gpu_with_a_cpu_build_of_torch() -> None:
    assert doctor._gpu(["NVIDIA X, 1 MiB"], cuda=False).ok is False
    assert doctor._gpu(["NVIDIA X, 1 MiB"], cuda=True).ok is True
    assert doctor._gpu([], cuda=False).ok is None


def test_token_readable_by_others(settings: Settings) -> None:
    token = settings.ray_folder / "services" / "ray-token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    token.chmod(0o644)
    assert by_name(settings)["ray token"].ok is False
    token.chmod(0o600)
    assert by_name(settings)["ray token"].ok is True


def test_password_readable_by_others(settings: Settings) -> None:
    settings.home.mkdir()
    file = settings.home / "auth"
    file.write_text("ann:twelve-letters")
    file.chmod(0o644)
    assert by_name(settings)["passwords"].hint == f"chmod 600 {file}"
    file.chmod(0o600)
    assert "passwords" not in by_name(settings)


def test_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    check = by_name(Settings(home=tmp_path, postgres="postgresql://dora:canary-5f1e@127.0.0.1:9"))["postgresql"]
    assert check.ok is False and "127.0.0.1:9" in check.detail and "canary" not in check.detail + check.hint


def test_settings_that_are_wrong_are_the_only_finding(tmp_path: Path) -> None:
    check = by_name(Settings(home=tmp_path, auth="ann:short"))
    assert list(check) == ["settings"] and "12 to 128" in check["settings"].detail


def test_port_of_another_program(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setitem(services.PORTS, "mlflow", other.getsockname()[1])
        check = by_name(settings)["ports"]
    assert check.ok is None and "(mlflow)" in check.detail


def test_server_that_is_named_but_dead(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check = by_name(settings)["mlflow server"]
    assert check.ok is False and "not reachable" in check.detail and "DORA_MLFLOW_URI" in check.hint
