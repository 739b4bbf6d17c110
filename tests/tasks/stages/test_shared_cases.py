"""Every folder of ``shared/cases/data`` through the real stage: the records say what its EXPECTED.md says, or the refusal is clear.

Each case is read with its new configuration, mostly nothing but a path, and with the configuration that it came with: that one is read the
same or refused with the line to write, never misread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from dora_core.errors import DoraError
from tests.tasks.stages.case_outcomes import CaseOutcome, named, order_of

CASES = Path(__file__).parents[4] / "shared" / "cases" / "data"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout (../shared/cases/data)")

PAIR = {"Wipe>No idea": 30}


@dataclass(frozen=True)
class Case:
    """What a folder must give.

    Attributes:
        data: section of the new configuration; the inputs of ``train`` are human where nothing else is said.
        old: of the configuration it came with: ``read``, or a part of its refusal.
    """

    train: list[dict[str, Any]]
    orders: dict[str, int] = field(default_factory=lambda: dict(PAIR))
    old: str = "read"
    roles: dict[str, int] = field(default_factory=lambda: {"user": 30})
    sources: set[tuple[str | None, ...]] | None = None
    splits: dict[str, int] | None = None
    bad: dict[str, int] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    check: Callable[[CaseOutcome], bool] = lambda outcome: True
    golden: int = 0


def human(*paths: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"path": path, "source": "human", **keys} for path in paths]


def says(*parts: str) -> Callable[[CaseOutcome], bool]:
    """Each part is in a warning."""
    return lambda outcome: all(any(part in warning for warning in outcome.facts["warnings"]) for part in parts)


def prompts(pattern: str) -> Callable[[CaseOutcome], bool]:
    """Every prompt's last message begins with a text."""
    return lambda outcome: all(record["prompt"][-1]["content"].startswith(pattern) for record in outcome.records)


def golden_is(first: str, roles: list[str]) -> Callable[[CaseOutcome], bool]:
    return lambda outcome: all(
        named(row["response"]) == "Wipe" and [m["role"] for m in row["prompt"]] == roles and row["prompt"][-1]["content"].startswith(first)
        for row in outcome.golden
    )


def kinds(kind: str) -> Callable[[CaseOutcome], bool]:
    return lambda outcome: {record["reward_kind"] for record in outcome.records} == {kind}


def text_of_23a(outcome: CaseOutcome) -> bool:
    texts = {record["responses"][0] for record in outcome.records}
    long = [record for record in outcome.records if len(record["prompt"][0]["content"].split()) >= 8000]
    return {"cold\0water"} <= texts and any("👩‍👩‍👧‍👦" in t for t in texts) and any("<b>" in t for t in texts) and len(long) == 1


def call_is_kept(outcome: CaseOutcome) -> bool:
    first = outcome.records[0]["prompt"]
    return '"tools":[{' in first[0]["extra"] and '"tool_calls":[{' in first[1]["extra"] and '"tool_call_id":"c1"' in first[2]["extra"]


HISTORY = {"user assistant user": 30}
SYSTEM = {"system user": 30}
TOOLS = {"user assistant tool": 24}
TOOL_KEYS = {"context": {"tools": "tools"}, "messages": {"tools": "keep"}}
DECIDE = "need a decision"
PRESET = "has the schema of the preset"

