"""compose.yaml, the Dockerfile and the monitoring files, checked without Docker.

Safe (loopback only, no secret in a file, no unneeded capability), consistent with one another, and consistent with the code: ports,
variables, modules, metrics. Not tested: whether the containers come up, which needs Docker.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from infra.exporter import FAMILIES, PORT
from infra.services import PORTS, _command, _worker_command
from infra.settings import WORK_POOL, Settings
from tests.infra.deploy_files import INFRA, NOT_YET_RUN, ROOT, load, locked, unknown_variables

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|ACCESS_KEY|DATABASE_URL|CONNECTION_URL")
COMPOSE = load("compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"bucket"}
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("dora-realign:")}
TEXT = (INFRA / "compose.yaml").read_text(encoding="utf-8")
each_service = pytest.mark.parametrize("name", SERVICES)


def environment(name: str) -> dict[str, str]:
    return SERVICES[name].get("environment", {})


def command(name: str) -> list[str]:
    given = SERVICES[name].get("command", [])
    return shlex.split(given) if isinstance(given, str) else [str(word) for word in given]


# --------------------------------------------------------------------------------------------------------- compose.yaml


def test_the_services_that_are_promised_are_there() -> None:
    promised = {"prefect", "prefect-worker", "mlflow", "home", "postgres", "s3", "ray-head", "ray-worker", "ray-worker-gpu"}
    assert promised <= set(SERVICES)
    assert {"prefect", "prefect-worker", "mlflow", "home", "ray-head", "ray-worker"} <= OURS, "their versions are the lock's"


@each_service
def test_every_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    tag = image.partition(":")[2]
    assert re.match(r"v?\d+\.\d+|\$\{DORA_VERSION:\?", tag), image
    assert "latest" not in tag


@each_service
def test_every_service_is_confined_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert not {"privileged", "network_mode", "pid", "devices", "env_file"} & set(service)


@each_service
def test_every_port_is_on_loopback(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port


@each_service
def test_every_service_says_when_it_is_healthy_and_others_wait_for_it(name: str) -> None:
    if name in OURS - ONE_SHOT:
        assert environment(name)["DORA_HEALTH_URL"].startswith("http://127.0.0.1:"), "asked by the image's HEALTHCHECK"
    elif name not in ONE_SHOT:
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        assert wait == {"condition": "service_completed_successfully" if other in ONE_SHOT else "service_healthy"}


def test_the_gpu_worker_reserves_gpus_and_starts_only_when_asked() -> None:
    gpu = SERVICES["ray-worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["image"].endswith("-cuda") and gpu["build"]["target"] == "cuda"
    assert gpu["deploy"]["resources"]["reservations"]["devices"] == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]


def test_no_file_holds_a_secret_and_no_variable_has_a_silent_default_for_one() -> None:
    for name in SERVICES:
        mounted = {f"/run/secrets/{secret}" for secret in SERVICES[name].get("secrets", [])}
        for variable, value in environment(name).items():
            if SECRET.search(variable) or variable.endswith("_FILE"):
                assert variable.endswith(("_FILE", "_PATH")), f"{name}: {variable} belongs in a file"
                assert value in mounted, f"{name}: {variable} names {value}, which is not mounted"
    assert {use for name in SERVICES for use in SERVICES[name].get("secrets", [])} == set(COMPOSE["secrets"])
    for secret, source in COMPOSE["secrets"].items():
        assert re.fullmatch(r"\$\{DORA_SECRETS:\?[^}]+\}/" + secret, source["file"])


def test_what_must_be_set_is_in_the_example_without_a_value() -> None:
    used = {m[1]: m[2] for m in re.finditer(r"(?<!\$)\$\{(\w+)(:[?-])?", TEXT)}
    assert all(used.values()), f"neither required nor with a default: {used}"
    example = (INFRA / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == {name for name, kind in used.items() if kind == ":?"}
    assert set(re.findall(r"^# (\w+)=\S", example, re.MULTILINE)) == {name for name, kind in used.items() if kind == ":-"}


def test_secrets_are_made_once_random_and_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make = [str(INFRA / "docker" / "make-secrets"), str(folder)]
    subprocess.run(make, check=True)
    first = {path.name: path.read_text() for path in folder.iterdir()}
    subprocess.run(make, check=True)
    assert first == {path.name: path.read_text() for path in folder.iterdir()}
    assert set(first) == set(COMPOSE["secrets"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert first.pop("hf_token") == ""
    assert first.pop("prefect_auth") == f"dora:{first['prefect_password']}"
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in first.values())
    assert len(set(first.values())) == len(first)


def test_a_command_gets_its_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("it's a $secret\n")
    run = [str(INFRA / "docker" / "with-secrets"), "env"]
    got = subprocess.run(run, env={"PASSWORD__FILE": str(tmp_path / "password"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert "PASSWORD=it's a $secret\n" in got.stdout
    assert "__FILE" not in got.stdout
    got = subprocess.run(run, env={"PASSWORD__FILE": str(tmp_path / "nothing"), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert got.returncode == 78 and "PASSWORD needs a readable file" in got.stderr


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_variables_of_our_services_are_read_by_somebody(name: str) -> None:
    assert unknown_variables(variable.removesuffix("__FILE") for variable in environment(name)) == []


def test_every_server_asks_who_is_there() -> None:
    assert "PREFECT_SERVER_API_AUTH_STRING__FILE" in environment("prefect")
    assert "--app-name=basic-auth" in command("mlflow")
    assert "DORA_AUTH__FILE" in environment("home")
    ini = (INFRA / "docker" / "mlflow-auth.ini").read_text()
    assert "default_permission = NO_PERMISSIONS" in ini and "admin_password" not in ini
    for name in ("ray-head", "ray-worker", "ray-worker-gpu", "prefect-worker"):
        assert environment(name)["RAY_AUTH_MODE"] == "token"


def test_ports_and_commands_are_the_codes() -> None:
    assert SERVICES["prefect"]["ports"] == [f"127.0.0.1:{PORTS['prefect']}:{PORTS['prefect']}"]
    assert f"--port={PORTS['mlflow']}" in command("mlflow")
    assert f"--dashboard-port={PORTS['ray']}" in command("ray-head")
    assert environment("prefect-worker")["DORA_RAY_ADDRESS"] == f"http://ray-head:{PORTS['ray']}"
    assert command("metrics")[-2:] == ["--port", str(PORT)]
    assert SERVICES["home"]["ports"] == [f"127.0.0.1:{PORTS['home']}:{PORTS['home']}"]
    settings = Settings(home=Path("/x"))
    assert command("home")[1:] == [word.replace("127.0.0.1", "0.0.0.0") for word in _command(settings, "home", PORTS["home"])][-6:]
    ours, theirs = command("prefect-worker"), _worker_command()
    assert ours[1:-1] == theirs[theirs.index("worker") :], "beside --with-healthcheck, `dora up` starts the same worker"
    assert ours[ours.index("--pool") + 1] == WORK_POOL
    for name in OURS:
        words = command(name)
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None
        if words[:2] == ["python", "-c"]:
            ast.parse(words[2])


def test_the_bucket_of_the_store_is_the_one_that_is_made() -> None:
    assert environment("bucket")["DORA_STORE"] == environment("prefect-worker")["DORA_STORE"] == environment("ray-head")["DORA_STORE"]
    bucket = environment("bucket")["DORA_STORE"].removeprefix("s3://").rpartition("/")[0]
    assert f"--artifacts-destination=s3://{bucket}/mlflow" in command("mlflow")


def test_both_databases_are_made_with_the_roles_that_the_servers_use() -> None:
    script = (INFRA / "docker" / "init-databases.sh").read_text()
    made = re.search(r"for name in (.+); do", script)[1].split()  # type: ignore[index]
    assert made == [environment("prefect")["PREFECT_SERVER_DATABASE_USER"], environment("mlflow")["PGUSER"]]
    assert {f"{name}_database_password" for name in made} < set(SERVICES["postgres"]["secrets"])


# ----------------------------------------------------------------------------------------------------------- Dockerfile

DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]


def test_the_base_is_pinned_and_each_target_ends_as_an_ordinary_user() -> None:
    python = next(text for word, text in INSTRUCTIONS if word == "ARG" and text.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=3\.1[123]\.\d+-slim-\w+", python)
    stages: dict[str, list[tuple[str, str]]] = {}
    for word, text in INSTRUCTIONS:
        if word == "FROM":
            base, _, stage = text.split()
            assert base in {"python:${PYTHON}", *stages}
            stages[stage] = []
        elif stages:
            stages[stage].append((word, text))
    for target in ("cpu", "cuda"):
        assert stages[target][-1] == ("USER", "10001:10001")
    assert not [word for word, _ in INSTRUCTIONS if word == "ADD"]
    assert any(word == "HEALTHCHECK" for word, _ in stages["runtime"])


def test_the_context_lets_in_what_the_image_copies_and_no_secret() -> None:
    rules = (INFRA / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert rules[1] == "*" and {"infra/.env", "infra/secrets"} <= set(rules)
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    for word, text in INSTRUCTIONS:
        if word == "COPY" and "--from" not in text:
            for source in [part for part in text.split() if not part.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in admitted, source


def test_the_image_has_what_its_services_import_and_the_lock_pins_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        group for extra, group in project["optional-dependencies"].items() if extra not in ("dev", "gpu", "eval", "quantised")
    ]  # as in the Dockerfile
    wanted = {re.split(r"[\[<>=~ ]", need)[0].lower().replace("_", "-") for group in (project["dependencies"], *extras) for need in group}
    pinned = {name.replace("_", "-") for name in locked()}
    assert {"boto3", "flask-wtf", "prometheus-client", "psycopg"} <= wanted
    assert wanted | {"prefect-kubernetes", "psycopg-binary", "setuptools"} <= pinned


# ----------------------------------------------------------------------------------------------------------- monitoring

DASHBOARD = json.loads((INFRA / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [rule["expr"] for group in load("monitoring/alerts.yml")["groups"] for rule in group["rules"]]
EXPRESSIONS += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_drawn_and_what_wakes_somebody_is_exported(expression: str) -> None:
    families = re.findall(r"\b(dora_\w+|ray_\w+)\b", expression)
    assert families
    for family in (name for name in families if name.startswith("dora_")):
        labels = FAMILIES[family][1]
        for selector in re.findall(family + r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=~?\"", selector)) <= set(labels), selector


def test_each_metric_that_a_panel_names_is_one_a_stage_reports() -> None:
    asked = {name for e in EXPRESSIONS for pattern in re.findall(r'metric=~?"([^"]+)"', e) for name in pattern.split("|")}
    assert asked >= {"loss", "lambda", "ess", "kl", "tokens_per_second"}
    sources = [path.read_text(encoding="utf-8") for folder in ("tasks", "dora_core") for path in (ROOT / folder).rglob("*.py")]
    keys = re.compile(r"""["'](\w+?)["']\s*\]?\s*[:=]|\b(\w+)=""")
    written = {name for text in sources for match in keys.finditer(text) for name in match.groups() if name}
    composed = {"accuracy_all", "auc_mean", "ece_mean"}  # accuracy_{part}, auc_{source}, ece_{source}
    assert asked - written == composed


def test_panels_are_distinct_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23


def test_prometheus_scrapes_services_that_are_there_with_secrets_it_has() -> None:
    jobs = {job["job_name"]: job for job in load("monitoring/prometheus.yml")["scrape_configs"]}
    assert jobs["dora"]["static_configs"][0]["targets"] == [f"metrics:{PORT}"]
    assert jobs["prefect"]["static_configs"][0]["targets"] == [f"prefect:{PORTS['prefect']}"]
    assert jobs["ray"]["http_sd_configs"][0]["url"].startswith(f"http://ray-head:{PORTS['ray']}/")
    used = {jobs["prefect"]["basic_auth"]["password_file"], jobs["ray"]["http_sd_configs"][0]["authorization"]["credentials_file"]}
    assert used == {f"/run/secrets/{name}" for name in SERVICES["prometheus"]["secrets"]}
    for name in ("metrics", "prefect", "ray-head"):
        assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES[name]["networks"])
    assert environment("prefect")["PREFECT_SERVER_METRICS_ENABLED"] == "true"


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    source = load("monitoring/grafana-provisioning.yaml")["datasources"][0]
    chosen = next(variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "datasource")
    assert chosen["current"]["value"] == source["uid"]
    folder = load("monitoring/grafana-dashboards.yaml")["providers"][0]["options"]["path"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in SERVICES["grafana"]["volumes"])
    assert mounts[f"{folder}/dora.json"] == "./monitoring/dashboard.json"


# -------------------------------------------------------------------------------------------------------------- honesty


@pytest.mark.parametrize("path", ["compose.yaml", "docker/Dockerfile", "monitoring/prometheus.yml"])
def test_what_nobody_has_run_says_so_at_its_top(path: str) -> None:
    assert NOT_YET_RUN.search("\n".join((INFRA / path).read_text(encoding="utf-8").splitlines()[:8]))


@each_service
def test_what_a_service_mounts_from_here_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = re.sub(r"\$\{\w+:-([^}]+)\}", r"\1", volume).split(":")[0]
        if source.startswith("."):
            assert (INFRA / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]
