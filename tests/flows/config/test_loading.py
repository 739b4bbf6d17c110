"""Configuration mistakes, through the real command line: one clear message each, with the place and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dora_core.errors import ConfigError
from flows.cli import app
from flows.config.loading import load_config
from flows.config.models import RealignConfig, SelfTrainConfig, StudyConfig

DATA = "data: {train: [{path: data.parquet}]}\n"


@pytest.fixture
def folder(tmp_path: Path, mixture: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data.parquet").symlink_to(mixture)
    pairs = {"prompt": ["Why?"], "chosen": ["Because."], "rejected": ["No."]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    monkeypatch.setenv("DORA_HOME", str(tmp_path / "home"))
    return tmp_path


# (text of the file, what the message must name, the remedy it must offer)
MISTAKES: dict[str, tuple[str, str, str]] = {
    "wrong type": (DATA + "sft: {optimization: {batch_size: many}}", "sft.optimization.batch_size: must be a whole number", '(got "many")'),
    "number as text": (DATA + 'sft: {optimization: {epochs: "3"}}', "sft.optimization.epochs: must be a number", '(got "3")'),
    "fraction for a count": (DATA + "align: {max_responses: 2.5}", "align.max_responses: must be a whole number", "(got 2.5)"),
    "text for a switch": (DATA + "sft: {enabled: yes}", "sft.enabled: must be true or false", '(got "yes")'),
    "value for a section": (DATA + "calibration: mixture", "calibration: must be a section with keys", '(got "mixture")'),
    "null for a section": (DATA + "gate:", "gate: must be a section with keys", "(got null)"),
    "unknown section": (DATA + "algin: {}", "algin: unknown key", "did you mean 'align'?"),
    "unknown key": (
        DATA + "align: {optimization: {lerning_rate: 1.0}}",
        "align.optimization.lerning_rate: unknown key",
        "did you mean 'learning_rate'?",
    ),
    "key on the wrong level": (
        DATA + "align: {lambda: 1.0}",
        "align.lambda: unknown key",
        "allowed: drop_hardest, label_probability, loss, max_responses, objective, optimization",
    ),
    "unknown stage": (DATA + "execution: {algn: {workers: 1}}", "execution.algn: unknown key", "did you mean 'align'?"),
    "missing file": ("data: {train: [{path: dta.parquet}]}", "data.train.0.path: no such file or folder", "did you mean 'data.parquet'?"),
    "unknown judge": (DATA + "compare: {judge: {kind: gld}}", "compare.judge.kind: must be one of: gold", "did you mean 'gold'?"),
    "no kind of judge": (DATA + "compare: {judge: {}}", "compare.judge.kind: is required", "--dry-run"),
    "unknown key of a judge": (DATA + "compare: {judge: {kind: llm, modl: x}}", "compare.judge.modl: unknown key", "'model'?"),
    "a judge without its server": (
        DATA + "compare: {judge: {kind: llm, model: x, against: given}}",
        "compare.judge.kind=llm asks a server: give its address in execution.judge.endpoint.url",
        "execution.judge.endpoint.url",
    ),
    "scores that do not compare": (DATA + "compare: {judge: {kind: llm, model: x}}", "judge.against must be given", "another policy"),
    "a policy as its own judge": (DATA + "compare: {judge: {kind: implicit}}", "cannot compare policies", "use reward_model"),
    "an endpoint nobody asks": (
        DATA + "execution: {sft: {endpoint: {url: 'http://x/v1'}}}",
        "sft.endpoint: only execution.generate",
        "judge",
    ),
    "missing folder": ("data: {train: [{path: ./gone/data.parquet}]}", "data.train.0.path: no such file or folder", "does not exist"),
    "missing golden file": (DATA[:-2] + ", golden: [{path: g.jsonl}]}", "data.golden.0.path: no such file or folder", "in that folder:"),
    "no data": ("project: x", "data: is required", "Preference data"),
    "no train data": ("data: {train: []}", "data.train: must have at least 1 item", "(got [])"),
    "no path": (
        "data: {train: [{}]}",
        "data.train.0.path: is required",
        "JSONL file (.jsonl, .ndjson), Parquet file (.parquet, .pq), SQLite database (.sqlite, .sqlite3, .db), folder of files",
    ),
    "lambda not positive": (DATA + "align: {objective: {lambda: -1}}", "align.objective.lambda: must be greater than 0", "one of: auto"),
    "lambda zero": (DATA + "align: {objective: {lambda: 0}}", "align.objective.lambda: must be greater than 0", "one of: auto"),
    "schedule": (DATA + "align: {objective: {lambda: {start: 1, ende: 2}}}", "lambda.ende: unknown key", "did you mean 'end'?"),
    "unknown objective": (DATA + "align: {objective: {name: dorra}}", "align.objective.name: unknown objective", "did you mean 'dora'?"),
    "unknown loss": (DATA + "align: {loss: {name: dppo}}", "align.loss: unknown loss 'dppo'", "did you mean 'dpo'?"),
    "unknown loss parameter": (DATA + "align: {loss: {name: dpo, bta: 0.1}}", "align.loss.bta: unknown key", "did you mean 'beta'?"),
    "bad loss parameter": (DATA + "align: {loss: {name: dpo, beta: -0.1}}", "align.loss.beta: must be greater than 0", "(got -0.1)"),
    "unknown part of a loss": (
        DATA + "align: {loss: {name: mpo, parts: [{loss: dppo}]}}",
        "align.loss.parts.0.loss: unknown loss 'dppo'",
        "did you mean 'dpo'?",
    ),
    "unknown parameter of a part": (
        DATA + "align: {loss: {name: mpo, parts: [{loss: {name: dpo, bta: 1.0}}]}}",
        "align.loss.parts.0.loss.bta: unknown key",
        "did you mean 'beta'?",
    ),
    "bad base of a loss": (DATA + "align: {loss: {name: lcpo, base: lire}}", "align.loss.base: must be a loss on pairs", "lire has no"),
    "loss without a name": (DATA + "align: {loss: {beta: 0.1}}", "align.loss: a loss is a name or a mapping with `name`", "allowed: "),
    "pairwise without sources": ("data: {train: [{path: pairs.parquet}]}", "data.train[0]", "chosen_source"),
    "mapped column not there": ("data: {train: [{path: data.parquet, columns: {prompt: question}}]}", "question", "prompt"),
    "heads do not divide": (DATA + "policy: {heads: 3}", "policy: heads=3", "must divide hidden_size=128"),
    "tiny without sft": (DATA + "sft: {enabled: false}", "needs a supervised start", "set sft.enabled=true or name a model"),
    "fraction above one": (DATA[:-2] + ", max_bad_fraction: 1.5}", "data.max_bad_fraction: must be at most 1", "(got 1.5)"),
    "negative learning rate": (
        DATA + "align: {optimization: {learning_rate: -1e-3}}",
        "learning_rate: must be greater than 0",
        "(got -0.001)",
    ),
    "not a number": (DATA + "classifier: {epochs: .nan}", "classifier.epochs: must be", "(got NaN)"),
    "code without revision": (
        DATA + "policy: {source: a/b, trust_remote_code: true}",
        "policy: trust_remote_code needs `revision`",
        "40 hex digits",
    ),
    "branch as revision": (
        DATA + "policy: {source: a/b, revision: main}",
        "policy.revision: must be a commit: 40 hex digits",
        '(got "main")',
    ),
    "model folder missing": (DATA + "policy: {source: ./model}", "policy.source: no such file or folder", "in that folder:"),
    "temper above one": (DATA + "calibration: {temper: 1.5}", "calibration: temper=1.5", "must lie in [0, 1] or be 'auto'"),
    "temper a word": (DATA + "calibration: {temper: some}", "calibration.temper: must be a number or one of: auto", '(got "some")'),
    "cap below the median": (DATA + "calibration: {cap_quantile: 0.2}", "calibration.cap_quantile: must be greater than 0.5", "(got 0.2)"),
    "shares do not sum": (DATA + "calibration: {shares: {human: 0.3, lm: 0.3}}", "calibration: shares must sum to 1", "0.6"),
    "share a word": (DATA + "calibration: {shares: {human: most}}", "calibration.shares.human: must be a number", '(got "most")'),
    "holdout too large": (DATA[:-2] + ", holdout_fraction: 0.9}", "data.holdout_fraction: must be at most 0.5", "(got 0.9)"),
    "nobody trusted": (DATA[:-2] + ", golden_sources: []}", "data.golden_sources: must have at least 1 item", "(got [])"),
    "bad project name": (DATA + "project: My Project", "project: must be 1 to 64 lower-case letters", '(got "My Project")'),
    "negative workers": (DATA + "execution: {align: {workers: -1}}", "execution.align.workers: must be at least 0", "(got -1)"),
    "width not divisible": (DATA + "policy: {hidden_size: 100}", "policy.hidden_size: must be a multiple of 16", "(got 100)"),
    "syntax error": ("data: {train: [", "line 1 is not valid YAML", "bracket"),
    "tab": ("data:\n\ttrain: []", "line 2 is not valid YAML", "a tab"),
    "control character": ("project: a\x00b", "is not valid YAML", "UTF-8"),
    "empty file": ("", "is empty", "infra/configs/demo.yaml"),
    "only a comment": ("# later", "is empty", "infra/configs/demo.yaml"),
    "list at the top": ("- data", "must be a mapping of sections at the top, not a list", "sections: project, text"),
    "duplicate key": (DATA + "project: a\nproject: b", "line 3: project is given twice (first on line 2)", "keep one of them"),
    "alias in itself": ("data: &a [*a]", "an alias contains itself", "write the section out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_message_with_place_and_remedy(name: str, folder: Path) -> None:
    text, place, remedy = MISTAKES[name]
    (folder / "c.yaml").write_text(text)
    done = CliRunner().invoke(app, ["realign", "-c", str(folder / "c.yaml"), "--dry-run"])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1 and done.stderr.count("hint: ") == 1
    assert place in done.stderr and remedy in done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "pydantic", "Input should", "Value error", "type="))


OVERRIDES: dict[str, tuple[str, str, str]] = {
    "no value": ("align.objective.lambda", "expected key.path=value", "--set align.objective.lambda=2.0"),
    "empty part": ("align..lambda=1", "expected key.path=value", "--set align.objective.lambda=2.0"),
    "unknown": ("align.objctive.lambda=1", "align.objctive: unknown key", "did you mean 'objective'?"),
    "bad value": ("align.objective.lambda=high", "align.objective.lambda: must be a number or", '(got "high")'),
    "bad index": ("data.train.7.path=x", "data.train is a list of 1, it has no item '7'", "from 0 to 1"),
    "name for an index": ("data.train.path=x", "data.train is a list of 1, it has no item 'path'", "from 0 to 1"),
    "below a value": ("project.name=x", "project is a single value ('p'), it has no key 'name'", "use --set project=VALUE"),
    "syntax": ("project=[", "--set project line 1 is not valid YAML", "bracket"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_mistake_on_the_command_line(name: str, folder: Path) -> None:
    assignment, place, remedy = OVERRIDES[name]
    (folder / "c.yaml").write_text(DATA + "project: p\n")
    done = CliRunner().invoke(app, ["realign", "-c", str(folder / "c.yaml"), "--dry-run", "--set", assignment])
    assert done.exit_code == 2
    assert place in done.stderr and remedy in done.stderr


def test_a_whole_section_can_be_set(folder: Path) -> None:
    (folder / "c.yaml").write_text(DATA)
    config = load_config(folder / "c.yaml", ["project=other", "align.objective={name: dro, lambda: 2}"])
    assert config.project == "other" and config.align.objective.lam == 2.0


def test_all_mistakes_are_told_at_once_with_their_lines(folder: Path) -> None:
    (folder / "c.yaml").write_text(DATA + "align:\n  objective:\n    lambda: 0\n  loss: {name: dppo}\npolicy:\n  heads: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "c.yaml")
    headline, *lines = caught.value.message.splitlines()
    assert headline == "c.yaml has 3 mistakes:"
    assert sorted(line.rsplit("[", 1)[1] for line in lines) == ["line 4]", "line 5]", "line 6]"]


def test_missing_configuration_file_names_its_neighbour(folder: Path) -> None:
    (folder / "mixture.yaml").write_text(DATA)
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "mixtur.yaml")
    assert "mixture.yaml" in caught.value.hint


def test_json_carries_the_error(folder: Path) -> None:
    (folder / "c.yaml").write_text("")
    done = CliRunner().invoke(app, ["realign", "-c", str(folder / "c.yaml"), "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["type"] == "ConfigError"


def test_overrides_and_scalars(folder: Path) -> None:
    (folder / "c.yaml").write_text(
        DATA + "project: 2024.yes\nalign: {objective: {lambda: 2}}\nsft: {optimization: {learning_rate: 1e-3}}\n"
    )
    config = load_config(
        folder / "c.yaml",
        ["align.loss.name=lire", "data.train.1.path=data.parquet", "data.train.1.source=other", "align.optimization.lora={rank: 4}"],
    )
    assert config.align.objective.lam == 2.0
    assert config.sft.optimization.learning_rate == 1e-3
    assert config.align.loss.name == "lire"
    assert config.align.optimization.lora is not None and config.align.optimization.lora.rank == 4
    assert [s.source for s in config.data.train] == [None, "other"]


@pytest.mark.parametrize("key", ["align.optimization.seed", "classifier.seed", "data.train.0.max_rows"])
def test_a_whole_number_beyond_what_json_carries_is_refused(folder: Path, key: str) -> None:
    (folder / "c.yaml").write_text(DATA)
    assert load_config(folder / "c.yaml", [f"{key}=20251130093000"]), "a date"
    assert load_config(folder / "c.yaml", [f"{key}={2**53 - 1}"])
    for number in (2**53, 2**64, 10**50):
        with pytest.raises(ConfigError, match=rf"{key}: must be at most 9007199254740991"):
            load_config(folder / "c.yaml", [f"{key}={number}"])


def test_relative_paths_belong_to_the_file_and_names_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model").mkdir()
    (folder / "c.yaml").write_text(DATA + "policy: {source: model}\nclassifier: {encoder: {source: org/encoder}}\n")
    monkeypatch.chdir("/")
    config = load_config(folder / "c.yaml", ["data.golden=[{path: org/dataset}]"])
    assert config.policy.source == str((folder / "model").resolve())
    assert config.classifier.encoder.source == "org/encoder"
    assert config.data.golden[0].path == "org/dataset"
    assert Path(config.data.train[0].path).is_absolute()


MODELS = {"study": StudyConfig, "self": SelfTrainConfig}
EXAMPLES = sorted((Path(__file__).parents[3] / "infra" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_example_configurations_are_valid(example: Path, tmp_path: Path) -> None:
    """Copied beside stand-ins for the data files they name."""
    (tmp_path / example.name).write_text(example.read_text())
    for name in ("data.parquet", "golden.parquet", "mixture.parquet", "preferences.parquet", "human-demonstrations.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "smollm2").mkdir()
    assert load_config(tmp_path / example.name, model=MODELS.get(example.stem.partition("-")[0], RealignConfig)).project


def test_every_path_of_the_data_is_relative_to_the_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "c.yaml").write_text(
        "data: {train: [{path: [a.jsonl, b.jsonl]}, {path: 'more/*.jsonl'}], eval: [{path: c.jsonl}], decontaminate: [d.jsonl]}\n"
    )
    data = load_config(tmp_path / "c.yaml").data
    here = str(tmp_path.resolve())
    assert [source.path for source in data.train] == [[f"{here}/a.jsonl", f"{here}/b.jsonl"], f"{here}/more/*.jsonl"]
    assert [source.path for source in data.eval] == [f"{here}/c.jsonl"] and data.decontaminate == [f"{here}/d.jsonl"]
    (tmp_path / "c.yaml").write_text("data: {train: [{path: [a.jsonl, x.jsonl]}], eval: [{path: y.jsonl}], decontaminate: [z.jsonl]}\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "c.yaml")
    assert [key in error.value.message for key in ("data.train.0.path.1", "data.eval.0.path", "data.decontaminate.0")] == [True] * 3
