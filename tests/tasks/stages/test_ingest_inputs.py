"""Several inputs: ids, duplicates, splits that the user gives, mixing; unpaired rows, carried columns, errors in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dora_core.config.data import DataConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.data.records import hash_prompt, is_held_out
from dora_core.errors import ConfigError, DataError
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.ingest import Facts, Spec, check_inputs, run


def pair(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"prompt number {i}", "chosen": f"yes, that is {i}", "rejected": f"no, it is not {i}", **more}


class Given:
    """Files of a test, and runs over them."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, name: str, rows: list[dict[str, Any]]) -> str:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(self.folder / name)

    def source(self, name: str, rows: list[dict[str, Any]], **keys: Any) -> dict[str, Any]:
        return {"path": self.file(name, rows), "source": "human", **keys}

    def spec(self, *train: dict[str, Any], **data: Any) -> Spec:
        config = DataConfig.model_validate({"train": list(train), **data})
        return Spec(data=config, fingerprints=fingerprint_sources(config))

    def run(self, *train: dict[str, Any], **data: Any) -> tuple[list[dict[str, Any]], Facts]:
        spec = self.spec(*train, **data)
        result = execute(spec, run, Store(str(self.folder / "store")))
        table = pq.read_table(self.folder / "store" / "ingest" / spec.digest() / "records.parquet")
        return table.to_pylist(), Facts.model_validate(result["facts"])

    def refused(self, *train: dict[str, Any], **data: Any) -> DataError:
        with pytest.raises(DataError) as caught:
            self.run(*train, **data)
        return caught.value


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path)


# ------------------------------------------------------------------------------------------------- ids and duplicates


def test_ids_are_unique_per_input_and_an_equal_id_of_a_later_one_gets_a_digest(given: Given) -> None:
    one = given.source("a.jsonl", [pair(i, id=i) for i in range(20)])
    two = given.source("b.jsonl", [pair(i + 50, id=i) for i in range(20)])
    records, facts = given.run(one, two)
    ids = [record["record_id"] for record in records]
    assert len(set(ids)) == 40 and ids[:20] == [str(i) for i in range(20)] and ids[20].startswith("0~")
    assert [one.renamed for one in facts.inputs] == [0, 20]
    assert any("20 of 40 records have an id that an earlier input has" in warning for warning in facts.warnings)
    alone, _ = given.run(two)
    assert {record["record_id"].partition("~")[0] for record in records[20:]} == {record["record_id"] for record in alone}


def test_equal_records_of_two_inputs_are_one_and_the_facts_count_them(given: Given) -> None:
    one = given.source("a.jsonl", [pair(i, id=f"a{i}") for i in range(30)])
    two = given.source("b.jsonl", [pair(i, id=f"b{i}") for i in range(20, 40)])
    records, facts = given.run(one, two)
    assert len(records) == 40 and facts.inputs[1].duplicates == 10 and facts.rows_bad == 0 and facts.rows_in == 50
    assert any("10 records equal earlier ones and were left out" in warning for warning in facts.warnings)


def test_rows_without_ids_that_repeat_in_one_file_are_duplicates_and_equal_ids_are_bad(given: Given) -> None:
    records, facts = given.run(given.source("a.jsonl", [pair(i % 30) for i in range(40)]))
    assert len(records) == 30 and facts.inputs[0].duplicates == 10 and facts.rows_bad == 0
    error = given.refused(given.source("b.jsonl", [pair(i, id=i % 20) for i in range(40)]))
    assert "duplicate_id 20" in error.message and "columns: {id: false}" in error.message


def test_an_evaluation_record_is_never_a_duplicate_of_a_training_record(given: Given) -> None:
    rows = [pair(i) for i in range(20)]
    held_out = given.source("b.jsonl", rows[:5])
    records, facts = given.run(given.source("a.jsonl", rows), eval=[held_out], split_overlap="allow")
    assert [record["split"] for record in records] == ["train"] * 20 + ["eval"] * 5
    (finding,) = [one for one in facts.findings if one.rule == "prompt_in_both_splits"]
    assert finding.count == 5 and finding.examples[0].file.endswith("b.jsonl")


# ------------------------------------------------------------------------------------------------- splits


