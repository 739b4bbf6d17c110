"""The registry of formats: a new one is one file, and mistakes in it are refused at import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dora_core
from dora_core.config.data import DataSource
from dora_core.data.formats import FORMATS
from dora_core.data.formats.base import find_formats, headline, neighbours

NEW = """
from dora_core.data.formats.base import Format

class Reader:
    ragged, columns, types, notes = False, ["prompt", "responses"], {}, ()
    def __init__(self, at):
        (file,) = at.files
        self._text = file.filesystem.open_input_stream(file.path).read().decode()
    def rows(self, columns, batch_rows):
        for i, line in enumerate(self._text.splitlines()):
            yield i, {"prompt": line, "responses": [line, line[::-1]]}

FORMAT = Format("palindromes", "palindrome file", Reader, suffixes=(".pal",))
"""

USE = """
from dora_core.config.data import DataSource
from dora_core.data.inputs import Input, fingerprint_inputs, open_files
for options in ({"path": "in"}, {"path": "in/a.pal"}, {"path": "in/a.txt", "format": "palindromes"}):
    item = Input(DataSource(source="m", **options), "train", "data.train[0]")
    assert len(fingerprint_inputs([item])) == 1
    (file,) = open_files(item, {})
    print(list(file.rows()))
schema = DataSource.model_json_schema()["properties"]
assert "palindrome file (.pal)" in schema["path"]["description"]
print(schema["format"]["enum"])
DataSource(path="in", format="wrong")
"""


def test_a_new_format_is_one_file(tmp_path: Path) -> None:
    """Dropped into the package, it is found: by ending, by name, in the schema and in messages."""
    shutil.copytree(Path(dora_core.__file__).parent, tmp_path / "dora_core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "dora_core" / "data" / "formats" / "palindromes.py").write_text(NEW)
    (tmp_path / "in").mkdir()
    for name in ("a.pal", "a.txt"):
        (tmp_path / "in" / name).write_text("abc\n")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    *rows, allowed = done.stdout.splitlines()
    assert rows == ["[(0, {'prompt': 'abc', 'responses': ['abc', 'cba']})]"] * 3, done.stderr
    assert allowed == "['auto', 'arrow', 'csv', 'datasets', 'json', 'jsonl', 'palindromes', 'parquet', 'sqlite']"
    assert "Input should be 'auto', 'arrow', 'csv', 'datasets', 'json', 'jsonl', 'palindromes', 'parquet' or 'sqlite'" in done.stderr


def test_the_configuration_accepts_the_registered_names_and_auto() -> None:
    assert sorted(FORMATS) == ["arrow", "csv", "datasets", "json", "jsonl", "parquet", "sqlite"]
    assert [DataSource(path="a", format=name).format for name in ("auto", *FORMATS)] == ["auto", *FORMATS]
    assert DataSource(path="a").model_dump()["format"] == "auto"
    with pytest.raises(ValueError, match="'auto', 'arrow', 'csv', 'datasets', 'json', 'jsonl', 'parquet' or 'sqlite'"):
        DataSource(path="a", format="xlsx")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x = 1", TypeError, "does not define FORMAT"),
        ("FORMAT = Format('auto', 'file', None, suffixes=('.a',))", ValueError, "'auto' belongs to dora_core.data.formats.base already"),
        ("FORMAT = Format('other', 'file', None)", ValueError, "give either suffixes .* or marks"),
        ("FORMAT = Format('other', 'file', None, suffixes=('.a',), marks=frozenset({'m'}))", ValueError, "give either suffixes"),
        ("FORMAT = Format('other', 'file', None, suffixes=('.a', '.a'))", ValueError, r"'\.a' belongs to .*\.mistaken already"),
    ],
)
def test_a_mistaken_descriptor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception], message: str
) -> None:
    package = f"formats_{abs(hash(text))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "mistaken.py").write_text(f"from dora_core.data.formats.base import Format\n{text}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=message):
        find_formats(package, [str(tmp_path / package)])


def test_headline_is_the_first_line() -> None:
    assert headline(ValueError("one\ntwo")) == "ValueError: one" and headline(KeyError()) == "KeyError: "


def test_neighbours_of_a_missing_path(tmp_path: Path) -> None:
    assert neighbours(str(tmp_path / "x" / "y")).endswith(f"{str(tmp_path)!r} holds: nothing")
    (tmp_path / "train.parquet").touch()
    assert f"did you mean '{tmp_path / 'train.parquet'}'?" in neighbours(str(tmp_path / "tain.parquet"))
