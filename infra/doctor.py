"""``dora doctor``: checks of this machine, each failure with its remedy. Quick (< 2 s without servers): no heavy imports."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
import requests
from packaging.requirements import Requirement

from dora_core.errors import DoraError
from infra import services
from infra.back_ends import AUTH, DATABASE_PASSWORD, DATABASES, connect
from infra.ray_head import TOKEN, auth_headers
from infra.settings import Settings
from infra.store.store import Store, check_writable

GB = 1e9


@dataclass(frozen=True)
class Check:
    """Result of one check. ``ok``: True fine, False must be fixed, None for information; ``hint``: the next step unless ``ok`` is True."""

    name: str
    ok: bool | None
    detail: str
    hint: str = ""


def checks(settings: Settings) -> list[Check]:
    """Run all checks, in the order in which to fix them; none of them raises. Wrong settings are reported alone."""
    try:
        settings.effective()
    except DoraError as error:
        return [Check("settings", False, error.message, error.hint)]
    gpus = _gpus()
    every: list[Callable[[], Check | list[Check]]] = [
        _python,
        lambda: _packages(metadata.requires("dora-realign") or []),
        lambda: _gpu(gpus, _torch_has_cuda()),
        _machine,
        _shared_memory,
        lambda: _writable("home", settings.root),
        lambda: _disk(settings.root),
        lambda: _store(settings.store_uri),
        lambda: _back_ends(settings),
        lambda: _tokens(settings.ray_folder),
        lambda: _services(settings),
        lambda: _ports(settings),
        lambda: _remotes(settings),
        _git,
    ]
    result: list[Check] = []
    for check in every:
        found = check()
        result.extend(found if isinstance(found, list) else [found])
    return result


def _python() -> Check:
    version = sys.version.split()[0]
    fit = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", fit, version, "" if fit else "use Python 3.11 to 3.13: make PYTHON=python3.12 demo")


def _packages(requirements: Iterable[str]) -> Check:
    """Compare every requirement of the package with the installed version."""
    problems, count = list[str](), 0
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            why = ", newer ones break the Prefect server" if requirement.name == "fastapi" else ""
            problems.append(f"{requirement.name} {installed} does not satisfy {requirement.specifier}{why}")
    if problems:
        return Check(
            "packages", False, "; ".join(problems), "delete .venv and run `make .venv`: it installs the versions of requirements.lock"
        )
    names = ("torch", "ray", "prefect", "mlflow", "transformers")
    return Check("packages", True, f"{count} as required: " + ", ".join(f"{name} {metadata.version(name)}" for name in names))


def _gpus() -> list[str]:
    """List the GPUs, ``["NVIDIA H200, 143771 MiB"]``; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
    )
    return query.stdout.strip().splitlines() if query.returncode == 0 else []