def test_training_records_of_held_out_prompts_are_left_out_or_refuse_the_run(given: Given) -> None:
    """Prompts 0–4 are in both files; a trusted response to prompt 0 is held out."""
    train, held_out = given.source("a.jsonl", [pair(i) for i in range(20)]), given.source("b.jsonl", [pair(i) for i in range(5)])
    golden = given.source("c.jsonl", [{"prompt": pair(i)["prompt"], "response": "by hand"} for i in (0, 30)])
    records, facts = given.run(train, eval=[held_out], golden=[golden])
    assert [record["split"] for record in records] == ["train"] * 15 + ["eval"] * 5
    assert not {record["prompt_hash"] for record in records[:15]} & {record["prompt_hash"] for record in records[15:]}
    assert (
        [one.overlapping for one in facts.inputs] == [5, 0, 1]
        and facts.rows_in == 27
        and (facts.inputs[0].records, facts.golden_rows) == (15, 2)
    )
    (finding,) = [one for one in facts.findings if one.rule == "prompt_in_both_splits"]
    assert finding.level == "note" and "6 of 22 training records are left out of training" in finding.message
    assert any(finding.message in warning for warning in facts.warnings)
    error = given.refused(train, eval=[held_out], golden=[golden], split_overlap="refuse")
    assert "5 of 5 evaluation records have a prompt that training data has, too" in error.message
    assert "data.split_overlap: drop_from_train" in error.hint


@pytest.mark.parametrize("shape", ["pair", "rows"])
def test_overlap_by_a_split_column(given: Given, shape: str) -> None:
    """Even rows are held out; row 1 has the prompt of row 0, and row 7 of another file, without a split, that of row 2."""
    rows = [pair(i, split="test" if i % 2 == 0 else "train") for i in range(40)]
    rows[1] |= {"prompt": rows[0]["prompt"]}
    if shape == "rows":
        rows = [
            {"prompt": row["prompt"], "response": row[side], "score": int(side == "chosen"), "split": row["split"]}
            for row in rows
            for side in ("chosen", "rejected")
            if row is not rows[1]
        ]
    other = [pair(i + 100) for i in range(20)]
    other[7] |= {"prompt": pair(2)["prompt"]}
    keys = {"shape": "rows", "group": {"by": "prompt"}, "label": {"scores": ["score"]}} if shape == "rows" else {}
    records, facts = given.run(given.source("a.jsonl", rows, **keys), given.source("b.jsonl", other))
    train, held_out = ({record["prompt_hash"] for record in records if record["split"] == split} for split in ("train", "eval"))
    assert not train & held_out and facts.records.eval >= 20
    by_hash = is_held_out(hash_prompt([{"role": "user", "content": other[7]["prompt"]}]), 0.1)
    assert [one.overlapping for one in facts.inputs] == [int(shape == "pair"), int(not by_hash)]


def test_the_same_file_twice_leaves_nothing_to_train_on(given: Given) -> None:
    same = given.source("a.jsonl", [pair(i) for i in range(20)])
    assert "none of 20 records falls into the train split" in given.refused(same, eval=[same]).message


def test_given_evaluation_data_leaves_nothing_to_the_hash(given: Given) -> None:
    train, held_out = given.source("a.jsonl", [pair(i) for i in range(40)]), given.source("b.jsonl", [pair(i + 90) for i in range(9)])
    records, facts = given.run(train, eval=[held_out])
    assert [record["split"] for record in records] == ["train"] * 40 + ["eval"] * 9
    assert (facts.records.train, facts.records.eval) == (40, 9)


def test_split_column_wins_and_rows_without_a_value_go_by_hash(given: Given) -> None:
    rows = [pair(i, split=("test", "train", None)[i % 3]) for i in range(90)]
    records, facts = given.run(given.source("a.jsonl", rows))
    assert {record["split"] for record in records[0::3]} == {"eval"} and {record["split"] for record in records[1::3]} == {"train"}
    assert {record["split"] for record in records[2::3]} == {"train", "eval"} and facts.inputs[0].split_given == 60


def test_a_split_column_that_names_no_held_out_row_leaves_it_to_the_hash(given: Given) -> None:
    records, facts = given.run(given.source("a.jsonl", [pair(i, split="train") for i in range(60)], repeat=2))
    by_hash, _ = given.run(given.source("b.jsonl", [pair(i) for i in range(60)]))
    split = {record["prompt_hash"]: record["split"] for record in by_hash}
    assert all(record["split"] == split[record["prompt_hash"]] for record in records)
    held_out = [record for record in records if record["split"] == "eval"]
    assert len({record["prompt_hash"] for record in held_out}) == len(held_out) > 0, "held-out records have no copies"
    assert len(records) == 120 - len(held_out)
    assert any("names no evaluation records" in warning for warning in facts.warnings)


