"""The containers in which preference data is published, as in the shared cases: every configuration gives its 30 pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dora_core.config.data import DataSource
from dora_core.data.inputs import Input, fingerprint_inputs, open_files
from dora_core.errors import DataError

CASES = Path(__file__).parents[4] / "shared" / "cases" / "data" / "21_formats"
ROWS = {"config_dd_slice.yaml": 10, "config_dd_split.yaml": 24, "config_glob.yaml": 24, "config_snapshot.yaml": 24}
REFUSED = {
    "config_csv_as_jsonl.yaml": ("looks like CSV (columns prompt, chosen, rejected)", "set data.train[0].format: csv"),
    "config_dd.yaml": ("has no split 'train'", "allowed: test_prefs, train_prefs"),
}


def source_of(name: str, monkeypatch: pytest.MonkeyPatch) -> DataSource:
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there: it is shared beside the repository")
    monkeypatch.chdir(CASES)
    return DataSource(**yaml.safe_load((CASES / name).read_text())["data"]["train"][0])


def rows_of(source: DataSource) -> list[dict[str, Any]]:
    item = Input(source, "train", "data.train[0]")
    fingerprints = fingerprint_inputs([item])
    return [row for file in open_files(item, fingerprints) for _, row in file.rows()]


@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("config*.yaml")) or ["config_json.yaml"])
def test_each_configuration_gives_its_pairs_or_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(name, monkeypatch)
    if name in REFUSED:
        message, hint = REFUSED[name]
        with pytest.raises(DataError) as caught:
            rows_of(source)
        assert message in caught.value.message and hint in caught.value.hint
        return
    rows = rows_of(source)
    assert len(rows) == ROWS.get(name, 30)
    assert all(row["prompt"].startswith("How do I clean a ") and row["chosen"].startswith("Wipe the ") for row in rows)
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_all_containers_hold_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(name: str, **changes: Any) -> list[tuple[str, str, str]]:
        rows = rows_of(source_of(name, monkeypatch).evolve(**changes))
        return sorted((row["prompt"], row["chosen"], row["rejected"]) for row in rows)

    expected = pairs("config_json.yaml")
    for path in sorted(CASES.glob("config*.yaml")):
        if path.name not in REFUSED and path.name not in ROWS:
            assert pairs(path.name) == expected, path.name
    assert pairs("config_dd.yaml", split="train_prefs+test_prefs") == pairs("config_snapshot.yaml", split="train+test") == expected


def test_the_partition_of_a_hive_folder_is_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(source_of("config_hive.yaml", monkeypatch))
    assert {row["source"] for row in rows} == {"human", "gpt-4"}
