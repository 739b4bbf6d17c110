"""Options and ``--set`` of the commands on files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.cli.files.commands import refused

SERVER = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nothing.jsonl", "-o", "s.parquet", "-m", "m0"], "there is no file or folder 'nothing.jsonl'"),
        (["generate", "prompts.jsonl", "-o", "s.parquet"], "no trained model is named"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--endpoint", SERVER], "served_model=null asks no server"),
        (
            ["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--endpoint", SERVER, "--served-model", "x"],
            "either a model responds or a server does",
        ),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "-m", "m0", "--set", "records.stage=x"], "the command itself sets records"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "--set", "model.sorce=m0"], "model.sorce: unknown key; did you mean 'source'"),
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
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "implicit", "--model", "m0"], "--judge implicit --model POLICY"),
        (
            ["judge", "data.parquet", "-o", "s.parquet", "--judge", "implicit", "--reference", "m0", "--set", "model.sorce=m0"],
            "the options: model.sorce: unknown key; did you mean 'source'",
        ),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "gold", "--endpoint", SERVER], "judge.kind=gold asks no server"),
        (["generate", "prompts.jsonl", "-o", "s.parquet", "--endpoint", SERVER], "served_model=null asks no server"),
        (
            ["judge", "data.parquet", "-o", "s.parquet", "--judge", "llm", "--model", "x"],
            "llm asks a server: give its address in execution.endpoint.url",
        ),
        (["judge", "data.parquet", "-o", "s.parquet", "--judge", "gold", "--against", "data.parquet"], "needs an llm judge and a file"),
    ],
)
def test_mistakes_are_named_with_a_remedy_and_nothing_is_written(arguments: list[str], message: str, home: Path) -> None:
    before = {path: path.stat().st_mtime for path in home.iterdir()}
    assert message in refused(*arguments)
    assert {path: path.stat().st_mtime for path in home.iterdir() if path.name != "home"} == before
