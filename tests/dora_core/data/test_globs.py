"""Glob patterns."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from dora_core.data.globs import expand_braces, fixed_folder, is_glob, matching

NAMES = ["a.jsonl", "a1.jsonl", "b/a.jsonl", "b/c/a.jsonl", "b/c/a[1].json", "b/c/d.parquet"]


@pytest.mark.parametrize(
    "pattern", ["*.jsonl", "a?.jsonl", "**/*.jsonl", "b/**/a.jsonl", "b/*/a*", "*/c/[ad].*", "b/c/[!a]*", "b/**", "a.jsonl"]
)
def test_names_match_as_in_the_shell(tmp_path: Path, pattern: str) -> None:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    theirs = [n for n in glob.glob(pattern, root_dir=tmp_path, recursive=True) if (tmp_path / n).is_file()]
    assert matching([pattern], NAMES) == sorted(theirs, key=NAMES.index)


def test_braces() -> None:
    assert expand_braces("a{b,c{d,e}}f") == ["abf", "acdf", "acef"]
    assert expand_braces("a{b") == ["a{b"] and expand_braces("a{b}") == ["a{b}"]
    assert matching(["{a,a1}.jsonl"], NAMES) == ["a.jsonl", "a1.jsonl"]


def test_the_folder_in_front_of_a_pattern() -> None:
    assert [fixed_folder(p) for p in ("a/b/*.x", "/a/**/c", "*.x", "a/{b,c}/d")] == ["a/b", "/a", "", "a"]
    assert is_glob("a/*") and not is_glob("a/b")
