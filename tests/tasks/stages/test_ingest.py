"""Ingest through :func:`tasks.runtime.stage.execute`: real files in, real tables out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dora_core.data.adapted
import tasks.stages._ingest_tables
from dora_core.config.data import DataConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.data.records import GOLDEN_SCHEMA, QUARANTINE_SCHEMA, RECORDS_SCHEMA
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.ingest import Spec, check_inputs, run

REAL = Path(__file__).parents[4] / "shared" / "data"


def row(i: int, **change):
    return {"id": f"r{i}", "prompt": f"prompt {i}", "responses": ["x", "y"], "rewards": [1, 0], "sources": ["human", "m"]} | change


def write(path: Path, rows) -> str:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return str(path)


def ingest(folder: Path, rows, **data):
    config = DataConfig(train=[{"path": write(folder / "train.jsonl", rows)}], **data)
    spec, store = Spec(data=config, fingerprints=fingerprint_sources(config)), Store(str(folder / "store"))
    return execute(spec, run, store), store.local_root / "ingest" / spec.digest()


def quarantine(folder: Path) -> list[tuple]:
    return [tuple(r.values())[1:4] for r in pq.read_table(next(folder.glob("**/quarantine.parquet"))).to_pylist()]


GOOD = [row(i) for i in range(40)]


def test_tables_facts_and_schemas(tmp_path):
    golden = write(tmp_path / "golden.jsonl", [{"prompt": f"g{i}", "response": "z"} for i in range(3)])
    rows = [*GOOD, row(40, rewards=[None, 2], sources=["human", None], task="math")]
    result, folder = ingest(tmp_path, rows, golden=[{"path": golden}])
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in ("records", "golden", "quarantine")}
    assert tables["records"].schema.equals(RECORDS_SCHEMA)
    assert tables["golden"].schema.equals(GOLDEN_SCHEMA)
    assert tables["quarantine"].schema.equals(QUARANTINE_SCHEMA)
    assert tables["records"]["record_id"].to_pylist() == [r["id"] for r in rows]
    assert tables["records"]["task"].to_pylist() == [None] * 40 + ["math"]
    facts = result["facts"]
    assert (facts["rows_in"], facts["rows_bad"], facts["golden_rows"], result["rows"]) == (44, 0, 3, 41)
    assert sum(facts["records"].values()) == 41
    assert facts["sources"]["human"] == {"responses": 41, "share": 0.5, "mean_chars": 1.0, "measured_rewards": 40}
    assert facts["sources"]["(unknown)"]["responses"] == 1
    assert facts["sources"]["m"]["measured_rewards"] == 40


@pytest.mark.fault(18)
def test_every_bad_row_is_quarantined_with_place_and_reason(tmp_path):
    bad = {
        "empty_response": row(50, responses=["x", " "]),
        "missing_response": row(51, responses=["x", None]),
        "nonfinite_reward": row(52, rewards=[1, float("nan")]),
        "duplicate_id": row(0, prompt="again"),
        "too_few_responses": row(53, responses=["x"], rewards=[1], sources=["m"]),
        "text_too_long": row(54, responses=["x", "a" * 1_000_000]),
        "lone_surrogate": row(55, responses=["x", "\ud800"]),
        "length_mismatch": row(56, rewards=[1]),
        "unknown_source": row(57, sources=["human", "zz"]),
        "unparsable": '{"id": "r58", \n',
        "wrong_type": row(59, prompt=5),
        "empty_prompt": row(60, prompt=""),
    }
    result, folder = ingest(tmp_path, [*GOOD, *bad.values()], sources=["human", "m"], max_bad_fraction=0.5)
    found = quarantine(folder)
    assert [(number, reason) for number, _, reason in found] == list(enumerate(bad, start=40))
    assert result["facts"]["bad_by_reason"] == dict.fromkeys(sorted(bad), 1)
    assert result["facts"]["rows_bad"] == 12
    assert pq.read_table(folder / "records.parquet").num_rows == 40


def test_quarantine_uses_the_users_column_names(tmp_path):
    rows = [{k if k != "responses" else "answers": v for k, v in r.items()} for r in [*GOOD, row(40, responses=["x", ""])]]
    train = {"path": write(tmp_path / "a.jsonl", rows), "columns": {"responses": "answers"}}
    config = DataConfig(train=[train], max_bad_fraction=0.5)
    execute(Spec(data=config, fingerprints=fingerprint_sources(config)), run, Store(str(tmp_path / "store")))
    assert quarantine(tmp_path) == [(40, "answers[1]", "empty_response")]


@pytest.mark.fault(18)
def test_too_many_bad_rows_refuse_the_run_but_the_quarantine_is_kept(tmp_path):
    with pytest.raises(DataError, match=r"2 of 42 rows in data.train are bad \(empty_prompt 2\), more than") as caught:
        ingest(tmp_path, [*GOOD, row(40, prompt=""), row(41, prompt="")])
    assert len(quarantine(tmp_path)) == 2
    assert "quarantine.parquet" in caught.value.hint


@pytest.mark.fault(18)
def test_bad_golden_rows_are_judged_on_their_own(tmp_path):
    golden = write(tmp_path / "golden.jsonl", [{"prompt": "g", "response": ""}, {"prompt": "h", "response": "z"}])
    with pytest.raises(DataError, match=r"1 of 2 rows in data.golden are bad"):
        ingest(tmp_path, GOOD, golden=[{"path": golden}])


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        ([row(0, prompt="")], {"max_bad_fraction": 1.0}, "no good row is left"),
        ([], {}, "data.train holds no rows"),
        (GOOD, {"golden_sources": ["expert*"]}, r"no source matches data.golden_sources = \['expert\*'\]"),
        ([row(i, sources=[None, None]) for i in range(40)], {}, "no response in data.train has a source"),
        (GOOD[:1], {}, "none of 1 records falls into the (train|eval) split"),
    ],
)
def test_data_nothing_can_be_learned_from_is_refused(tmp_path, rows, data, message):
    with pytest.raises(DataError, match=message) as caught:
        ingest(tmp_path, rows, **data)
    assert caught.value.hint


def test_no_golden_source_names_the_sources_there_are(tmp_path):
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, GOOD, golden_sources=["expert"])
    assert "human, m" in caught.value.hint


def test_golden_data_stands_in_for_a_golden_source(tmp_path):
    golden = write(tmp_path / "golden.jsonl", [{"prompt": "g", "response": "z"}])
    result, _ = ingest(tmp_path, GOOD, golden_sources=["expert"], golden=[{"path": golden}])
    assert result["facts"]["golden_rows"] == 1


def test_input_that_changed_since_the_plan_is_refused(tmp_path):
    config = DataConfig(train=[{"path": write(tmp_path / "a.jsonl", GOOD)}])
    spec = Spec(data=config, fingerprints=fingerprint_sources(config))
    write(tmp_path / "a.jsonl", GOOD[1:])
    with pytest.raises(DataError, match="input changed between planning and reading"):
        execute(spec, run, Store(str(tmp_path / "store")))


def test_bytes_do_not_depend_on_batches_and_fingerprint_depends_on_content(tmp_path, monkeypatch):
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(GOOD), parquet)
    config = DataConfig(train=[{"path": str(parquet)}])
    spec = Spec(data=config, fingerprints=fingerprint_sources(config))
    first = execute(spec, run, Store(str(tmp_path / "one")))
    monkeypatch.setattr(dora_core.data.adapted.AdaptedInput.rows, "__defaults__", (7,))
    second = execute(spec, run, Store(str(tmp_path / "two")))
    assert first["files"] == second["files"]
    assert first["facts"] == second["facts"]
    other, _ = ingest(tmp_path, [*GOOD[:-1], row(39, responses=["x", "z"])])
    assert other["facts"]["fingerprint"] != first["facts"]["fingerprint"]


def test_row_groups_are_cut_by_text_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.stages._ingest_tables, "GROUP_CHARS", 2000)
    _, folder = ingest(tmp_path, GOOD)
    file = pq.ParquetFile(folder / "records.parquet")
    assert file.num_row_groups > 1
    assert file.read()["record_id"].to_pylist() == [r["id"] for r in GOOD]


def test_planning_imports_nothing_heavy():
    heavy = "{'torch', 'ray', 'transformers', 'mlflow', 'prefect', 'datasets', 'matplotlib'}"
    subprocess.run([sys.executable, "-c", f"import sys, tasks.stages.ingest; assert not {heavy} & set(sys.modules)"], check=True)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real preference data is not beside the repository")
def test_real_mixture_is_good_and_a_response_that_is_the_word_nan_is_noted(tmp_path):
    config = DataConfig(
        train=[{"path": str(REAL / "mixture.parquet")}], golden=[{"path": str(REAL / "golden.parquet")}], golden_sources=["human*"]
    )
    result = execute(Spec(data=config, fingerprints=fingerprint_sources(config)), run, Store(str(tmp_path / "store")))
    facts = result["facts"]
    assert (result["rows"], facts["golden_rows"], facts["rows_bad"]) == (3400, 6901, 0)
    (noted,) = (one for one in facts["findings"] if one["rule"] == "missing_value_texts")
    assert (noted["count"], noted["examples"][0]["row"]) == (1, 1389)
    assert sum(s["responses"] for s in facts["sources"].values()) == 16_321
    assert sum(s["measured_rewards"] for s in facts["sources"].values()) == 16_321 - 461
    assert facts["records"]["eval"] / 3400 == pytest.approx(0.1, abs=0.02)


# ---------------------------------------------------------------------------------------- trusted sources; one question


def spec_of(folder: Path, rows, **data) -> Spec:
    config = DataConfig(train=[{"path": write(folder / "train.jsonl", rows)}], **data)
    return Spec(data=config, fingerprints=fingerprint_sources(config))


def test_trusted_sources_that_no_row_has_are_refused_at_plan_time(tmp_path):
    with pytest.raises(DataError, match=r"no source matches data\.golden_sources = \['humans'\]") as error:
        check_inputs(spec_of(tmp_path, GOOD, golden_sources=["humans"]))
    assert "human, m" in error.value.hint
    assert check_inputs(spec_of(tmp_path, [*GOOD, row(40, sources=["expert", "m"])], golden_sources=["expert"])), "its last row"
    golden = write(tmp_path / "golden.jsonl", [{"prompt": "g", "response": "z"}])
    assert check_inputs(spec_of(tmp_path, GOOD, golden_sources=["humans"], golden=[{"path": golden}]))


def test_one_of_several_trusted_sources_that_no_row_has_is_a_warning(tmp_path):
    result, _ = ingest(tmp_path, GOOD, golden_sources=["human", "expret*"])
    assert any("no source is named expret*" in warning for warning in result["facts"]["warnings"])


def forms(i) -> list[dict]:
    """Four prompts with one question: plain, under a system message, with other white space and form, and a longer conversation."""
    asked = f"What is caf\u00e9 number {i} called?"
    plain = {"role": "user", "content": asked}
    return [
        row(f"{i}a", prompt=[plain]),
        row(f"{i}b", prompt=[{"role": "system", "content": "Be brief."}, plain]),
        row(f"{i}c", prompt=asked.replace("\u00e9", "e\u0301").replace(" ", "  ")),
        row(f"{i}d", prompt=[plain, {"role": "assistant", "content": "No idea."}, {"role": "user", "content": "Guess."}]),
    ]


def test_prompts_with_one_question_are_noted_across_the_split_or_kept_on_one_side(tmp_path):
    rows = [one for i in range(40) for one in forms(i)]
    noted, _ = ingest(tmp_path, rows, holdout_fraction=0.3)
    (finding,) = [one for one in noted["facts"]["findings"] if one["rule"] == "question_in_both_splits"]
    assert finding["count"] > 0
    result, folder = ingest(tmp_path, rows, holdout_fraction=0.3, split_by="question")
    assert not [one for one in result["facts"]["findings"] if one["rule"] == "question_in_both_splits"]
    records = pq.read_table(folder / "records.parquet").to_pylist()
    sides = {}
    for record in records:
        sides.setdefault(record["record_id"][1:-1], set()).add(record["split"])
    assert all(len(side) == 1 for side in sides.values()) and {"train", "eval"} == set.union(*sides.values())


def test_the_default_split_leaves_digests_as_they_were(tmp_path):
    spec = spec_of(tmp_path, GOOD)
    assert "split_by" not in spec.payload()["data"]
    assert spec.evolve(data=spec.data.evolve(split_by="question")).digest() != spec.digest()


def test_held_out_questions_of_a_given_split_are_left_out_of_training(tmp_path):
    held_out = write(tmp_path / "eval.jsonl", forms(0)[:1])
    result, folder = ingest(tmp_path, [*forms(0)[1:], *GOOD], eval=[{"path": held_out}], split_by="question")
    assert result["facts"]["inputs"][0]["overlapping"] == 3
    assert not [
        r
        for r in pq.read_table(folder / "records.parquet").to_pylist()
        if r["split"] == "train" and r["record_id"].startswith("r0") and r["record_id"] != "r0"
    ]


def test_prompts_with_goals_are_two_records_of_one_prompt_hash_and_rows_of_their_own(tmp_path):
    """A train record of rewards 1 and 0 becomes two, an eval record one that asks for the best; golden rows ask for the best too."""
    from dora_core.data.records import with_goals
    from tasks.stages.sft import SftConfig, sft_examples
    from tasks.tables.rows import read_index

    golden = write(tmp_path / "golden.jsonl", [{"prompt": "g", "response": "z"}])
    rows = [row(i, split="eval" if i % 4 == 3 else "train") for i in range(40)]
    _, folder = ingest(tmp_path, rows, golden=[{"path": golden}], goal={"best": 1, "text": "Aim at {goal}.", "digits": 0})
    table = pq.read_table(folder / "records.parquet")
    assert table.schema.equals(with_goals(RECORDS_SCHEMA)) and len(table) == 30 * 2 + 10
    found = {one["record_id"]: one for one in table.to_pylist()}
    high, low, held_out = found["r0@1"], found["r0@0"], found["r3"]
    assert (high["rewards"], low["rewards"], held_out["rewards"]) == ([0, -1], [-1, 0], [1, 0])
    assert high["prompt_hash"] == low["prompt_hash"] and (high["goal"], low["goal"]) == ("Aim at 1.", "Aim at 0.")
    assert held_out["prompt"][0]["content"] == "Aim at 1.\n\nprompt 3" and held_out["split"] == "eval"
    keys = read_index(folder / "records.parquet").key_N
    assert len(set(keys.tolist())) == len(keys) == 140, "the same response under another goal is another row of a cache"
    examples = sft_examples(folder, SftConfig(data="golden"), ["human"])
    assert {prompt[0]["content"].split("\n")[0] for prompt, _ in examples} == {"Aim at 1."}, "people's response is the one of reward 1"
    assert len(examples) == 30 + 1


def test_goals_need_rewards_and_known_held_out_prompts(tmp_path):
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "chosen_source": "human", "rejected_source": "m"} for i in range(30)]
    with pytest.raises(DataError, match=r"data\.goal asks for the reward of a response"):
        ingest(tmp_path, pairs, goal={"best": 1})
    with pytest.raises(DataError, match=r"with data\.goal a held-out prompt must be known"):
        ingest(tmp_path, [row(i, split="train") for i in range(40)], goal={"best": 1})