READ: dict[str, Case] = {
    "01_hh_raw": Case(human("train.jsonl.gz"), roles=HISTORY),
    "02_ultrafeedback_original": Case(
        [{"path": "train-00000-of-00001.parquet"}],
        {"Wipe>Rinse>No idea>Burn": 29, "Wipe=Rinse>No idea>Burn": 1},
        PRESET,
        data={"golden_sources": ["gpt-4"]},
        check=lambda o: (
            order_of(o.records[4]) == "Wipe=Rinse>No idea>Burn"
            and len(next(iter(o.sources))) == 4
            and o.records[0]["reward_kind"] == "reward"
            and "custom_system_prompt" in o.records[0]["extra"]
        ),
    ),
    "03_ultrafeedback_binarized": Case(
        human("train_prefs-00000-of-00001.parquet"),
        {"Wipe>No idea": 26, "Wipe=No idea": 3},
        roles={"user": 29},
        bad={"score_contradicts_label": 1},
        check=lambda o: o.rewards == {(8.5, 4.0), (7.0, 7.0)} and o.quarantine[0]["row"] == 20,
    ),
    "04_orca_dpo_pairs": Case(human("orca_rlhf.jsonl"), roles={"user": 6, "system user": 24}),
    "06_shp": Case(human("train.json"), old=PRESET),
    "07a_helpsteer2_attributes": Case(
        human("train.jsonl.gz"), old=PRESET, check=lambda o: o.rewards == {(4.0, 1.0)} and o.facts["inputs"][0]["rows"] == 60
    ),
    "09_summarize_from_feedback": Case(
        [{"path": "comparisons.jsonl"}],
        old=PRESET,
        data={"golden_sources": ["ref"]},
        check=lambda o: (
            set(o.sources) <= {("ref", "sup2"), ("sup2", "ref")} and o.splits["eval"] > 0 and o.facts["inputs"][0]["split_given"] == 30
        ),
    ),
    "10_webgpt": Case(human("comparisons.parquet"), {"Wipe>No idea": 25, "Wipe=No idea": 5}, PRESET, check=prompts("How do I")),
    "11_oasst": Case(human("oasst_ready.messages.jsonl"), {"Wipe>Rinse>No idea": 18}, PRESET, roles={"user": 18}, check=kinds("rank")),
    "12_arena": Case(
        [{"path": "train.parquet"}],
        {"Wipe>No idea": 16, "Wipe=No idea": 12},
        PRESET,
        roles={"user": 28},
        bad={"prompt_mismatch": 2},
        data={"golden_sources": ["gpt-4"]},
        check=says("messages: {differ: cut}"),
    ),
    "13a_kto_trl": Case(human("train.jsonl"), {"Wipe 1.0": 30, "No idea 0.0": 30}, PRESET, roles={"user": 60}, check=kinds("label")),
    "13b_kto_messages": Case(human("kto_en_demo.json"), {"Wipe 1.0": 15, "No idea 0.0": 15}, PRESET, check=kinds("label")),
    "14b_lf_sharegpt_preference": Case(human("dpo_en_demo.json")),
    "15a_trl_explicit_system": Case(human("train.parquet"), roles=SYSTEM),
    "15b_trl_implicit_system": Case(human("train.jsonl"), roles=SYSTEM),
    "15c_trl_implicit_strings": Case(human("train.jsonl"), check=says("cut from the common beginning of the responses: 30")),
    "16a_tool_calling_null": Case(human("train.jsonl", **TOOL_KEYS), {"Wipe>No idea": 24}, old=DECIDE, roles=TOOLS, check=call_is_kept),
    "16b_tool_calling_text": Case(human("train.jsonl", **TOOL_KEYS), {"Wipe>No idea": 24}, old=DECIDE, roles=TOOLS, check=call_is_kept),
    "18a_skywork": Case([{"path": "train.parquet"}], data={"golden_sources": ["offsetbias"]}),
    "18b_argilla_binarized_cleaned": Case(
        [{"path": "train.parquet"}],
        sources={("gpt-4", "alpaca-7b")},
        data={"golden_sources": ["gpt-4"]},
        check=lambda o: o.rewards == {(4.75, 2.5)},
    ),
    "18c_distilabel": Case(
        [{"path": "train.parquet"}],
        {"Wipe>Rinse>No idea": 29, "Wipe>Rinse ?No idea": 1},
        sources={("zephyr", "gpt-4", "llama")},
        data={"golden_sources": ["gpt-4"]},
    ),
    "18d_distilabel_string_ratings": Case(
        [{"path": "train.parquet"}],
        {"Wipe>Rinse>No idea": 20, "Wipe>Rinse ?No idea": 10},
        data={"golden_sources": ["gpt-4"]},
        check=lambda o: o.rewards == {(3.0, 4.5, 1.0), (3.0, 4.5, None)},
    ),
    "20_content_parts": Case(human("train.jsonl"), roles=SYSTEM),
    "23a_texts": Case(
        human("train.parquet"),
        {"Wipe>No idea": 26, "<p>Use <b>cold</b> water &amp;>No idea": 1, "cold\0water>No idea": 1, "👩‍👩‍👧‍👦 é vs é>No idea": 1},
        roles={"user": 29},
        bad={"text_too_long": 1},
        check=lambda o: text_of_23a(o) and says("data.max_text_bytes")(o),
    ),
    "23b_mixed_rewards": Case(
        [{"path": "train.jsonl"}],
        {"Wipe>No idea": 15, "No idea ?Wipe": 10},
        roles={"user": 25},
        bad={"not_a_number": 5},
        check=lambda o: o.rewards == {(4.5, 1.0), (1.0, 0.0), (None, 1.0), (None, 2.0)},
    ),
    "23c_scales": Case(
        [{"path": "train.jsonl"}],
        {"Wipe>No idea": 31},
        roles={"user": 31},
        check=says("span two scales: 0 to 1 in 15"),
    ),
    "23d_five_attributes": Case(
        [{"path": "train.jsonl", "label": {"scores": ["rewards[].helpfulness", "rewards[].verbosity"], "weights": [1, -0.1]}}],
        old='label: {scores: ["rewards[].helpfulness"]}',
        check=lambda o: {tuple(round(r, 6) for r in rewards) for rewards in o.rewards} == {(3.9, 0.7)},
    ),
    "24a_extra_fields": Case(
        human("train.jsonl", columns={"weight": "weight"}, carry=["margin"], ignore=["confidence"]),
        old=DECIDE,
        check=lambda o: (
            o.records[1]["weight"] == 0.1 and '"annotator":"w1"' in o.records[1]["extra"] and '"margin":2.5' in o.records[1]["extra"]
        ),
    ),
    "24b_user_split": Case(
        human("train.jsonl"), old="move the input to data.eval", splits={"train": 24, "eval": 6}, data={"eval": human("test.jsonl")}
    ),
    "24c_split_column": Case(human("data.jsonl"), splits={"train": 24, "eval": 6}),
    "24d_duplicates": Case(human("a.jsonl", "b.jsonl"), check=says("data.train[1]: 6 records equal earlier ones and were left out")),
    "24e_ids_collide": Case(
        human("helpful.jsonl", "harmless.jsonl"),
        check=lambda o: len({r["record_id"] for r in o.records}) == 30 and says("15 of 30 records have an id")(o),
    ),
    "24f_task_column_list": Case(
        human("train.jsonl", columns={"task": False}),
        old="write `columns: {task: false}`",
        check=lambda o: not any(r["task"] for r in o.records),
    ),
    "24g_listwise_with_pair_columns": Case(human("train.jsonl"), check=says("lists whose preference is their pair: 30")),
    "26_ms_swift": Case(human("rlhf.jsonl"), roles=SYSTEM),
    "27_axolotl_chat_template": Case(human("train.jsonl")),
    "27b_axolotl_icr": Case(human("train.jsonl"), roles=SYSTEM),
    "28_alpaca_farm_preference": Case(human("pref.jsonl"), old=PRESET, check=prompts("Answer the question.\n\nHow do I")),
    "29_label_studio": Case(human("export.json"), check=prompts("How do I")),
    "30a_rlhflow_online": Case(
        [{"path": "data.jsonl", "source": "policy-iter1"}], {"Wipe>Rinse>No idea": 30}, data={"golden_sources": ["policy-iter1"]}
    ),
    "30b_simpo_ultrafeedback": Case(
        [{"path": "train.parquet", "source": "llama-3-8b"}], {"Wipe=Wipe>Rinse>No idea": 30}, data={"golden_sources": ["llama-3-8b"]}
    ),
    "30c_halos_pairwise": Case(human("pairwise.jsonl"), old=PRESET, check=says("held out by the hash")),
    "31a_pretemplated_chatml": Case(
        human("train.jsonl", messages={"templated": "parse"}),
        old="messages: {templated: parse}",
        roles=SYSTEM,
        check=lambda o: not any("<|" in str(record) for record in o.records),
    ),
    "31c_hh_in_lists": Case([{"path": "train.jsonl"}], sources={("human", "gpt-4")}),
    "31d_user_assistant_text": Case(
        human("train.jsonl", messages={"templated": "parse"}), old="messages: {templated: parse}", check=prompts("How do I")
    ),
    "32_other_roles": Case(human("train.jsonl"), roles=SYSTEM),
    "32b_reasoning_field": Case(
        human("train.jsonl", messages={"reasoning": "drop"}), old="messages: {reasoning: drop}", check=says("reasoning left out: 60")
    ),
    "33_golden_sft_messages": Case(
        [{"path": "pairs.jsonl", "source": "gpt-4"}],
        data={"golden": [{"path": "sft.jsonl"}]},
        golden=30,
        check=golden_is("How do I", ["system", "user"]),
    ),
    "33b_golden_hh_chosen": Case(
        [{"path": "pairs.jsonl", "source": "gpt-4"}],
        data={"golden": [{"path": "gold.jsonl"}]},
        golden=30,
        check=golden_is("How do I", ["user"]),
    ),
    "33c_golden_alpaca": Case(
        [{"path": "pairs.jsonl", "source": "gpt-4"}],
        data={"golden": [{"path": "alpaca.jsonl"}]},
        golden=30,
        check=golden_is("Answer the question.\n\nHow do I", ["user"]),
    ),
    "35_stack_exchange_paired": Case(human("train.jsonl")),
    "36_unified_feedback": Case([{"path": "train.parquet"}], old=PRESET, data={"golden_sources": ["shp"]}),
    "37_reward_bench": Case(
        [{"path": "filtered.parquet"}],
        sources={("human", "llama-2-7b-chat")},
        check=lambda o: {r["task"] for r in o.records} != {None} and all(r["task"] for r in o.records),
    ),
    "38_empty_reply": Case(
        human("train.jsonl"), {"Wipe>No idea": 28}, roles={"user": 28}, bad={"empty_response": 2}, check=says("empty_response, e.g. row 2")
    ),
    "39_messages_as_json_string": Case(human("export.parquet")),
    "40_mixed_form_rows": Case(human("train.jsonl")),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "16c_tool_call_as_response": (human("train.jsonl", **TOOL_KEYS)[0], "the response is a tool call"),
    "19_multimodal": (human("train.parquet")[0], "column 'images' looks like media, which a text policy cannot see"),
}
FORMATS: dict[str, int | str] = {
    "arrow": 30, "csv": 30, "csv_as_jsonl": "CSV", "dd": "train_prefs", "dd_slice": 10, "dd_split": 24, "feather": 30, "glob": 24, "gz": 30,
    "hive": 30, "hive_plain": "looks like a source", "json": 30, "json_pretty": 30, "list": 30,
    "snapshot": 24, "snapshot_infos": 30, "sqlite": 30,
    "tsv": 30,
    "wrapped": 30, "wrapped1": 30, "zst": 30,
}  # fmt: skip
"""Configurations of 21_formats: pairs that are read, or a part of the refusal."""


