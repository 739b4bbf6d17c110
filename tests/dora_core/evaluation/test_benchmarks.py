"""Benchmarks by lm-eval: files of tasks, the choice of a score, paired changes; with lm-eval, a task of two questions."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from dora_core.config.benchmarks import BenchmarksConfig
from dora_core.errors import ConfigError
from dora_core.evaluation.benchmarks import changes, check_installed, main_metric, read_scores, run_tasks, task_files

TASK = """
task: toy
include: base.yaml
dataset_path: json
dataset_kwargs: {data_files: {test: toy.jsonl, train: [toy.jsonl]}}
process_docs: !function helpers.docs
"""
BASE = """
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}} Answer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 2.0}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"question": "one?", "choices": ["yes", "no"], "answer": 0}, {"question": "two?", "choices": ["yes", "no"], "answer": 1}]
    (tmp_path / "toy.yaml").write_text(TASK)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "helpers.py").write_text("def docs(rows):\n    return rows\n")
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_task_depends_on_all_its_files(folder: Path) -> None:
    assert sorted(path.name for path in task_files(str(folder / "toy.yaml"))) == ["base.yaml", "helpers.py", "toy.jsonl", "toy.yaml"]


@pytest.mark.parametrize(
    ("gone", "named"), [("toy.yaml", "no file"), ("toy.jsonl", "toy.jsonl"), ("base.yaml", "base.yaml"), ("helpers.py", "helpers.py")]
)
def test_a_missing_file_is_named(folder: Path, gone: str, named: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(ConfigError, match=named):
        task_files(str(folder / "toy.yaml"))


def test_a_file_that_is_no_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="no key `task`"):
        task_files(str(tmp_path / "list.yaml"))


def test_the_score_is_the_preferred_metric_of_which_higher_is_better() -> None:
    assert main_metric({"acc": True, "acc_norm": True}) == "acc_norm"
    assert main_metric({"perplexity": False, "inst_level": True}) == "inst_level"
    with pytest.raises(ConfigError, match="perplexity"):
        main_metric({"perplexity": False})


def test_marks_are_read_in_the_order_of_examples_and_of_one_filter() -> None:
    """Three examples, 1 0 1 by the first filter: mean 2/3."""
    samples = [
        {"doc_id": i, "filter": f, "exact_match": m}
        for f, ms in {"strict": (1.0, 0.0, 1.0), "loose": (1.0,) * 3}.items()
        for i, m in enumerate(ms)
    ]
    found = {
        "samples": {"gsm": samples[2::-1] + samples[3:]},
        "results": {"gsm": {"alias": "gsm", "exact_match,strict": 2 / 3, "exact_match_stderr,strict": 0.1, "f1,strict": 0.25}},
        "higher_is_better": {"gsm": {"exact_match": True}},
        "n-shot": {"gsm": 5},
        "versions": {"gsm": 3.0},
    }
    scores, marks = read_scores(found, seed=0)
    assert marks["gsm"].tolist() == [1.0, 0.0, 1.0]
    assert scores["gsm"].value.value == pytest.approx(2 / 3) and scores["gsm"].value.n == 3
    assert (scores["gsm"].metric, scores["gsm"].shots, scores["gsm"].version, scores["gsm"].others) == (
        "exact_match",
        5,
        "3.0",
        {"f1": 0.25},
    )


def test_changes_are_paired() -> None:
    """100 examples, both right in 50, one lost: −.01. Resamples of the differences lie in [−.05, 0]; independent ones would span ± .14."""
    start = np.repeat([1.0, 0.0], 50)
    policy = start.copy()
    policy[0] = 0.0
    change = changes({"toy": policy, "only here": policy}, {"toy": start}, seed=0)
    assert list(change) == ["toy"]
    assert change["toy"].value == pytest.approx(-0.01) and -0.05 <= change["toy"].low < 0.0 == change["toy"].high
    with pytest.raises(ValueError, match="100 examples of the policy, 99"):
        changes({"toy": policy}, {"toy": start[1:]}, seed=0)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_command_that_installs_it_is_given() -> None:
    with pytest.raises(ConfigError) as refusal:
        check_installed()
    assert "dora-realign[eval]" in str(refusal.value.hint)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (extra `eval`)")
def test_a_policy_is_asked_wherever_it_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy, tokenizer) -> None:
    import torch

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = BenchmarksConfig(tasks=[str(folder / "toy.yaml")])
    scores, marks = run_tasks(policy, tokenizer, config, device=torch.device("cpu"))
    assert scores["toy"].metric == "acc" and scores["toy"].value.n == 2 and set(marks["toy"]) <= {0.0, 1.0}
    assert run_tasks(policy, tokenizer, config, device=torch.device("cpu"))[1]["toy"].tolist() == marks["toy"].tolist()
    with pytest.raises(ConfigError, match="knows no task 'no_such_task'"):
        run_tasks(policy, tokenizer, BenchmarksConfig(tasks=["no_such_task"]), device=torch.device("cpu"))
