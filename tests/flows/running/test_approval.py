"""``promotion.mode: ask`` on a real Prefect server with its automations, a real registry, and a receiver of webhooks.

The flow is the real one; every stage before ``promote`` is finished by hand, so that a run takes seconds and nothing trains. A run is
executed in this process, as a worker's child process would.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests
from prefect.logging.handlers import APILogWorker

from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.config.loading import load_config
from flows.config.models import RealignConfig
from flows.planning.plan import build_plan
from infra.ports import free_port
from infra.processes import spawn, terminate_tree
from infra.settings import Settings
from infra.store.store import Store
from infra.tracking import model_registry as registry
from infra.tracking.mlflow_client import mlflow_client
from tests.flows.report.runs import make_facts

pytestmark = pytest.mark.component

INTERVAL = {"value": 0.62, "low": 0.58, "high": 0.66, "n": 128}
GATE = {"passed": True, "rules": [{"name": "kl", "passed": True, "value": 0.62, "threshold": 50.0, "message": "KL at most 50: 0.62"}]}
ANSWER = {"decision": "approve", "reason": "reads well", "who": "ann"}
WAIT_SECONDS = 60.0


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/secret-path"

    def wait_for(self, event: str, run: str = "") -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for notice in list(self.told):
                if notice["event"] == event and notice["run"].startswith(run):
                    return notice
            time.sleep(0.1)
        raise AssertionError(f"no notice of {event} in {self.told}")


class Place:
    """One home with a Prefect server; every config here has a policy that passed its gate."""

    def __init__(self, folder: Path, api: str, mlflow: str):
        from prefect.client.orchestration import get_client

        self.folder, self.api, self.mlflow = folder, api, mlflow
        self.store, self.client = Store(str(folder / "home" / "store")), get_client(sync_client=True)

    def config(self, project: str, stop: dict[str, str] | None = None, compare: str = "null", **promotion: Any) -> RealignConfig:
        """One whose stages before ``promote`` are finished; ``stop``: drift found that the data has moved too far."""
        file, data = self.folder / f"{project}.yaml", self.folder / "data.parquet"
        objective = "{objective: {name: dora}}" if stop else "{objective: {name: erm}}"  # for erm nothing is scored, so there is no drift
        asks = json.dumps({"mode": "ask"} | promotion)
        file.write_text(
            f"project: {project}\ndata: {{train: [{{path: {data}}}]}}\nalign: {objective}\ncompare: {compare}\npromotion: {asks}\n"
        )
        config = load_config(file)
        for stage in build_plan(config, self.store).stages[:-1]:
            folder = self.store.folder(stage.stage, stage.digest)
            (folder.path / "model").mkdir(exist_ok=True)
            (folder.path / "model" / "config.json").write_text("{}")
            known = make_facts(["human", "model"])
            known["evaluate"] |= {"kl": INTERVAL, "gate": GATE}
            known["evaluate"]["parts"]["all"]["accuracy"]["policy"] = INTERVAL
            known["compare"]["wins"] = {}
            known["drift"] |= {"stop": stop}
            known["reward"] = known["sft"] | {"pairs": {"train": 9, "eval": 3}, "accuracy": {}, "data": "all"}
            known["reference"] = {"scored_rows": 36, "reused_rows": 0, "rows_per_second": 9.0, "truncated": 0}
            facts: dict[str, Any] = known.get(stage.stage, {})
            self.store.mark_done(
                folder,
                {"stage": stage.stage, "digest": stage.digest, "spec": stage.spec.payload(), "seconds": 2.0, "facts": facts}
                | {"rows": 4, "metrics": {"kl": 0.62}, "inputs": {name: ref.model_dump() for name, ref in stage.spec.inputs().items()}},
            )
        return config

    def start(self, config: RealignConfig | dict[str, Any]) -> UUID:
        """As the UI does; nobody runs it yet."""
        deployment = self.client.read_deployment_by_name("realign/realign")
        given = config if isinstance(config, dict) else config.model_dump(mode="json", by_alias=True)
        return self.client.create_flow_run_from_deployment(deployment.id, parameters={"config": given, "until": "promote"}).id

    def execute(self, run: UUID) -> Any:
        """What a worker's child process does; returns the state."""
        from prefect.exceptions import Pause
        from prefect.flow_engine import run_flow

        from flows.realign import realign

        flow_run = self.client.read_flow_run(run)
        parameters = {"config": RealignConfig.model_validate(flow_run.parameters["config"]), "until": flow_run.parameters["until"]}
        with suppress(Pause):
            run_flow(realign, flow_run=flow_run, parameters=parameters, return_type="state")
        return self.client.read_flow_run(run).state

    def resume(self, run: UUID, answer: dict[str, Any]) -> str:
        """What the form's button does; returns ACCEPT, REJECT or ABORT."""
        return requests.post(f"{self.api}/flow_runs/{run}/resume", json={"run_input": answer}, timeout=30).json()["status"]

    def form(self, run: UUID) -> dict[str, Any]:
        """Schema and description, as the UI reads them."""
        keys = self.client.read_flow_run(run).state.state_details.run_input_keyset
        read = lambda name: requests.get(f"{self.api}/flow_runs/{run}/input/{keys[name]}", timeout=30).json()  # noqa: E731
        return {"schema": read("schema"), "description": read("description")}

    def manifests(self, project: str) -> list[dict[str, Any]]:
        return [self.store.read_json(f"runs/{run}/run.json") for run in self.store.list("runs") if run.startswith(project)]

    def artifacts(self, run: UUID) -> str:
        query = {"artifacts": {"flow_run_id": {"any_": [str(run)]}, "type": {"any_": ["markdown"]}}}
        return "\n".join(a["data"] for a in requests.post(f"{self.api}/artifacts/filter", json=query, timeout=30).json())

    def task_runs(self, run: UUID) -> list[str]:
        query = {"flow_runs": {"id": {"any_": [str(run)]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return [t["name"].split(" · ")[0] for t in requests.post(f"{self.api}/task_runs/filter", json=query, timeout=30).json()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, empty_prefect_database: Path) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("prefect"), free_port()
    shutil.copy(empty_prefect_database, folder / "prefect.db")
    api = f"http://127.0.0.1:{port}/api"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DORA_"))}
    own |= {"PREFECT_HOME": str(folder), "PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    process = spawn("prefect", command, log=folder / "log", environment=own)
    try:
        request.getfixturevalue("empty_mlflow_database")  # while the server boots
        import flows.realign  # noqa: F401

        while True:
            assert process.alive(), process.log_tail()
            try:
                if requests.post(f"{api}/flow_runs/filter", json={"limit": 1}, timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.1)
        yield api
        APILogWorker.drain_all(timeout=5)
    finally:
        terminate_tree([process], grace=5.0)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    yield receiver
    receiver.shutdown()
    receiver.server_close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Testbed(TestbedConfig(prompts=40, responses_per_prompt=3)).write(tmp_path_factory.mktemp("data") / "data.parquet")


@pytest.fixture
def place(server: str, data: Path, tmp_path: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    from prefect.deployments.runner import EntrypointType, RunnerDeployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.realign import realign

    (tmp_path / "data.parquet").symlink_to(data)
    for name, value in {"DORA_HOME": str(tmp_path / "home"), "DORA_MLFLOW_URI": mlflow_sqlite, "DORA_PREFECT_API_URL": server}.items():
        monkeypatch.setenv(name, value)
    with temporary_settings({PREFECT_API_URL: server}):
        deployment = RunnerDeployment.from_flow(realign, name="realign", entrypoint_type=EntrypointType.MODULE_PATH, tags=["dora"])
        deployment.apply()
        place = Place(tmp_path, server, mlflow_sqlite)
        registry.register(mlflow_sqlite, "asked", "s3://bucket/first")
        registry.promote(mlflow_sqlite, "asked", "1", "the first")
        yield place


@pytest.mark.fault(22)
def test_asked_approved_and_told(place: Place, receiver: Receiver) -> None:
    from flows.deployment.automations import install

    lines = install(place.api, receiver.url)
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["created"] * 4
    assert install(place.api, None) == [line.replace("created", "unchanged") for line in lines]  # the address is remembered
    assert len(place.client.read_automations()) == 4 and "secret-path" not in str(place.client.read_automations())

    run = place.start(place.config("asked"))
    assert place.execute(run).name == "Suspended"
    form, name = place.form(run), place.client.read_flow_run(run).name
    assert form["schema"]["properties"]["decision"]["enum"] == ["approve", "reject"]
    assert "Promote version 2 of `asked`?" in form["description"] and "Champion now: version 1" in form["description"]
    assert "0.620 [0.580, 0.660]" in form["description"] and form["description"] in place.artifacts(run)
    (manifest,) = place.manifests("asked")
    assert (manifest["status"], manifest["decision"], manifest["error"]) == ("waiting", "challenger", None)
    assert registry.aliases(place.mlflow, "asked") == {"champion": "1", "challenger": "2"}
    notice = receiver.wait_for("dora.approval.asked")
    assert notice["project"] == "asked" and notice["run"] == name and notice["link"].endswith(f"/runs/flow-run/{run}")
    assert "version 2 of asked waits for approval until" in notice["cause"] and notice["figures"] == {"kl": 0.62}

    assert place.resume(run, ANSWER | {"reason": "ok"}) == "REJECT"
    assert place.resume(run, ANSWER) == "ACCEPT"
    assert place.resume(run, ANSWER) == "ABORT"  # pressed twice
    state = place.execute(run)
    verdict = "promoted: win rate against the start 0.640"  # of the evaluation's summary, what stands before its first semicolon
    assert (state.name, state.message) == ("Completed", f"{verdict}; 1 stage ran, {len(manifest['stages']) - 1} cached")
    assert set(place.client.read_flow_run(run).tags) == {"dora", "project:asked", "decision:promoted"}, "the deployment's stays"
    assert registry.aliases(place.mlflow, "asked") == {"champion": "2", "previous": "1"}
    audit = registry.history(place.mlflow, "asked", "2")
    assert [entry["action"] for entry in audit] == ["challenger", "promoted"]
    assert (audit[1]["who"], audit[1]["why"]) == ("ann", "reads well") and len(audit[1]["config"]) == 64
    assert "approved by ann: reads well" in place.artifacts(run)
    assert place.task_runs(run).count("promote") == 2 and place.task_runs(run).count("align") == 1
    (after,) = place.manifests("asked")
    assert (after["run_id"], after["status"], after["decided_by"]) == (manifest["run_id"], "completed", "ann")
    assert "version 2 of asked is champion: approved by ann" in receiver.wait_for("dora.promoted")["cause"]
    client = mlflow_client(place.mlflow)
    runs = client.search_runs([client.get_experiment_by_name("asked").experiment_id], "tags.`dora.status` != ''")
    assert [(r.data.tags["dora.status"], r.data.tags["dora.decided_by"]) for r in runs] == [("completed", "ann")]


@pytest.mark.fault(22, 24)
def test_unanswered_then_asked_again_about_another_champion(place: Place) -> None:
    from flows.running.approval import end_overdue

    config = place.config("asked", ask_timeout_hours=2)
    run = place.start(config)
    assert place.execute(run).name == "Suspended"
    assert end_overdue(Settings(), time.time() + 3600) == []
    assert end_overdue(Settings(), time.time() + 3 * 3600) == [m["run_id"] for m in place.manifests("asked")]
    state = place.execute(run)
    assert state.name == "Completed" and state.message.startswith("not promoted: no answer within 2 h; ")
    assert registry.aliases(place.mlflow, "asked") == {"champion": "1", "challenger": "2"}

    again = place.start(config)
    assert place.execute(again).name == "Suspended"
    registry.register(place.mlflow, "asked", "s3://bucket/newer")
    registry.promote(place.mlflow, "asked", "3", "by hand")  # while somebody reads the form
    assert place.resume(again, ANSWER) == "ACCEPT"
    assert place.execute(again).name == "Suspended"
    assert "Champion now: version 3" in place.form(again)["description"]
    assert place.resume(again, ANSWER | {"decision": "reject", "reason": "no better than 3"}) == "ACCEPT"
    assert place.execute(again).message.startswith("refused: win rate against the start 0.640; ")
    assert registry.aliases(place.mlflow, "asked") == {"champion": "3", "previous": "1"}

    third = place.start(config)
    assert place.execute(third).message.startswith("unchanged; nothing to do")
    cancelled = place.start(place.config("asked", model_name="other"))
    assert place.execute(cancelled).name == "Suspended"
    requests.post(f"{place.api}/flow_runs/{cancelled}/set_state", json={"state": {"type": "CANCELLED"}, "force": True}, timeout=30)
    assert end_overdue(Settings()) == []
    assert {m["status"] for m in place.manifests("asked")} == {"completed", "cancelled"}


@pytest.mark.fault(24)
def test_a_champion_that_was_not_compared_with_stays_and_the_run_says_so(place: Place) -> None:
    """The project's first run compares with nobody; another project's model of the same name is champion."""
    state = place.execute(place.start(place.config("asked", compare="{}", mode="auto")))
    assert state.name == "Completed"
    assert state.message.startswith("not promoted: version 1 is champion and cannot be compared with: its files are not in ")
    assert "to replace it: dora promote asked 2" in state.message
    assert registry.aliases(place.mlflow, "asked") == {"champion": "1", "challenger": "2"}


def test_a_failing_run_reaches_the_webhook_and_one_that_a_guard_rail_stops_does_not(place: Place, receiver: Receiver) -> None:
    """The guard rail's own event does, when it finds something."""
    from flows.deployment.automations import install

    install(place.api, receiver.url)
    stopped = place.execute(place.start(place.config("stopping", stop={"message": "KL is 99", "hint": "lower the learning rate"})))
    assert (stopped.name, stopped.type) == ("Stopped", "FAILED") and "KL is 99" in stopped.message
    config = place.config("failing").model_dump(mode="json", by_alias=True)
    config["data"]["train"][0]["path"] = str(place.folder / "nowhere.parquet")
    run = place.start(config)
    assert place.execute(run).name == "Failed"
    notice = receiver.wait_for("prefect.flow-run.Failed", "failing")
    assert notice["project"] == "failing" and "nowhere.parquet" in notice["cause"]
    assert notice["link"] == f"{place.api.removesuffix('/api')}/runs/flow-run/{run}"
    assert not [told for told in receiver.told if told["run"].startswith("stopping")]
