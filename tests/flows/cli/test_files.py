"""`dora generate`, `dora judge` and `dora evaluate` on files: real models, a real server on loopback, one process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from typer.testing import CliRunner

from dora_core.config.method import EvaluateConfig, ModelConfig
from dora_core.errors import ConfigError, DataError
from dora_core.models.loading import build_policy, save_model, train_tokenizer
from dora_core.testbed.mixture import Testbed, TestbedConfig
from flows.cli import app, file_commands
from flows.cli.file_comparison import compare_files
from flows.cli.file_tables import read_rows
from infra.store.store import Store
from tests.endpoint_server import EndpointServer, Reply

TINY = ModelConfig(hidden_size=32, layers=1, heads=2, vocab_size=400)
MIXTURE = TestbedConfig(prompts=8, responses_per_prompt=3)
GENERATE = ["-n", "3", "--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``prompts.jsonl``, ``data.parquet`` (preference data of the same prompts), policies ``m0`` and ``m1``, a reward model ``rm``."""
    folder = tmp_path_factory.mktemp("files")
    rows = Testbed(MIXTURE).generate()
    write(folder / "prompts.jsonl", [{"prompt": row["prompt"], "id": row["id"], "task": row["id"][-1]} for row in rows])
    Testbed(MIXTURE).write(folder / "data.parquet")
    tokenizer = train_tokenizer([text for row in rows for text in (row["prompt"], *row["responses"])], TINY.vocab_size)
    for i in range(2):
        torch.manual_seed(i)
        save_model(build_policy(TINY, tokenizer, 128), tokenizer, folder / f"m{i}")
    reward = transformers.LlamaConfig.from_pretrained(folder / "m0", num_labels=1)
    save_model(transformers.LlamaForSequenceClassification(reward), tokenizer, folder / "rm")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """Where a test writes; the working folder, so that paths are short."""
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    with mock.patch.dict(os.environ):  # a command sets the environment of its process
        yield tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str) -> dict[str, Any]:
    """A command's JSON document."""
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str) -> str:
    """The error of a command that must be corrected by its user."""
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 2, done.output
    assert "hint: " in done.stderr
    return done.stderr


def finished_at(home: Path) -> dict[str, float]:
    """When each stage of the store was computed."""
    store = Store(str(home / "home" / "store"))
    return {f"{s}/{d}": store.read_result(s, d)["started"] for s in store.list("") for d in store.list(s) if store.read_result(s, d)}


# ------------------------------------------------------------------------------------------------------------ the whole way


def test_generate_judge_evaluate_and_again_from_the_store(home: Path) -> None:
    def everything() -> list[dict[str, Any]]:
        done = [
            run("generate", "prompts.jsonl", "-o", f"s{i}.{kind}", "-m", f"m{i}", *GENERATE) for i, kind in enumerate(("parquet", "jsonl"))
        ]
        gold = ["--judge", "gold", "--set", "judge.testbed.prompts=8"]
        done += [run("judge", f"s{i}.{kind}", "-o", f"j{i}.{kind}", *gold) for i, kind in enumerate(("parquet", "jsonl"))]
        return done

    first = everything()
    before, files = finished_at(home), {name: Path(name).read_bytes() for name in ("s0.parquet", "s1.jsonl", "j0.parquet", "j1.jsonl")}
    assert len(before) == 2 + 1 + 2 + 2, "prompts once, responses twice, samples twice, scores twice"
    assert everything() == first
    assert finished_at(home) == before
    assert {name: Path(name).read_bytes() for name in files} == files

    testbed, prompts = Testbed(MIXTURE), [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]
    for name in ("j0.parquet", "j1.jsonl"):
        rows = read_rows(name).to_pylist()
        assert [(r["record_id"], r["prompt"], r["task"], r["sample"]) for r in rows] == [
            (p["id"], p["prompt"], p["task"], s) for p in prompts for s in range(3)
        ]
        assert [r["score"] for r in rows] == [testbed.gold_reward(r["prompt"], r["response"]) for r in rows]
        assert list(rows[0]) == ["prompt", "record_id", "sample", "response", "tokens", "finished", "task", "score", "judge"]
        assert all(r["tokens"] == 12 or r["finished"] for r in rows)

    facts = compare_files(Path("j0.parquet"), Path("j1.jsonl"), EvaluateConfig())
    found = facts["wins"]["j1.jsonl"]
    assert found["records"] == 8
    assert found["length"]["unit"] == "tokens"
    assert found["by_task"].keys() == {p["task"] for p in prompts}
    assert facts["judge"] == read_rows("j0.parquet")["judge"][0].as_py()