def _torch_has_cuda() -> bool:
    spec = importlib.util.find_spec("torch")
    return bool(spec and spec.origin and (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists())


def _gpu(gpus: list[str], cuda: bool) -> Check:
    build = "CUDA" if cuda else "CPU"
    if gpus and not cuda:
        return Check(
            "gpu",
            False,
            f"{len(gpus)} × {gpus[0]}, but torch is a CPU build",
            "install torch's CUDA build: pip install --force-reinstall torch==2.13.0",
        )
    if not gpus:
        return Check(
            "gpu", None, f"none; torch is a {build} build", "fine for the demo and small models; set gpus_per_worker where there are GPUs"
        )
    nccl = next((f"{d.name} {d.version}" for d in metadata.distributions() if d.name.startswith("nvidia-nccl")), "nccl inside torch")
    return Check("gpu", True, f"{len(gpus)} × {gpus[0]}, torch CUDA build, {nccl}")


def _machine() -> Check:
    cores, memory = len(psutil.Process().cpu_affinity() or []), psutil.virtual_memory()
    detail = f"{cores} cores, {memory.total / GB:.0f} GB memory, {memory.available / GB:.1f} GB available"
    if memory.available < 4 * GB:
        return Check("machine", False, detail, "the demo needs 4 GB: close other programs or lower execution.default.workers")
    if cores < 2:
        return Check("machine", None, detail, "two training workers need two cores: set execution.default.workers to 1")
    return Check("machine", True, detail)


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("shared memory", None, "no /dev/shm", "Ray keeps its object store in temporary files instead: slower")
    free = shutil.disk_usage(path).free
    return Check(
        "shared memory",
        free > GB or None,
        f"{free / GB:.1f} GB free in {path}",
        "" if free > GB else "in a container: docker run --shm-size=2g",
    )


def _writable(name: str, folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return Check(name, True, f"{folder} is writable")
    except OSError as error:
        return Check(name, False, f"{folder} is not writable: {error.strerror}", f"choose another folder: export DORA_{name.upper()}=…")


def _disk(folder: Path) -> Check:
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    return Check(
        "disk",
        free > 5 * GB or None,
        f"{free / GB:.0f} GB free for {folder}",
        "" if free > 5 * GB else "checkpoints of real models need much more; `dora gc` lists the parts of the store that are not needed",
    )


def _store(uri: str) -> Check:
    try:
        store = Store(uri)
    except DoraError as error:
        return Check("store", False, error.message, error.hint)
    return _writable("store", store.local_root) if store.remote is None else _bucket("store", uri)


def _bucket(name: str, uri: str) -> Check:
    try:
        check_writable(uri)
    except DoraError as error:
        return Check(name, False, error.message, error.hint)
    return Check(name, True, f"{uri} is writable")


def _postgres(server: str, environment: Mapping[str, str]) -> Check:
    try:
        for name in DATABASES:
            connect(server, environment, name).close()
    except DoraError as error:
        return Check("postgresql", False, error.message, error.hint)
    return Check("postgresql", True, f"{server} answers, with the databases {' and '.join(DATABASES)}")


def _back_ends(settings: Settings) -> list[Check]:
    """Check PostgreSQL and the artifacts' bucket, if they were chosen, and that only the owner can read the passwords."""
    result, chosen = list[Check](), settings.back_ends
    if chosen.postgres is not None:
        result.append(_postgres(chosen.postgres, os.environ | settings.database_secret()))
    if chosen.artifacts is not None:
        result.append(_bucket("artifacts", chosen.artifacts))
    loose = [str(path) for name in (DATABASE_PASSWORD, AUTH) if (path := settings.root / name).exists() and path.stat().st_mode & 0o077]
    if loose:
        result.append(Check("passwords", False, f"readable by others: {', '.join(loose)}", f"chmod 600 {' '.join(loose)}"))
    return result


def _tokens(folder: Path) -> Check:
    tokens = sorted(folder.glob(f"*/{TOKEN}"))
    loose = [str(token) for token in tokens if token.stat().st_mode & 0o077]
    if loose:
        return Check(
            "ray token",
            False,
            f"readable by others: {', '.join(loose)}",
            f"chmod 600 {' '.join(loose)}; then `dora down` and `dora up` with a new one",
        )
    return Check("ray token", True, f"{len(tokens)} private" if tokens else "none yet; made when a head starts")


def _services(settings: Settings) -> list[Check]:
    found = services.status(settings)
    if not found:
        return [Check("services", None, "not started", "not needed; `dora up` provides the Prefect, MLflow and Ray pages")]
    return [
        Check(
            s.name,
            s.state == "up",
            {
                "up": f"up at {s.url}" if s.url else "up",
                "silent": f"pid {s.pid} runs but does not answer",
                "down": "was started and has died",
            }[s.state],
            "" if s.state == "up" else f"`dora up` repairs it; its log: {s.log}",
        )
        for s in found
    ]


def _ports(settings: Settings) -> Check:
    ours = {int(s.url.rsplit(":", 1)[1]) for s in services.status(settings) if s.url}
    foreign = [f"{port} ({name})" for name, port in services.PORTS.items() if port not in ours and _listening(port)]
    if foreign:
        return Check("ports", None, f"in use by other programs: {', '.join(foreign)}", "`dora up` takes free ones instead and prints them")
    return Check("ports", True, f"{', '.join(map(str, services.PORTS.values()))} are free or ours")


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _remotes(settings: Settings) -> list[Check]:
    """Check the servers named in settings or environment, except those of `dora up`."""
    places = settings.effective()
    own = {s.url for s in services.status(settings)}
    named = {
        "prefect server": (places.prefect_ui, "/api/health", "DORA_PREFECT_API_URL"),
        "mlflow server": (places.mlflow_uri, "/health", "DORA_MLFLOW_URI"),
        "ray cluster": (places.ray_dashboard, "/api/version", "DORA_RAY_ADDRESS"),
    }
    result = []
    for name, (url, path, variable) in named.items():
        if url is None or url in own or not url.startswith("http"):
            continue
        headers = auth_headers(places.ray_environment) if name == "ray cluster" else {}
        try:
            code = requests.get(url + path, headers=headers, timeout=5).status_code
            problem = "" if code == 200 else f"answers {code}"
        except requests.RequestException as error:
            problem = f"is not reachable ({type(error).__name__})"
        result.append(Check(name, not problem, f"{url} {problem or 'answers'}", f"check {variable} and the server" if problem else ""))
    return result


def _git() -> Check:
    git = shutil.which("git")
    return Check("git", bool(git) or None, git or "not found", "" if git else "runs are then not tagged with a commit")