def test_only_evaluation_rows_are_refused(given: Given) -> None:
    error = given.refused(given.source("a.jsonl", [pair(i, split="test") for i in range(20)]))
    assert "none of 20 records falls into the train split" in error.message and "columns: {split: false}" in error.hint


def test_file_named_like_evaluation_data_needs_a_decision_at_plan_time(given: Given) -> None:
    inputs = (given.source("a.jsonl", [pair(i) for i in range(40)]), given.source("test.jsonl", [pair(99)]))
    with pytest.raises(DataError) as caught:
        check_inputs(given.spec(*inputs))
    assert "test.jsonl" in caught.value.message and "move the input to data.eval" in caught.value.hint
    records, facts = given.run(*inputs, accept=["evaluation_file_in_train"])
    assert len(records) == 41 and [one.level for one in facts.findings if one.rule == "evaluation_file_in_train"] == ["note"]


# ------------------------------------------------------------------------------------------------- mixing


def test_weights_copy_and_thin_training_records_only(given: Given) -> None:
    rows = [pair(i) for i in range(400)]
    plain, _ = given.run(given.source("a.jsonl", rows))
    held_out = {record["record_id"] for record in plain if record["split"] == "eval"}
    for keys, expected in (({"weight": 0.5}, 0.5), ({"weight": 1.5}, 1.5), ({"repeat": 2}, 2), ({"repeat": 3, "weight": 0.5}, 1.5)):
        records, facts = given.run(given.source("a.jsonl", rows, **keys))
        train = [record for record in records if record["split"] == "train"]
        assert {record["record_id"] for record in records if record["split"] == "eval"} == held_out
        assert len(train) / (400 - len(held_out)) == pytest.approx(expected, abs=0.1)
        assert len({record["record_id"] for record in records}) == len(records)
        one = facts.inputs[0]
        assert len(records) == 400 - one.weighted_out + one.copies and one.records == 400
        again, _ = given.run(given.source("b.jsonl", rows[::-1], **keys))
        assert {record["record_id"] for record in again} == {record["record_id"] for record in records}, "the order changes nothing"


def test_most_rows_are_chosen_by_content_and_stay_when_rows_are_added(given: Given) -> None:
    few, facts = given.run(given.source("a.jsonl", [pair(i) for i in range(200)], max_rows=50))
    more, _ = given.run(given.source("b.jsonl", [pair(i) for i in range(220)], max_rows=50))
    assert len(few) == len(more) == 50 and facts.inputs[0].not_selected == 150 and facts.rows_in == 200
    old = {f"prompt number {i}" for i in range(200)}
    before, after = ({record["prompt"][0]["content"] for record in records} for records in (few, more))
    assert after & old <= before and len(before & after) >= 40


# ------------------------------------------------------------------------------------------------- forms and columns


def test_unpaired_rows_have_one_response_and_a_label(given: Given) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"answer {i}", "label": i % 2 == 0} for i in range(40)]
    records, facts = given.run(given.source("a.jsonl", rows))
    assert {(record["reward_kind"], len(record["responses"])) for record in records} == {("label", 1)}
    assert [record["rewards"] for record in records] == [[1.0], [0.0]] * 20
    assert facts.inputs[0].mappings[0].preset == "kto" and facts.inputs[0].ties == facts.inputs[0].unmeasured == 0


def test_columns_without_a_decision_are_carried_and_named(given: Given) -> None:
    records, facts = given.run(
        given.source("a.jsonl", [pair(i, annotator=f"w{i}", weight=0.5) for i in range(30)], columns={"weight": "weight"})
    )
    assert json.loads(records[3]["extra"]) == {"annotator": "w3"} and records[3]["weight"] == 0.5
    assert facts.inputs[0].mappings[0].carried == ["annotator"]
    assert any("carried: annotator" in warning for warning in facts.warnings)


