"""Whatever a configuration, a ``--set`` or a form says: a valid configuration, or one block of plain words with the place. No traceback."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from dora_core.errors import ConfigError
from flows.cli import app
from flows.config.loading import MAX_BYTES, packaged, parse_config
from flows.config.models import MethodConfig, RealignConfig, SelfTrainConfig, StudyConfig
from flows.config.yaml_text import MAX_DEPTH, parse_override, read_yaml
from flows.deployment.forms import Data, Grid, Method, Promotion, Rounds, Section, Training, configure

LONG = pytest.param(500, marks=pytest.mark.chaos, id="long")
EXAMPLES: dict[str, type[MethodConfig]] = {
    "listwise": RealignConfig,
    "llama-8b-8gpu": RealignConfig,
    "self-train": SelfTrainConfig,
    "study-quick": StudyConfig,
}
NOWHERE = Path("/nowhere")
TECHNICAL = re.compile(r"Input should|validation error|\[type=|pydantic|Traceback|[iI]nvalid JSON|unable to parse|Error\(")


def check(text: str, overrides: list[str], model: type[MethodConfig]) -> None:
    try:
        config = parse_config(text, [parse_override(each) for each in overrides], model, place="my.yaml", folder=NOWHERE)
    except ConfigError as error:
        readable(error, ("my.yaml", "--set"))
    else:
        json.dumps(config.model_dump(mode="python"), allow_nan=False, default=str)  # what a digest is made of


def readable(error: ConfigError, places: tuple[str, ...]) -> None:
    """One block a person can act on."""
    assert error.message.startswith(places) and error.hint
    assert not TECHNICAL.search(str(error)), str(error)
    assert len(str(error)) < 10_000 and str(error).encode()


# --------------------------------------------------------------------------------------------------------- odd values

NUMBERS = [0, 1, -1, 2.5, -0.0, 5e-324, 1e308, 2**63, 10**300, float("nan"), float("inf"), -float("inf")]
TEXTS = [
    "",
    " ",
    "x",
    "auto",
    "1",
    "true",
    "\0",
    "a\0b",
    "../x",
    "./x",
    "~nobody/x",
    "/" * 300,
    "x" * 5000,
    "2026-02-30",
    "é😀",
    "\x1b[31m",
]
TEXTS += ["s3://key:secret@bucket/x", "://", "tiny", "<<", "=", "$HOME", "{{ x }}"]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], [{}], {"": None}, {"name": "dpo"}, {"name": 5}, {"name": "dpo", "beta": "x"}]
OTHERS += [{"name": "simpo", "beta": 0.1}, {"kind": "llm"}, {"kind": []}, {"start": 1, "end": "x"}, [1, "a", None], ["a", "a"]]
ODD = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS]).map(copy.deepcopy) | st.text(max_size=8) | st.integers() | st.floats()
KEYS = st.sampled_from(["x", "", "name", "kind", "lambda", "0", "path", "source", "null"])


def whole(name: str) -> dict[str, Any]:
    """An example with every key that its model has."""
    config = parse_config(
        packaged(f"{name}.yaml"), [parse_override(each) for each in PATHS.get(name, [])], EXAMPLES[name], place=name, folder=NOWHERE
    )
    return json.loads(config.model_dump_json(by_alias=True))


HUB = "data.train.0.path=org/data"
PATHS = {"listwise": [HUB], "llama-8b-8gpu": [HUB, "data.golden=[]", "policy.source=org/model"], "self-train": [HUB]}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


@st.composite
def distorted(draw: st.DrawFn, start: dict[str, Any]) -> Any:
    """``start`` with one to three keys replaced, removed or added."""
    data: Any = copy.deepcopy(start)
    for _ in range(draw(st.integers(1, 3))):
        there = list(places(data))
        if not there:
            return draw(ODD)
        container, key = there[draw(st.integers(0, len(there) - 1))]
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(KEYS)] = draw(ODD)
            case _:
                container[key] = draw(ODD)
    return data


@pytest.mark.parametrize("examples", [pytest.param(25, id="quick"), LONG])
@pytest.mark.parametrize("name", EXAMPLES)
def test_values_that_do_not_belong_are_told_with_their_place(name: str, examples: int) -> None:
    @settings(max_examples=examples)
    @given(distorted(whole(name)))
    def attempt(data: Any) -> None:
        check(json.dumps(data) if examples < 100 else yaml.safe_dump(data), [], EXAMPLES[name])

    attempt()


# ----------------------------------------------------------------------------------------------------------- odd YAML

LAUGHS = "\n".join([f"a0: &a0 [{', '.join('x' * 9)}]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
SNIPPETS = [
    "x: !!python/object/apply:os.system ['touch pwned']", "x: !!python/object:os.system {}", "x: !!python/name:os.system", "x: !mine 3",
    "x: !!int foo", "x: !!int ''", "x: !!float foo", "x: !!bool maybe", "x: !!null y", "x: !!timestamp foo", "x: !!binary aGk=",
    "x: !!set {a}",
    "x: !!omap [a: 1]", "!!map [a]", "!!seq {a: b}", "!!str [a]", "%YAML 9.9\n---\na: b", "---\na: b\n---\nc: d", "x: &a [*a]", "x: *nope",
    "x: &a {<<: *a}", "<<: 3", "<<: [1]", "<<: &m {project: merged}", "project: y\nproject: z", "[a]: b", "? [a]\n: b", "? {a: b}\n: c",
    "1: 2", "null: x", ".nan: 3", "2026-01-01: x", "x: 2026-02-30", "=: 3", "x: =", "\t- a", "x: |\n\ty", "a: b: c", "x: 0x", "x: 1:2:99",
    "x: 0b2", "x: " + "9" * 5000, "x: 1e99999", "x: .inf", "x: .nan", "x: " + "[" * 400, "x: " + "{a: " * 400, "- " * 400, LAUGHS,
    "\0", "\x1b", "\ufeff", 'x: "\\ud800"', 'x: "\\x00"', "\u2028", *"'\"{}[]:-#&*!|>%@`,?", "data: {train: [{path: ~nobody/x.parquet}]}",
]  # fmt: skip


@pytest.mark.parametrize("model", [RealignConfig, StudyConfig])
def test_each_trick_of_yaml_alone_and_in_an_override(model: type[MethodConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for snippet in SNIPPETS:
        check(snippet, [], model)
        check("project: x", [f"{key}={snippet.removeprefix('x: ')}" for key in ("text", "policy.source")], model)
    assert not os.listdir(tmp_path), "a tag was executed"


@st.composite
def scribbled(draw: st.DrawFn, text: str) -> str:
    """``text`` with lines replaced, repeated, cut or interrupted."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at, snippet = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from(SNIPPETS) | st.text(max_size=5))
        column = draw(st.integers(0, len(lines[at])))
        lines[at] = draw(
            st.sampled_from(
                [
                    lines[at][:column] + snippet + lines[at][column:],
                    lines[at].partition(":")[0] + ": " + snippet.removeprefix("x: "),
                    lines[at] + "\n" + " " * (column % 5) + snippet,
                    lines[at][:column],
                    lines[at] + "\n" + lines[(at + column) % len(lines)],
                ]
            )
        )
    return "\n".join(lines)


