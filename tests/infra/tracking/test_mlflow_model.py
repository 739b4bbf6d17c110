"""A registered folder is an MLflow model: it loads, answers, and is served, from where its weights lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from fastapi.testclient import TestClient
from mlflow.pyfunc.scoring_server import init

from infra.tracking.mlflow_model import CODE, EXAMPLE, MESSAGES, MLMODEL, describe_model, mlflow_files
from tests.flows.registered_demo import register_demo

SHORT = {"max_tokens": 4}


@pytest.fixture
def champion(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a registered model."""
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    register_demo(mlflow_sqlite, tmp_path / "home" / "store")
    [folder] = (tmp_path / "home" / "store" / "align").glob("*/model")
    return folder


def test_the_registered_version_loads_by_its_alias_and_answers_in_text(champion: Path, mlflow_sqlite: str) -> None:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(mlflow_sqlite)
    mlflow.set_registry_uri(mlflow_sqlite)
    try:
        model = mlflow.pyfunc.load_model("models:/demo@champion")
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    [answer] = model.predict(MESSAGES, params=SHORT)
    assert isinstance(answer, str) and model.predict([MESSAGES, MESSAGES], params=SHORT) == [answer, answer]
    warm = {"max_tokens": 4, "temperature": 1.0}
    assert model.predict(MESSAGES, params=warm | {"seed": 1}) == model.predict(MESSAGES, params=warm | {"seed": 1})
    assert model.metadata.signature.inputs.input_names() == ["messages"]
    example: Any = model.input_example
    assert list(example["messages"][0]) == MESSAGES["messages"]


def test_a_server_takes_messages_as_chat_clients_send_them_and_tables(champion: Path) -> None:
    client = TestClient(init(mlflow.pyfunc.load_model(str(champion))))
    said = client.post("/invocations", json=MESSAGES | SHORT)
    assert said.status_code == 200, said.text
    [answer] = said.json()
    table = {"columns": ["messages"], "data": [[MESSAGES["messages"]]]}
    assert client.post("/invocations", json={"dataframe_split": table, "params": SHORT}).json() == {"predictions": [answer]}
    refused = client.post("/invocations", json={"messages": "hello"})
    assert refused.status_code == 400 and "messages" in refused.text


def test_the_files_are_small_the_same_twice_and_name_no_path(champion: Path) -> None:
    files = mlflow_files()
    assert files == mlflow_files() and all((champion / name).read_text() == text for name, text in files.items())
    assert sum(map(len, files.values())) < 20_000 and str(champion.parents[3]) not in "".join(files.values())
    described = yaml.safe_load(files[MLMODEL])
    assert described["flavors"]["python_function"]["model_code_path"] == CODE and "utc_time_created" not in described
    assert json.loads(files[EXAMPLE])["data"] == [[MESSAGES["messages"]]]
    assert "+" not in files["requirements.txt"], "a local version is on no index"
    assert "infra" not in [
        line.split()[1].partition(".")[0] for line in files[CODE].splitlines() if line.strip().startswith(("import", "from"))
    ]


def test_a_folder_without_a_model_and_one_that_is_described_stay_as_they_are(tmp_path: Path) -> None:
    assert describe_model(tmp_path) == [] and not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text("{}")
    assert [path.name for path in describe_model(tmp_path)] == list(mlflow_files()), "MLmodel last: with it the folder is whole"
    (tmp_path / MLMODEL).write_text("mine")
    assert describe_model(tmp_path) == [] and (tmp_path / MLMODEL).read_text() == "mine"
