"""Splits and subsets in the README.md of a hub folder."""

from __future__ import annotations

import pytest

from dora_core.data.dataset_card import declared_files
from dora_core.errors import DataError

ONE = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*}
  - split: test
    path: [a, b]
---
text
"""
TWO = "---\nconfigs:\n- {config_name: en, data_files: en/*.csv}\n- {config_name: de, data_dir: de, data_files: {dev: '*.csv'}}\n---\n"


def test_patterns_by_split_and_subset() -> None:
    assert declared_files(ONE, None, "x") == {"train": ["data/train-*"], "test": ["a", "b"]}
    assert declared_files(TWO, "en", "x") == {"train": ["en/*.csv"]}
    assert declared_files(TWO, "de", "x") == {"dev": ["de/*.csv"]}
    assert declared_files(TWO.replace("data_files: en", "default: true, data_files: en"), None, "x") == {"train": ["en/*.csv"]}
    assert declared_files("---\nconfigs:\n- {config_name: a, data_dir: a}\n---\n", None, "x") == "a"


@pytest.mark.parametrize(
    "card", ["", "# A title\nconfigs: of the text", "---\nlicense: mit\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs: [3]\n---"]
)
def test_a_card_without_files_declares_nothing(card: str) -> None:
    assert declared_files(card, None, "x") is None


def test_a_subset_that_is_needed_or_unknown_is_asked_for_by_name() -> None:
    with pytest.raises(DataError, match=r"data\.train\[0\]\.subset: README\.md declares several subsets") as caught:
        declared_files(TWO, None, "data.train[0]")
    assert caught.value.hint == "set data.train[0].subset: en or de"
    with pytest.raises(DataError, match="declares no subset 'ed'") as caught:
        declared_files(TWO, "ed", "data.train[0]")
    assert "allowed: de, en" in caught.value.hint


def test_a_header_that_cannot_be_read_is_refused_with_the_way_round_it() -> None:
    for card in ("---\nconfigs: [\n---\n", "---\nconfigs:\n- {data_files: [{split: train, path: 3}]}\n---\n"):
        with pytest.raises(DataError, match=r"README\.md") as caught:
            declared_files(card, None, "data.train[0]")
        assert "data.train[0].data_files" in caught.value.hint
