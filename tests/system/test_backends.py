"""The smoke realignment on PostgreSQL and S3 with servers that require a password, against the one on SQLite and local files.

One `dora up` for all tests here: PostgreSQL and an S3 service are real ones on loopback, the servers listen on every interface. Every
secret, and one prompt and one response, hold a canary, and no file that these runs leave may contain it where it does not belong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pyarrow.parquet as pq
import pytest
import requests

from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.config.loading import load_config
from flows.planning.plan import build_plan
from infra.processes import process_tree
from infra.ray_head import auth_headers, token_environment
from infra.settings import ServicesRecord, Settings, apply_environment
from infra.store.store import Store
from infra.tracking import model_registry as registry
from tasks.runtime.stage import execute
from tasks.stages import promote
from tasks.stages.registry import STAGES
from tests import postgres_server
from tests.endpoint_server import EndpointServer, Reply
from tests.flows.dora import Dora
from tests.progress import run_to_its_end
from tests.s3_server import BUCKET, S3Server, s3_server

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]  # by progress: tests/progress.py

PASSWORD, S3_SECRET, API_KEY = "auth-canary-77c2b9e0", "s3-canary-9be0aa71", "key-canary-5f1e5a17"
TEXT = "text-canary 3d8e41"
PROGRAM = [sys.executable, "-c", "from flows.cli import main; main()"]
CONFIG = """
project: small
data: {{train: [{{path: {data}}}], max_bad_fraction: 0.05}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
sft: {{optimization: {{epochs: 1, batch_size: 8}}}}
align: {{objective: {{name: erm}}, optimization: {{max_steps: 3, batch_size: 8}}}}
evaluate: {{kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100}}
compare: {compare}
promotion: {{mode: never}}
execution:
  default: {{workers: 0}}
  align: {{workers: {workers}}}
  judge: {{workers: {workers}, endpoint: {{url: "{endpoint}", api_key_env: JUDGE_KEY}}}}
"""
FAILING = "{judge: {kind: llm, model: judge, against: given}, generate: {max_new_tokens: 8}, champion: false}"


@dataclass
class Place:
    """A home whose servers run on the back ends, and the output of its commands."""

    dora: Dora
    s3: S3Server
    postgres: str
    data: Path
    urls: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def command(self, *arguments: str, code: int = 0) -> Any:
        """Run ``dora <arguments> --json`` and return its JSON document."""
        line = [*PROGRAM, *arguments, "--json"]
        done = run_to_its_end(line, self.dora.environment, others=self.dora.processes)
        self.said += [done.stdout, done.stderr]
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def realign(self, *, workers: int, compare: str = "null", endpoint: str = "http://127.0.0.1:9/v1", code: int = 0) -> Any:
        path = self.dora.folder / "c.yaml"
        path.write_text(CONFIG.format(data=self.data, workers=workers, compare=compare, endpoint=endpoint))
        return self.command("realign", "-c", str(path), "--verbose", code=code)

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(f"{self.postgres}/mlflow") as connection:
            return connection.execute(query).fetchall()  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small known mixture; one of its records holds the canary, and so does a quarantined row."""
    path = Testbed(TestbedConfig(prompts=40, responses_per_prompt=3)).write(tmp_path_factory.mktemp("mixture") / "data.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0] |= {"prompt": f"{TEXT} {rows[0]['prompt']}", "responses": [f"{r} {TEXT}" for r in rows[0]["responses"]]}
    rows[1] |= {"prompt": f"{TEXT} {rows[1]['prompt']}", "rewards": [float("nan")] * 3, "sources": []}
    pq.write_table(table.from_pylist(rows, table.schema), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Place]:
    with postgres_server.postgres_server() as postgres, s3_server(S3_SECRET) as s3:
        dora = Dora(tmp_path_factory.mktemp("backends"))
        dora.environment |= s3.environment | {
            "DORA_STORE": f"s3://{BUCKET}/store",
            "DORA_CACHE": str(dora.folder / "cache"),
            "DORA_POSTGRES": postgres.url,
            "DORA_AUTH": f"ann:{PASSWORD}",
            "JUDGE_KEY": API_KEY,
        }
        place = Place(dora, s3, postgres.url, data)
        try:
            place.urls = place.command("up", "--artifacts", f"s3://{BUCKET}/mlflow", "--host", "0.0.0.0")["services"]
            for name in ("DORA_POSTGRES", "DORA_AUTH"):  # from here on it is recorded
                del dora.environment[name]
            yield place
        finally:
            place.command("down")
            for process in dora.processes():
                process.kill()


@pytest.fixture(scope="module")
def here(place: Place) -> dict[str, Any]:
    """Manifest of the run on the back ends, with Ray."""
    return place.realign(workers=1)


@pytest.fixture
def settings(place: Place, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as a separate process reads them."""
    for name, value in place.dora.environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    apply_environment(settings)
    return settings


def results(stages: dict[str, tuple[str, str]], store: Store) -> dict[str, Any]:
    """Return {stage label: digest and checksums of its files} of {stage label: stage and digest}."""
    found = {}
    for label, (stage, digest) in stages.items():
        result = store.read_result(stage, digest)
        assert result is not None, label
        found[label] = (digest, {name: facts["sha256"] for name, facts in result["files"].items()})
    return found


def test_the_same_digests_and_bytes_as_on_sqlite_and_local_files(
    place: Place, here: dict[str, Any], settings: Settings, tmp_path: Path, mlflow_sqlite: str
) -> None:
    """Against the stages one after the other in this process."""
    local = Store(str(tmp_path / "store"))
    plan = build_plan(load_config(place.dora.folder / "c.yaml", ["execution.align={workers: 0}"]), local)
    for stage in plan.stages:
        spec = stage.spec
        if isinstance(spec, promote.Spec):
            spec = spec.evolve(tracking=promote.Tracking(uri=mlflow_sqlite))
        execute(spec, STAGES[stage.stage].run, local)
    assert [s["state"] for s in here["stages"]] == ["ran"] * 7
    ours = {s["label"]: (s["stage"], s["digest"]) for s in here["stages"]}
    theirs = {s.label: (s.stage, s.digest) for s in plan.stages}
    assert results(ours, Store(settings.store_uri)) == results(theirs, local)
    assert here["warnings"] == [] and not (place.dora.home / "mlflow.db").exists() and not (place.dora.home / "store").exists()


def test_mlflow_on_postgresql_has_the_runs_their_metrics_and_figures_in_the_bucket(place: Place, here: dict[str, Any]) -> None:
    assert set(place.sql("select distinct status from runs")) == {("FINISHED",)} and place.sql("select count(*) from runs") == [(8,)]
    assert place.sql("select count(*) from metrics where key = 'gold_win_rate' or key like 'loss%'") > [(0,)]
    figures = [key for key in place.s3.objects("mlflow/") if "/artifacts/figures/" in key and key.endswith(".png")]
    assert figures
    roots = {row[0] for row in place.sql("select artifact_location from experiments where name = 'small'")}
    assert all(root.startswith(f"s3://{BUCKET}/mlflow/") for root in roots)


def test_the_model_is_registered_where_it_lies_and_gets_its_alias(place: Place, here: dict[str, Any], settings: Settings) -> None:
    align = next(s for s in here["stages"] if s["stage"] == "align")
    versions = place.sql("select source from model_versions")
    assert versions == [(f"s3://{BUCKET}/store/align/{align['digest']}/model",)]
    assert place.command("promote", "small", "1")["aliases"]["champion"] == "1"
    assert registry.aliases(settings.effective().mlflow_uri, "small")["champion"] == "1"


def test_nobody_is_let_in_without_the_password(place: Place) -> None:
    token = auth_headers(token_environment(place.dora.home / "ray" / "services"))
    login: dict[str, Any] = {"auth": ("ann", PASSWORD)}
    for method, url, body, allowed in (
        ("POST", f"{place.urls['prefect']}/api/flow_runs/filter", {"limit": 1}, login),
        ("POST", f"{place.urls['mlflow']}/api/2.0/mlflow/experiments/search", {"max_results": 1}, login),
        ("GET", f"{place.urls['ray']}/api/jobs/", None, {"headers": token}),
    ):
        for wrong in ({}, {"auth": ("ann", "wrong-password")}):
            assert requests.request(method, url, json=body, timeout=30, **wrong).status_code in (401, 403), url
        assert requests.request(method, url, json=body, timeout=30, **allowed).status_code == 200, url
    page = requests.get(place.urls["mlflow"], timeout=30)
    assert page.status_code == 401 and "Basic" in page.headers["WWW-Authenticate"]  # the browser requires it


def test_browsers_reach_it_by_the_machines_address_and_other_sites_do_not(place: Place) -> None:
    url, mine = f"{place.urls['mlflow']}/ajax-api/2.0/mlflow/experiments/search", place.urls["mlflow"]
    ask = {"json": {"max_results": 1}, "auth": ("ann", PASSWORD), "timeout": 30}
    assert requests.post(url, headers={"Origin": mine}, **ask).status_code == 200
    assert requests.post(url, headers={"Origin": "http://evil.example"}, **ask).status_code == 403
    assert requests.post(url, headers={"Host": "evil.example"}, **ask).status_code == 403


def test_doctor_looks_at_the_back_ends(place: Place) -> None:
    line = [*PROGRAM, "doctor", "--json"]
    done = run_to_its_end(line, place.dora.environment)
    place.said += [done.stdout, done.stderr]
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("store", "postgresql", "artifacts", "prefect", "mlflow", "ray", "worker", "home"):
        assert found[name]["ok"] is True, found[name]


def test_no_secret_and_no_text_is_in_what_the_runs_leave_behind(place: Place, here: dict[str, Any]) -> None:
    with EndpointServer(lambda body: Reply("no such key", status=401)) as server:
        failed = place.realign(workers=1, compare=FAILING, endpoint=server.url, code=1)
        assert f"Bearer {API_KEY}" in server.authorizations
    assert failed["error"]["message"].startswith("stage judge")

    home, said = place.dora.home, "\n".join(place.said).encode()
    record = ServicesRecord.model_validate_json((home / "services.json").read_text())
    tree = process_tree([service.process for service in record.services.values()])
    outputs = {"what the commands said": said, "ps": "\n".join(" ".join(p.cmdline()) for p in tree if p.is_running()).encode()}
    outputs |= {f"database {name}": postgres_server.dump(place.postgres, name) for name in ("prefect", "mlflow")}
    outputs |= {f"s3://{key}": content for key, content in place.s3.objects().items()}
    session = Path(json.loads((home / "ray" / "services" / "ray.json").read_text())["temp_dir"])
    for root in (home, session, place.dora.folder / "cache"):
        outputs |= {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    assert len(outputs) > 100 and any("job-driver-dora-align" in name for name in outputs)

    kept = {str(home / name) for name in ("postgres-password", "auth", "ray/services/ray-token")}
    assert all(Path(name).stat().st_mode & 0o077 == 0 for name in kept)
    token = (home / "ray" / "services" / "ray-token").read_text().strip()
    password = postgres_server.PASSWORD
    secrets = {S3_SECRET, API_KEY, PASSWORD, token, password, quote(password, safe=""), json.dumps(password)[1:-1]}
    for secret in secrets:
        assert [name for name, content in outputs.items() if secret.encode() in content and name not in kept] == []

    tables = (".parquet", ".arrow")  # the stages' tables are where prompts and responses belong
    assert [name for name, content in outputs.items() if TEXT.encode() in content and not name.endswith(tables)] == []


def test_only_what_asks_for_a_password_listens_beyond_loopback(place: Place) -> None:
    record = ServicesRecord.model_validate_json((place.dora.home / "services.json").read_text())
    ours = {p.pid for name in ("prefect", "mlflow", "worker", "home") for p in process_tree([record.services[name].process])}
    open_ports = {
        c.laddr.port for c in psutil.net_connections("tcp") if c.pid in ours and c.status == "LISTEN" and not c.laddr.ip.startswith("127.")
    }
    assert open_ports == {int(place.urls[name].rsplit(":", 1)[1]) for name in ("prefect", "mlflow", "home")}


def test_down_leaves_nothing(place: Place) -> None:
    assert set(place.command("down")["stopped"]) == {"home", "worker", "ray", "mlflow", "prefect"}
    assert place.dora.processes() == []
    assert json.loads((place.dora.home / "services.json").read_text())["services"] == {}