@pytest.mark.parametrize("examples", [pytest.param(15, id="quick"), LONG])
@pytest.mark.parametrize("name", EXAMPLES)
def test_scribbles_in_an_example_are_told_with_their_line(name: str, examples: int) -> None:
    @settings(max_examples=examples)
    @given(scribbled(packaged(f"{name}.yaml")))
    def attempt(text: str) -> None:
        check(text, [], EXAMPLES[name])

    attempt()


WORDS = st.sampled_from(
    ["data", "train", "0", "1", "-1", "²", "9" * 30, "path", "align", "loss", "name", "<<", "", " ", "é", "x", "\udcff"]
)


@pytest.mark.parametrize("examples", [pytest.param(100, id="quick"), LONG])
def test_overrides_of_any_text(examples: int) -> None:
    values = st.sampled_from(SNIPPETS).map(lambda s: s.removeprefix("x: ")) | ODD.map(lambda v: json.dumps(v, ensure_ascii=False))
    paths = st.lists(WORDS, max_size=4).map(".".join)

    @settings(max_examples=examples)
    @given(st.lists(st.builds("{}={}".format, paths, values) | st.text(max_size=10), min_size=1, max_size=3))
    def attempt(overrides: list[str]) -> None:
        check("data: {train: [{path: org/data}]}", overrides, RealignConfig)

    attempt()