def test_every_folder_has_an_expectation() -> None:
    folders = {folder.name for folder in CASES.iterdir() if folder.is_dir()}
    assert folders == READ.keys() | REFUSED.keys() | {"21_formats"}


@pytest.mark.parametrize("name", READ)
def test_case_is_read_as_expected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = READ[name]
    monkeypatch.chdir(CASES / name)
    outcome = CaseOutcome({"train": case.train, "max_bad_fraction": 0.5, **case.data}, tmp_path)
    assert_says(case, outcome)
    print(f"{name}: read; {outcome.lines[0]}")


@pytest.mark.parametrize("name", READ)
def test_configuration_that_came_with_the_case_is_read_the_same_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = READ[name]
    monkeypatch.chdir(CASES / name)
    data = yaml.safe_load((CASES / name / "config.yaml").read_text())["data"]
    if case.old == "read":
        outcome = CaseOutcome({**data, "max_bad_fraction": 0.5}, tmp_path)
        assert_says(case, outcome)
        print(f"{name}: read")
        return
    with pytest.raises(DoraError) as caught:
        CaseOutcome(data, tmp_path)
    assert case.old in str(caught.value) and caught.value.hint
    print(f"{name}: refused; {caught.value.message.splitlines()[0]}")


@pytest.mark.parametrize("name", REFUSED)
def test_case_is_refused_with_the_reason_and_the_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, message = REFUSED[name]
    monkeypatch.chdir(CASES / name)
    with pytest.raises(DoraError) as caught:
        CaseOutcome({"train": [source]}, tmp_path)
    assert message in str(caught.value) and ("leave the row out" in str(caught.value) or "write `" in str(caught.value))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_pairs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES / "21_formats")
    data = yaml.safe_load(Path(f"config_{name}.yaml").read_text())["data"]
    expected = FORMATS[name]
    if isinstance(expected, str):
        with pytest.raises((DoraError, ValidationError)) as caught:
            CaseOutcome(data, tmp_path)
        assert expected in str(caught.value)
        return
    outcome = CaseOutcome(data, tmp_path)
    assert outcome.orders == {"Wipe>No idea": expected} and outcome.facts["rows_bad"] == 0
    if name == "hive":
        assert Counter(record["sources"][0] for record in outcome.records) == {"human": 15, "gpt-4": 15}


def assert_says(case: Case, outcome: CaseOutcome) -> None:
    assert outcome.orders == case.orders
    assert outcome.roles == case.roles
    assert outcome.facts["bad_by_reason"] == case.bad
    assert len(outcome.golden) == case.golden
    if case.sources is not None:
        assert outcome.sources == case.sources
    if case.splits is not None:
        assert outcome.splits == case.splits
    assert case.check(outcome), outcome.facts["warnings"]
