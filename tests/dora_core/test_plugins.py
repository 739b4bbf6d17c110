"""A user's own loss in one file: found by name, pickled, digested; mistakes in it are reported with their line."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from dora_core.config.alignment import AlignConfig
from dora_core.errors import ConfigError
from dora_core.losses import LOSSES, parse_loss, registered_losses
from dora_core.plugins import VARIABLE, code_digest, load_plugins
from tests.dora_core.batches import batch_of

HINGE = '''
"""The README's example: a complete loss in one file."""

from typing import ClassVar, Literal

from torch import Tensor

from dora_core.losses import MarginLoss, register_loss


@register_loss
class SquaredHinge(MarginLoss):
    """ℓ = max(0, 1 − β(lr_w − lr_l))²: the hinge, smooth at its kink."""

    name: Literal["squared_hinge"] = "squared_hinge"
    offset: ClassVar[str] = "ℓ ≥ 0; 1 at the reference, 0 beyond a margin of 1/β"

    def of_margin(self, margin: Tensor) -> Tensor:
        return (1 - margin).clamp(min=0).square()
'''


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """Remove the registrations and imports of a test's plug-ins."""
    losses, modules = dict(LOSSES), set(sys.modules)
    yield
    LOSSES.clear()
    LOSSES.update(losses)
    for name in set(sys.modules) - modules:
        if name.startswith(("dora_plugin_", "my_")):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "squared_hinge.py"
    path.write_text(HINGE)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_a_loss_in_one_file_works_like_ours(plugin: Path) -> None:
    assert len(HINGE.strip().splitlines()) < 30
    config = AlignConfig.model_validate({"loss": {"name": "squared_hinge", "beta": 0.2, "pairs": "all"}})
    # lr = (3, 1, 0), rewards in that order, β = .2: max(0, 1 − .2·2)² = .36, (1 − .2·3)² = .16, (1 − .2·1)² = .64: mean .58/1.5
    assert config.loss(batch_of([[3.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]])).item() == pytest.approx(1.16 / 3)
    assert AlignConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="greater than 0"):
        parse_loss({"name": "squared_hinge", "beta": -1.0})


def test_listing_the_registry_loads_plugins(plugin: Path) -> None:
    assert "squared_hinge" not in LOSSES
    assert "squared_hinge" in registered_losses()
    choices = TypeAdapter(AlignConfig).json_schema()["properties"]["loss"]["anyOf"]
    assert "squared_hinge" in [choice["properties"]["name"]["const"] for choice in choices]


def test_a_plugin_is_imported_once_and_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "imports"
    path = tmp_path / "counted.py"
    path.write_text(HINGE + f"\nwith open({str(counter)!r}, 'a') as file:\n    file.write('x')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, f"counted.py, {path} ,")  # the same file twice, once relative
    parse_loss("dpo")
    assert not counter.exists()
    for _ in range(2):
        parse_loss("squared_hinge")
        load_plugins()
        with pytest.raises(ValueError, match="unknown loss 'square_hinge'; did you mean 'squared_hinge'"):
            parse_loss("square_hinge")
    assert counter.read_text() == "x"


def test_a_plugin_may_be_an_importable_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(HINGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "my_losses")
    assert parse_loss("squared_hinge").name == "squared_hinge"
    assert code_digest(parse_loss("squared_hinge")) == hashlib.sha256(HINGE.encode()).hexdigest()


def test_the_digest_is_that_of_the_file(plugin: Path) -> None:
    loss = parse_loss("squared_hinge")
    assert code_digest(loss) == code_digest(type(loss)) == hashlib.sha256(plugin.read_bytes()).hexdigest()
    before = code_digest(loss)
    plugin.write_text(HINGE.replace("1 - margin", "2 - margin"))
    assert code_digest(loss) != before
    assert all(code_digest(ours) is None for name, ours in LOSSES.items() if name != "squared_hinge")


def test_a_class_without_a_file_has_no_digest() -> None:
    with pytest.raises(ConfigError, match="not defined in a file") as caught:
        code_digest(type("Typed", (), {"__module__": "a_notebook"}))
    assert VARIABLE in caught.value.hint


BROKEN = {
    "a missing package": ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'", "line 1"),
    "a bug": ("x = 1\nx / 0\n", "ZeroDivisionError: division by zero", "line 2"),
    "no Python": ("x = 1\n\ndef f(:\n", "SyntaxError", "line 3"),
    "a name of ours": (HINGE.replace("squared_hinge", "dpo"), "'dpo' is already registered by dora_core.losses.logistic.DPO", "line 11"),
    "no name": (HINGE.replace("    name:", "    title:"), "Hinge needs a field `name", "line 11"),
    "no offset": (HINGE.replace("    offset:", "    bounds:"), "Hinge needs `offset", "line 11"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_named_with_cause_and_line(fault: str, plugin: Path) -> None:
    source, cause, line = BROKEN[fault]
    plugin.write_text(source)
    for _ in range(2):  # it stays broken: a failed import leaves nothing behind that the next look-up could take for done
        with pytest.raises(ConfigError) as caught:
            parse_loss("squared_hinge")
        assert repr(str(plugin)) in caught.value.message and VARIABLE in caught.value.message
        assert cause in caught.value.message and f"{plugin} {line}" in caught.value.message
        assert caught.value.hint


def test_a_broken_module_is_named_with_cause_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "my_broken")
    with pytest.raises(ConfigError, match=r"'my_broken' .* No module named 'no_such_package' \(.*my_broken.py line 1\)"):
        parse_loss("squared_hinge")


@pytest.mark.parametrize(
    ("entry", "cause", "remedy"),
    [
        ("gone.py", "gone.py: No such file or directory", "relative to the current folder"),
        ("my_gone.losses", "there is no module 'my_gone'", "the path of a .py file"),
        ("json.gone", "there is no module 'json.gone'", "the path of a .py file"),
    ],
)
def test_a_missing_plugin_is_named_with_a_remedy(entry: str, cause: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, entry)
    with pytest.raises(ConfigError) as caught:
        AlignConfig.model_validate({"loss": "squared_hinge"})
    assert repr(entry) in caught.value.message and cause in caught.value.message
    assert remedy in caught.value.hint


@pytest.mark.component
def test_another_process_finds_the_plugin_behind_a_pickle_and_a_spec(plugin: Path, tmp_path: Path) -> None:
    """As Ray pickles the arguments of a training function: the worker has not imported the file's module."""
    config = AlignConfig.model_validate({"loss": {"name": "squared_hinge", "beta": 0.25}})
    (tmp_path / "pickled").write_bytes(pickle.dumps(config))
    program = (
        "import pathlib, pickle, sys; from dora_core.config.alignment import AlignConfig\n"
        "here = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "assert here == AlignConfig.model_validate_json(sys.argv[2])\n"
        "print(here.loss.name, here.loss.beta)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "pickled"), config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, VARIABLE: str(plugin)})
    assert done.stdout.split() == ["squared_hinge", "0.25"], done.stderr