def test_one_character_that_json_escapes_in_two_halves_is_one() -> None:
    assert read_yaml(json.dumps({"😀": "😀"}), "x")[0] == {"😀": "😀"}


def test_a_section_may_be_nested_as_deep_as_any_configuration_needs() -> None:
    assert read_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")
    with pytest.raises(ConfigError, match=f"x line 1 is not valid YAML: it is nested more than {MAX_DEPTH} deep"):
        read_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "x")


def test_aliases_that_multiply_are_refused_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r"x line \d+: more than 100,000 values"):
        read_yaml(LAUGHS, "x")


# ----------------------------------------------------------------------------------------------------- odd files, on the command line

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "only comments": (b"# nothing\n", "is empty"),
    "Latin-1": ("project: caf\xe9".encode("latin-1"), "it is not UTF-8 text"),
    "UTF-16": ("project: x".encode("utf-16"), "it is not UTF-8 text"),
    "binary": (bytes(range(256)), "it is not UTF-8 text"),
    "NUL bytes": (b"\0" * 10, "is not valid YAML"),
    "a list": (b"- a\n- b\n", "must be a mapping"),
    "a text": (b"just text\n", "must be a mapping"),
    "a data file": (b'{"prompt": "x"}\n' * 70_000, f"more than the {MAX_BYTES:,} of a configuration"),
    "two documents": (b"a: b\n---\nc: d\n", "is not valid YAML"),
    "tabs": (b"data:\n\ttrain: []\n", "line 2"),
    "a tag": (b"project: !!python/object:os.system {}\n", "line 1 is not valid YAML: tag 'python/object:os.system'"),
    "laughs": (LAUGHS.encode(), "more than 100,000 values"),
}


def dora(*arguments: str) -> str:
    """What is printed to stderr, of a command that refuses its configuration."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    assert result.stderr.startswith("error: ") and "\nhint: " in result.stderr and not TECHNICAL.search(result.stderr)
    return result.stderr


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", ["realign", "study"])
def test_a_file_that_is_no_configuration(kind: str, command: str, tmp_path: Path) -> None:
    content, words = FILES[kind]
    (tmp_path / "c.yaml").write_bytes(content)
    assert words in dora(command, "-c", str(tmp_path / "c.yaml"), "--dry-run")


@pytest.mark.parametrize("name", [".", "gone.yaml", "x" * 300, "c.yaml/below", "\udcff.yaml"])
def test_a_path_to_no_configuration(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("project: x")
    assert "cannot read the configuration" in dora("realign", "-c", str(tmp_path / name), "--dry-run", "--json")


def test_an_order_mark_before_the_text_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfproject: x\n")
    assert "data: is required" in dora("realign", "-c", str(tmp_path / "c.yaml"), "--dry-run")


# ---------------------------------------------------------------------------------------------------------------- the form


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "method": Method,
    "training": Training,
    "promotion": Promotion,
    "rounds": Rounds,
    "grid": Grid,
}


@pytest.mark.parametrize("examples", [pytest.param(60, id="quick"), LONG])
def test_a_form_with_any_values_is_refused_by_prefect_or_told_by_us(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sections refuse what Prefect's form refuses; what gets past them is ours to explain."""
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    fields = st.sampled_from([(section, name) for section, model in SECTIONS.items() for name in model.model_fields])

    @settings(max_examples=examples)
    @given(st.sampled_from(["listwise", "study-quick", "self-train", "~nobody/x", "x" * 300, "a\0b", "..", "gone.yaml"]), fields, ODD)
    def attempt(file: str, field: tuple[str, str], value: Any) -> None:
        try:
            section = SECTIONS[field[0]].model_validate({field[1]: value})
        except ValidationError:
            return
        try:
            configure(EXAMPLES.get(file, RealignConfig), file, [section], [HUB] if file in PATHS else [])
        except ConfigError as error:
            readable(error, ("config_file", "cannot read", "--set", *EXAMPLES))

    attempt()
