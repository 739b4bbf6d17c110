"""`dora model`: list, show, export, card, chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from flows.cli import app
from tests.flows.registered_demo import register_demo


@pytest.fixture
def home(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DORA_MLFLOW_URI", mlflow_sqlite)
    register_demo(mlflow_sqlite, tmp_path / "home" / "store")
    return tmp_path / "home"


def run(*command: str, given: str = "") -> Any:
    shown = CliRunner().invoke(app, ["model", *command, "--json"], input=given)
    assert shown.exit_code == 0, shown.stderr
    return json.loads(shown.stdout)


def test_models_are_listed_and_shown(home: Path) -> None:
    [listed] = run("list")["models"]
    assert (listed["model"], listed["version"], listed["aliases"]) == ("demo", "1", ["champion"])
    shown = run("show", "demo@champion")
    assert [entry["action"] for entry in shown["history"]] == ["promoted"] and Path(shown["folder"]).is_dir()
    text = CliRunner().invoke(app, ["model", "show", "demo"]).stdout
    assert "promoted @champion" in text and "win rate .600 [.550, .650] over the start" in text and "by ann" in text


def test_an_export_is_a_folder_that_plain_transformers_loads_with_a_card(home: Path, tmp_path: Path) -> None:
    done = run("export", "models:/demo@champion", str(tmp_path / "out"), "--license", "apache-2.0")
    assert done["version"] == "1" and done["notes"] == []
    AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "license: apache-2.0" in card and "base_model: lab/base-model" in card
    refused = CliRunner().invoke(app, ["model", "export", "demo", str(tmp_path / "out")])
    assert refused.exit_code == 2 and "not an empty folder" in refused.stderr


def test_a_conversation_has_all_its_turns_and_is_the_same_with_the_same_seed(home: Path) -> None:
    options = ("chat", "demo", "--max-new-tokens", "6", "--seed", "3", "--system", "be brief")
    messages = run(*options, "--prompt", "how do I swim", "-p", "like this ?")["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert run(*options, "--prompt", "how do I swim", "-p", "like this ?")["messages"] == messages
    typed = run(*options, given="how do I swim\nlike this ?\n\n")
    assert typed["messages"] == messages


def test_nothing_registered_says_what_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    assert "`dora realign` registers" in CliRunner().invoke(app, ["model", "list"]).stdout
    refused = CliRunner().invoke(app, ["model", "show", "demo"])
    assert refused.exit_code == 2 and "no model 'demo'" in refused.stderr and "Traceback" not in refused.stderr


class Fake:
    """A hub that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        self.calls.append(("repo", repo_id, private))
        return f"https://hub/{repo_id}"

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> None:
        self.calls.append(("commit", repo_id, [operation.path_in_repo for operation in operations], commit_message))


def test_a_push_needs_yes_and_a_public_one_a_licence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Fake()
    monkeypatch.setattr("flows.cli.registered._hub", lambda: hub)
    planned = run("push", "demo@champion", "team/demo")
    assert planned["sent"] is False and "model.safetensors" in planned["files"] and hub.calls == []
    sent = run("push", "demo@champion", "team/demo", "--yes")
    assert sent["url"] == "https://hub/team/demo" and hub.calls[0] == ("repo", "team/demo", True)
    name, repo, paths, message = hub.calls[1]
    assert (name, repo, message) == ("commit", "team/demo", "demo version 1")
    assert paths == [*sent["files"], "README.md"] and "MLmodel" in paths
    refused = CliRunner().invoke(app, ["model", "push", "demo", "team/demo", "--public", "--yes"])
    assert refused.exit_code == 2 and "a public model needs a licence" in refused.stderr and len(hub.calls) == 2