def test_win_rate_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompt a: 2 · 2 pairs, 3 wins and a tie; b: one loss; c: only ours. A prompt counts the same as a string and as a message."""
    ours = [("a", 2.0), ("a", 1.0), ("b", 0.0), ("c", 9.0)]
    theirs = [("b", 5.0), ("a", 1.0), ("a", 0.5), ("b", None)]
    write(tmp_path / "ours.jsonl", [{"prompt": p, "response": "x" * 4, "score": s} for p, s in ours])
    messages = [{"prompt": [{"role": "user", "content": p}], "response": "x" * 9, "score": s} for p, s in theirs]
    write(tmp_path / "theirs.jsonl", messages)
    facts = compare_files(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", EvaluateConfig())
    found = facts["wins"]["theirs.jsonl"]
    assert [found[kind]["value"] for kind in ("win", "tie", "lose", "win_rate")] == [0.375, 0.125, 0.5, 0.4375]
    assert (found["records"], found["records_left_out"], found["pairs_without_score"]) == (2, 1, 1)
    assert found["length"] == {"unit": "characters", "policy": 4.0, "opponent": 9.0}
    assert found["sign_test_p"] == 1.0

    report = tmp_path / "new" / "report.md"
    for as_json in (True, False):
        file_commands.evaluate(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", ["bootstrap_samples=200"], report, as_json)
    document, end = json.JSONDecoder().raw_decode(printed := capsys.readouterr().out)
    assert document["wins"]["theirs.jsonl"]["win_rate"]["value"] == 0.4375
    assert "37.5%  12.5%  50.0%" in printed[end:]
    assert "| all | 37.5% | 12.5% | 50.0% |" in report.read_text()
    with pytest.raises(ConfigError, match="bootstrap_sample"):
        file_commands.evaluate(tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl", ["bootstrap_sample=200"], None, False)


# -------------------------------------------------------------------------------------------------------------- other judges


def test_preference_data_under_the_implicit_judge_is_a_row_per_response(home: Path) -> None:
    pair = ["--judge", "implicit", "--model", "m0", "--reference"]
    done = run("judge", "data.parquet", "-o", "same.parquet", *pair, "m0")
    data, rows = pq.read_table("data.parquet").to_pylist(), pq.read_table("same.parquet").to_pylist()
    assert [(r["prompt"], r["record_id"], r["response"]) for r in rows] == [(d["prompt"], d["id"], y) for d in data for y in d["responses"]]
    assert done["rows"] == 24
    assert {r["score"] for r in rows} == {0.0}, "a policy beside itself"
    run("judge", "data.parquet", "-o", "other.parquet", *pair, "m1")
    other = pq.read_table("other.parquet")
    assert len(set(other["score"].to_pylist())) == 24
    assert set(other["judge"].to_pylist()).isdisjoint({r["judge"] for r in rows})
    with pytest.raises(DataError, match="the scores come from different judges"):
        compare_files(Path("same.parquet"), Path("other.parquet"), EvaluateConfig())


def test_a_reward_model_scores_the_rows_of_a_file_where_they_are(home: Path) -> None:
    rows = [{"answer": f"word {i % 2}", "prompt": "abc"[i % 3], "score": "old", "extra": i} for i in range(6)]
    write(home / "r.jsonl", rows)
    command = ["judge", "r.jsonl", "--judge", "reward_model", "--model", "rm", "--column", "response=answer"]
    done = run(*command, "-o", "scored.jsonl")
    scored = read_rows("scored.jsonl").to_pylist()
    assert [row | {"score": "old"} for row in scored] == [row | {"judge": scored[0]["judge"]} for row in rows]
    assert scored[0]["judge"].startswith("reward_model ")
    assert len({row["score"] for row in scored}) == 6
    assert done["metrics"]["mean_score"] == pytest.approx(sum(row["score"] for row in scored) / 6)
    write(home / "swapped.jsonl", rows[::-1])
    run(command[0], "swapped.jsonl", *command[2:], "-o", "back.jsonl")
    assert [row["score"] for row in read_rows("back.jsonl").to_pylist()] == pytest.approx([row["score"] for row in scored[::-1]])


def test_a_server_responds_and_another_judges_against_a_file(home: Path) -> None:
    def prefers_ours(body: dict[str, Any]) -> str:
        """A verdict, by the texts themselves."""
        text = body["messages"][-1]["content"]
        return "A" if text.find("ours") < text.find("theirs") else "B"

    with EndpointServer(lambda body: Reply(f"ours {body['seed']}", tokens=2)) as server:
        asked = ["--endpoint", server.url, "--served-model", "served"]
        run("generate", "prompts.jsonl", "-o", "ours.parquet", "-n", "2", *asked)
        run("generate", "prompts.jsonl", "-o", "again.parquet", "-n", "2", *asked)
        assert len(server.bodies) == 16, "nothing is asked twice"
    rows = pq.read_table("ours.parquet").to_pylist()
    assert len({r["response"] for r in rows}) == 16
    assert {(r["tokens"], r["finished"]) for r in rows} == {(2, True)}
    write(home / "theirs.jsonl", [{"prompt": r["prompt"], "response": "theirs"} for r in rows[::2]])
    with EndpointServer(prefers_ours) as server:
        judged = ["--judge", "llm", "--model", "served", "--endpoint", server.url]
        run("judge", "ours.parquet", "-o", "scored.parquet", *judged, "--against", "theirs.jsonl")
        run("judge", "theirs.jsonl", "-o", "baseline.jsonl", *judged, "--against", "theirs.jsonl")
        run("judge", "ours.parquet", "-o", "each.parquet", *judged)
    assert set(pq.read_table("scored.parquet")["score"].to_pylist()) == {1.0}
    assert {row["score"] for row in read_rows("baseline.jsonl").to_pylist()} == {0.5}, "equal texts are ties"
    facts = compare_files(Path("scored.parquet"), Path("baseline.jsonl"), EvaluateConfig())
    assert facts["wins"]["baseline.jsonl"]["win"]["value"] == 1.0
    with pytest.raises(DataError, match="responses of one file with each other"):
        compare_files(Path("each.parquet"), Path("each.parquet"), EvaluateConfig())


@pytest.mark.component
def test_workers_on_ray_write_the_same_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", "prompts.jsonl", "-m", "m0", *GENERATE]
    run(*command, "-o", "here.parquet")
    monkeypatch.setenv("DORA_HOME", str(home / "other"))
    run(*command, "-o", "ray.parquet", "--workers", "1")
    assert Path("ray.parquet").read_bytes() == Path("here.parquet").read_bytes()
    assert not any((home / "other" / "ray").iterdir()), "the command's own head has ended"


# --------------------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nothing.jsonl", "-o", "s.parquet", "-m", "m0"], "there is no file or folder 'nothing.jsonl'"),
        (["generate", "prompts.jsonl", "-o", "s.parquet"], "either a model responds or a server does"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--endpoint", "http://127.0.0.1:9/v1"], "either a model responds"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "tiny"], "no trained model is named"),
        (["generate", "prompts.jsonl", "-o", "s.csv", "-m", "m0"], "cannot tell the format of the output s.csv"),
        (["generate", "prompts.jsonl", "-o", "prompts.jsonl/s.parquet", "-m", "m0"], "cannot write prompts.jsonl/s.parquet"),
        (["generate", "prompts.jsonl", "-o", "prompts.jsonl", "-m", "m0"], "prompts.jsonl exists and holds something else"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--column", "promt=task"], "did you mean 'prompt'"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--column", "prompt=text"], "no column 'text'"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--set", "generate.sample=3"], "generate.sample"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "-n", "0"], "generate.samples: must be at least 1"),
        (["judge", "prompts.jsonl", "-o", "s.parquet", "--judge", "gold"], "neither a column 'response'"),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "gold", "--model", "m0"], "the gold judge takes no policy"),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "reward_model"], "no trained model is named"),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "implicit", "--model", "m0"], "the implicit judge needs --model"),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "llm", "--model", "x"], "the llm judge needs --endpoint"),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "gold", "--against", "data.parquet"], "needs an llm judge and a file"),
    ],
)
def test_mistakes_are_named_with_a_remedy_and_nothing_is_written(arguments: list[str], message: str, home: Path) -> None:
    before = {path: path.stat().st_mtime for path in home.iterdir()}
    assert message in refused(*arguments)
    assert {path: path.stat().st_mtime for path in home.iterdir() if path.name != "home"} == before


def test_another_result_replaces_a_file_only_when_asked(home: Path) -> None:
    command = ["judge", "data.parquet", "-o", "s.jsonl", "--judge", "gold", "--set", "judge.testbed.prompts=8"]
    run(*command)
    first = Path("s.jsonl").read_bytes()
    Path("s.jsonl").write_text("other\n")
    assert "s.jsonl exists and holds something else" in refused(*command)
    assert Path("s.jsonl").read_text() == "other\n"
    run(*command, "--overwrite")
    assert Path("s.jsonl").read_bytes() == first


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    scored = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "r", "score": 1.0}])
    cases = {
        "cannot read": tmp_path / "nothing.jsonl",
        "has no column 'score'": write(tmp_path / "b.jsonl", [{"prompt": "a", "response": "r", "scores": 1.0}]),
        "has no column 'response'": write(tmp_path / "c.jsonl", [{"prompt": "a", "score": 1.0}]),
        "neither `prompt` nor `record_id`": write(tmp_path / "d.jsonl", [{"record_id": "a", "response": "r", "score": 1.0}]),
        "to the same prompt": write(tmp_path / "e.jsonl", [{"prompt": "b", "response": "r", "score": 1.0}]),
        "a score is no number": write(tmp_path / "f.jsonl", [{"prompt": "a", "response": "r", "score": "good"}]),
    }
    for message, other in cases.items():
        with pytest.raises(DataError, match=message) as caught:
            compare_files(scored, other, EvaluateConfig())
        assert caught.value.hint