def test_a_value_that_comes_late_and_needs_a_decision_is_refused_with_its_row(given: Given) -> None:
    rows = [pair(i) for i in range(1200)] + [pair(1200, system_prompt="You are a pirate.")]
    error = given.refused(given.source("a.jsonl", rows))
    assert "row 1200" in error.message and "context: {system: system_prompt}" in error.hint
    nulls = [pair(i, system_prompt=None) for i in range(100)] + [pair(100, system_prompt="You are a pirate.")]
    assert "row 100" in given.refused(given.source("b.jsonl", nulls)).message


def test_late_columns_without_a_decision_are_counted(given: Given) -> None:
    _, facts = given.run(given.source("a.jsonl", [pair(i) for i in range(1200)] + [pair(1200 + i, note="x") for i in range(3)]))
    assert {count for name, count in facts.inputs[0].notes.items() if "'note'" in name} == {3}


def test_rows_of_one_prompt_are_joined_across_files_of_an_input(given: Given) -> None:
    for part in range(2):
        rows = [
            {"prompt": f"p{i}", "response": f"answer {part} to {i}", "score": float(part), **({"more": 1} if part else {})}
            for i in range(30)
        ]
        given.file(f"part-{part}.jsonl", rows)
    source = {"path": str(given.folder / "part-*.jsonl"), "source": "human", "shape": "rows", "label": {"scores": ["score"]}}
    records, _ = given.run(source)
    assert len(records) == 30 and all(record["rewards"] == [0.0, 1.0] for record in records)


# ------------------------------------------------------------------------------------------------- errors and findings


def test_the_first_bad_row_of_each_reason_is_in_the_message(given: Given) -> None:
    rows = [pair(i) for i in range(20)] + [pair(20, prompt=""), pair(21, chosen={"text": "hi"}), pair(22, prompt=" ")]
    error = given.refused(given.source("a.jsonl", rows))
    assert "3 of 23 rows in data.train are bad (empty_prompt 2, wrong_type 1)" in error.message
    assert "empty_prompt, e.g. row 20 of" in error.message and "a.jsonl: prompt" in error.message
    assert "map `chosen: chosen.text`" in error.message, "the line to write"


def test_suspicious_data_is_refused_and_can_be_accepted(given: Given) -> None:
    rows = [pair(i) | {"chosen": f"[CLS] yes {i}"} for i in range(30)]
    error = given.refused(given.source("a.jsonl", rows))
    assert "30 of 30 records hold special tokens" in error.message and "accept: [special_tokens]" in error.hint
    _, facts = given.run(given.source("a.jsonl", rows), accept=["special_tokens"])
    assert "special_tokens" in {finding.rule for finding in facts.findings}


def test_training_data_that_overlaps_an_evaluation_file_is_refused_and_the_file_is_part_of_the_digest(given: Given) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rows = [pair(i) for i in range(60)] + [pair(60 + i, prompt=f"{text} {i}") for i in range(40)]
    reference = given.file("benchmark.jsonl", [{"question": text, "answer": {"a": ["b"]}}])
    source = given.source("a.jsonl", rows)
    assert "share 13 words in a row" in given.refused(source, decontaminate=[reference]).message
    spec = given.spec(source, decontaminate=[reference])
    given.file("benchmark.jsonl", [{"question": "another"}])
    assert given.spec(source, decontaminate=[reference]).digest() != spec.digest()


def test_a_mapping_that_does_not_fit_is_refused_at_plan_time(given: Given) -> None:
    spec = given.spec(given.source("a.jsonl", [pair(i, tools=[{"name": "f"}]) for i in range(5)]))
    with pytest.raises(DataError, match="need a decision"):
        check_inputs(spec)
    with pytest.raises(ConfigError, match="there is no rule 'nonsense'"):
        check_inputs(given.spec(given.source("b.jsonl", [pair(0)]), accept=["nonsense"]))
    assert "preset trl" in check_inputs(given.spec(given.source("c.jsonl", [pair(0)])))[0]


def test_facts_of_earlier_releases_are_read() -> None:
    counts = {"rows_in": 1, "rows_bad": 0, "golden_rows": 0, "bad_by_reason": {}}
    old = counts | {"records": {"train": 1, "eval": 0}, "sources": {}, "fingerprint": "f"}
    facts = Facts.model_validate(old)
    assert (facts.inputs, facts.findings, facts.first_bad) == ([], [], []) and facts.dump() == old
