"""Kubernetes manifests and Helm values: valid by schema, confined, consistent with one another and with the code.

Kubernetes' own kinds and every pod template are validated against Kubernetes' schemas (strictly: an unknown field is an error).
KubeRay's and Kueue's kinds have no schema on PyPI; their structure is checked here. None of this has run on a cluster.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.loading import load_config
from infra.exporter import PORT
from infra.services import PORTS
from infra.settings import WORK_POOL
from tests.infra.deploy_files import INFRA, NOT_YET_RUN, load, load_all, locked, unknown_variables

KUBERNETES = "1.32"
KUSTOMIZATION = load("kubernetes/kustomization.yaml")
APPLIED = [document for file in KUSTOMIZATION["resources"] for document in load_all(f"kubernetes/{file}")]
OPTIONAL = load_all("kubernetes/kueue.yaml") + load_all("kubernetes/rayjob.yaml")
WORK_POOL_TEMPLATE = json.loads((INFRA / "kubernetes" / "prefect-work-pool.json").read_text(encoding="utf-8"))


def one(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [d for d in APPLIED + OPTIONAL if d["kind"] == kind and name in (None, d["metadata"].get("name"))]
    return found


CLUSTER, JOB = one("RayCluster")["spec"], one("RayJob")["spec"]


def ray_templates(name: str, spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"{name} head", spec["headGroupSpec"]["template"]
    yield from ((f"{name} {group['groupName']}", group["template"]) for group in spec["workerGroupSpecs"])


def flow_run_template() -> dict[str, Any]:
    """The work pool's pod template as sent to Kubernetes: without Prefect's placeholders and the two fields that its worker requires."""
    template = copy.deepcopy(WORK_POOL_TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"])
    spec, container = template["spec"], template["spec"]["containers"][0]
    del spec["completions"], spec["parallelism"], spec["serviceAccountName"], container["args"], container["resources"]
    return template


PODS = dict(ray_templates("RayCluster", CLUSTER)) | dict(ray_templates("RayJob", JOB["rayClusterSpec"]))
PODS |= {f"Deployment {d['metadata']['name']}": d["spec"]["template"] for d in APPLIED if d["kind"] == "Deployment"}
PODS["flow run"] = flow_run_template()
each_pod = pytest.mark.parametrize("name", PODS)


def container(name: str) -> dict[str, Any]:
    (only,) = PODS[name]["spec"]["containers"]
    return only


# ---------------------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize(
    "document",
    [pytest.param(d, id=f"{d['kind']} {d['metadata']['name']}") for d in APPLIED if d["apiVersion"] != "ray.io/v1"],
)
def test_kubernetes_own_kinds_are_valid(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(document, KUBERNETES, strict=True)


@each_pod
def test_pod_templates_are_valid(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": PODS[name]}, KUBERNETES, strict=True
    )


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_the_images_in_and_leaves_nothing_out() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(INFRA / "kubernetes")], capture_output=True, text=True, check=True).stdout
    documents = list(yaml.safe_load_all(built))
    assert len(documents) == len(APPLIED)
    images = set(re.findall(r"image: (\S+)", built))
    assert images == {f"{image['newName']}:{image['newTag']}" for image in KUSTOMIZATION["images"]}
    assert {d["metadata"].get("namespace") for d in documents if d["kind"] != "Namespace"} == {"dora"}


# -------------------------------------------------------------------------------------------------------------- confined


@each_pod
def test_every_pod_meets_the_restricted_standard_that_the_namespace_enforces(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001, "the user of the Dockerfile, who owns its folders"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container(name)["securityContext"]
    assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {"emptyDir", "configMap"}


@each_pod
def test_every_pod_is_bounded_and_gets_no_variables_from_services(name: str) -> None:
    assert PODS[name]["spec"]["enableServiceLinks"] is False, "a Service named mlflow would set MLFLOW_PORT"
    if name != "flow run":  # its limits are variables of the work pool, see below
        resources = container(name)["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]) and "memory" in resources["limits"]
        assert resources["limits"].get("nvidia.com/gpu") == resources["requests"].get("nvidia.com/gpu")


def test_the_network_refuses_what_is_not_said() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in APPLIED if d["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["outside"]["egress"][0]["to"][0]["ipBlock"]["except"] == ["169.254.0.0/16"]
    names = {template["metadata"]["labels"]["app.kubernetes.io/name"] for template in PODS.values()}
    names |= {load(f"helm/{chart}.yaml")["fullnameOverride"] for chart in ("prefect-server", "prefect-worker")}
    text = (INFRA / "kubernetes" / "network-policies.yaml").read_text(encoding="utf-8")
    selected = set(re.findall(r"app.kubernetes.io/name: ([\w-]+)", text))
    selected |= {name for group in re.findall(r"values: \[([^]]+)\]", text) for name in group.split(", ")}
    assert selected == names


def test_secrets_are_named_not_written() -> None:
    made = re.search(r"for name in (.+?); do", (INFRA / "docker" / "make-secrets").read_text(), re.DOTALL)[1]  # type: ignore[index]
    keys = {*made.replace("\\", " ").split(), "prefect_auth", "hf_token"}
    token = {"name": one("RayCluster")["metadata"]["name"], "key": "auth_token"}
    for name in PODS:
        for variable in container(name).get("env", []):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if re.search(r"PASSWORD|SECRET|TOKEN|AUTH_STRING|DORA_AUTH|ACCESS_KEY", variable["name"]):
                assert secret, f"{name}: {variable['name']}"
            if secret and {k: secret[k] for k in ("name", "key")} != token:
                assert secret["name"] == "dora-secrets" and secret["key"] in keys
    assert not [d for d in APPLIED + OPTIONAL if d["kind"] == "Secret"]


# ------------------------------------------------------------------------------------------------- consistent with the code


def test_variables_are_read_by_somebody() -> None:
    names = {variable["name"] for name in PODS for variable in container(name).get("env", [])} | set(one("ConfigMap", "dora")["data"])
    assert unknown_variables(names) == []


def test_addresses_are_services_that_are_there_on_the_ports_of_the_code() -> None:
    settings = one("ConfigMap", "dora")["data"]
    assert settings["DORA_RAY_ADDRESS"] == f"http://{one('RayCluster')['metadata']['name']}-head-svc:{PORTS['ray']}"
    server = load("helm/prefect-server.yaml")["fullnameOverride"]
    assert settings["PREFECT_API_URL"] == f"http://{server}:{PORTS['prefect']}/api"
    assert load("helm/prefect-worker.yaml")["worker"]["serverApiConfig"]["apiUrl"] == settings["PREFECT_API_URL"]
    assert settings["MLFLOW_TRACKING_URI"] == f"http://mlflow:{one('Service', 'mlflow')['spec']['ports'][0]['port']}"
    assert one("Service", "mlflow")["spec"]["ports"][0]["port"] == PORTS["mlflow"]
    assert one("Service", "metrics")["spec"]["ports"][0]["port"] == PORT
    assert one("Service", "home")["spec"]["ports"][0]["port"] == PORTS["home"]
    assert container("Deployment dora-home")["args"][-1] == str(PORTS["home"])
    for service in (d for d in APPLIED if d["kind"] == "Service"):
        (pod,) = [t for t in PODS.values() if service["spec"]["selector"].items() <= t["metadata"]["labels"].items()]
        assert service["spec"]["ports"][0]["targetPort"] in [port["name"] for port in pod["spec"]["containers"][0]["ports"]]


def test_versions_are_the_locks() -> None:
    assert CLUSTER["rayVersion"] == JOB["rayClusterSpec"]["rayVersion"] == locked()["ray"]
    server, worker = load("helm/prefect-server.yaml")["global"]["prefect"]["image"], load("helm/prefect-worker.yaml")["worker"]["image"]
    assert {image["prefectTag"].split("-")[0] for image in (server, worker)} == {locked()["prefect"]}


def test_mlflow_asks_who_is_there_as_under_compose() -> None:
    def entries(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    assert entries(one("ConfigMap", "mlflow-auth")["data"]["mlflow-auth.ini"]) == entries((INFRA / "docker/mlflow-auth.ini").read_text())
    assert "--app-name=basic-auth" in container("Deployment mlflow")["args"]


# ------------------------------------------------------------------------------------------------------------------- Ray


@pytest.mark.parametrize("spec", [CLUSTER, JOB["rayClusterSpec"]], ids=["RayCluster", "RayJob"])
def test_a_ray_cluster_wants_its_token_and_computes_on_workers_only(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group.get("replicas", group["maxReplicas"]) <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (group["groupName"] == "gpu")


def test_the_standing_cluster_scales_its_groups_and_the_queued_one_is_of_fixed_size() -> None:
    """Kueue does not admit a cluster that scales itself."""
    assert CLUSTER["enableInTreeAutoscaling"] and "labels" not in one("RayCluster")["metadata"]
    assert [group["groupName"] for group in CLUSTER["workerGroupSpecs"]] == ["cpu", "gpu"]
    assert "enableInTreeAutoscaling" not in JOB["rayClusterSpec"]
    assert all(g["minReplicas"] == g["replicas"] == g["maxReplicas"] for g in JOB["rayClusterSpec"]["workerGroupSpecs"])


def test_the_queued_job_names_a_queue_that_has_room_for_it() -> None:
    queue, local = one("ClusterQueue")["spec"], one("LocalQueue")
    assert one("RayJob")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert local["metadata"]["namespace"] == one("RayJob")["metadata"]["namespace"] == "dora"
    assert local["spec"]["clusterQueue"] == one("ClusterQueue")["metadata"]["name"]
    (group,) = queue["resourceGroups"]
    assert {f["name"] for f in group["flavors"]} == {d["metadata"]["name"] for d in OPTIONAL if d["kind"] == "ResourceFlavor"}
    for flavor in group["flavors"]:
        assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]
    quota = {
        r["name"]: int(r["nominalQuota"])
        for f in group["flavors"]
        if f["name"] == "dora-gpu"
        for r in f["resources"]
        if "i" not in r["nominalQuota"]
    }
    (workers,) = JOB["rayClusterSpec"]["workerGroupSpecs"]
    asked = workers["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert all(int(asked[name]) * workers["replicas"] <= quota[name] for name in ("cpu", "nvidia.com/gpu"))


def test_the_queued_job_is_a_realignment_whose_configuration_holds_and_fits(tmp_path: Path) -> None:
    file = tmp_path / "realign.yaml"
    file.write_text(one("ConfigMap", "dora-realign")["data"]["realign.yaml"])
    config = load_config(file)
    assert JOB["entrypoint"] == "dora realign -c /etc/dora/realign.yaml"
    assert JOB["shutdownAfterJobFinishes"] is True and JOB["submissionMode"] == "HTTPMode"
    (workers,) = JOB["rayClusterSpec"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    for execution in (config.execution.default, config.execution.align):
        assert execution is not None
        assert execution.workers * execution.gpus_per_worker <= int(limits["nvidia.com/gpu"]) * workers["replicas"]
        assert execution.workers * execution.cpus_per_worker <= int(limits["cpu"]) * workers["replicas"]


# ---------------------------------------------------------------------------------------------------------------- Prefect


def test_the_work_pools_template_is_one_that_prefect_accepts() -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    pool = WorkPoolCreate(name=WORK_POOL, type="kubernetes", base_job_template=WORK_POOL_TEMPLATE)
    assert load("helm/prefect-worker.yaml")["worker"]["config"]["workPool"] == pool.name
    variables = WORK_POOL_TEMPLATE["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(WORK_POOL_TEMPLATE["job_configuration"])))
    assert used == set(variables), "every placeholder is a variable and every variable is used"
    assert variables["namespace"]["default"] == "dora"
    assert all(variables[name]["default"] for name in ("image", "cpu_request", "memory_request", "memory_limit", "finished_job_ttl"))


def test_a_flow_run_finds_its_settings_configurations_and_every_secret() -> None:
    flow_run = container("flow run")
    assert flow_run["envFrom"] == [{"configMapRef": {"name": one("ConfigMap", "dora")["metadata"]["name"]}}]
    assert {v["name"] for v in flow_run["env"]} >= {
        "PREFECT_API_AUTH_STRING",
        "MLFLOW_TRACKING_PASSWORD",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
    }
    assert {"mountPath": "/var/lib/dora/configs", "name": "configs", "readOnly": True} in flow_run["volumeMounts"]
    variables = [v["name"] for v in load("helm/prefect-worker.yaml")["worker"]["extraEnvVars"]]
    assert sum("AUTH_STRING_SECRET" in name for name in variables) == 2, "else the worker writes the password into every job's manifest"


# --------------------------------------------------------------------------------------------------------------- honesty


@pytest.mark.parametrize("path", [p.relative_to(INFRA).as_posix() for folder in ("kubernetes", "helm") for p in (INFRA / folder).iterdir()])
def test_what_nobody_has_run_says_so_at_its_top(path: str) -> None:
    if path != "kubernetes/kustomize-images.yaml":  # part of kustomization.yaml
        text = (INFRA / path).read_text(encoding="utf-8")
        head = text if path.endswith(".json") else "\n".join(text.splitlines()[:8])
        assert NOT_YET_RUN.search(head)
