"""The page of data, and the Markdown of a run's records."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from dora_core.config.data import DataConfig
from dora_core.data.inputs import fingerprint_sources
from dora_core.data.preview import preview_data
from flows.report.data_preview import MAX_TEXT, facts_markdown, input_line, render_page
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import ingest
from tests.flows.report.runs import EVIL


def data_of(folder: Path, rows: list[dict[str, Any]]) -> DataConfig:
    path = folder / "prefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig.model_validate({"train": [{"path": str(path)}], "holdout_fraction": 0.3, "max_bad_fraction": 0.5})


def rated(i: int, text: str = "good") -> dict[str, Any]:
    return {"prompt": f"question {i}", "responses": [f"{text} {i}", f"bad {i}"], "rewards": [2, 1], "sources": ["human", "lm"]}


def rows_of(page: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(page.split('id="rows">')[1].split("</script>")[0])
    return rows


def test_texts_cannot_break_the_page(tmp_path: Path) -> None:
    data = data_of(tmp_path, [rated(i, EVIL) for i in range(20)])
    preview, records, bad = preview_data(data, keep=100)
    page = render_page(preview, records, bad, title=EVIL, examples=[(EVIL, [("prompt", EVIL)])])
    assert EVIL not in page and "<script>alert" not in page
    assert rows_of(page)[0]["responses"][0][3] == f"{EVIL} 0"


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    data = data_of(tmp_path, [rated(i, "x" * (MAX_TEXT + 100)) for i in range(20)])
    preview, records, bad = preview_data(data, keep=100)
    text = rows_of(render_page(preview, records, bad, title="t"))[0]["responses"][0][3]
    assert len(text) < MAX_TEXT + 60 and "more characters" in text


def test_factors_and_bad_rows_are_in_the_table(tmp_path: Path) -> None:
    data = data_of(tmp_path, [*(rated(i) for i in range(20)), {"prompt": "q", "responses": ["one"], "rewards": [1], "sources": ["lm"]}])
    preview, records, bad = preview_data(data, keep=100)
    page = render_page(preview, records, bad, title="t", factors={(records[0].record_id, 1): 0.25}, run="run-1")
    rows = rows_of(page)
    assert [one[2] for one in rows[0]["responses"]] == [None, 0.25] and "h of run-1" in page
    assert rows[-1]["kind"] == "quarantine" and rows[-1]["at"] == "prefs.jsonl:20" and rows[-1]["reason"] == "too_few_responses"


def test_ten_thousand_rows(tmp_path: Path) -> None:
    data = data_of(tmp_path, [rated(i) for i in range(10_000)])
    preview, records, bad = preview_data(data, rows=None, keep=10_000, suspect=False)
    page = render_page(preview, records, bad, title="t")
    assert len(rows_of(page)) == 10_000 and len(page) < 5_000_000
    assert input_line(preview.inputs[0]).endswith("jsonl, no preset, shape list, 10,000 rows, trusted: human")


def test_a_run_shows_the_same_counts_as_the_preview(tmp_path: Path) -> None:
    rows = [rated(i) for i in range(30)] + [rated(0), rated(50) | {"rewards": [1, 1]}, rated(51) | {"responses": ["x", None]}]
    data = data_of(tmp_path, rows)
    spec = ingest.Spec(data=data, fingerprints=fingerprint_sources(data))
    facts = ingest.Facts.model_validate(execute(spec, ingest.run, Store(str(tmp_path / "store")))["facts"])
    (item,), (shown,) = facts.inputs, preview_data(data)[0].inputs
    assert (item.rows, item.records, item.bad, item.duplicates) == (shown.rows, shown.counts.records, shown.bad, shown.duplicates)
    assert (item.ties, item.unmeasured) == (shown.counts.ties, shown.counts.unmeasured)
    assert {"train": item.splits.train, "eval": item.splits.eval} == shown.counts.splits
    assert {name: one.responses for name, one in facts.sources.items()} == {n: one.responses for n, one in shown.counts.sources.items()}
    text = facts_markdown(facts)
    assert "| 33 | 31 | 1 | 1 | 1 | 0 |" in text and "shape: list" in text and "missing_response, e.g. row 32 of" in text
    assert "good 3" not in text, "no text of the data leaves it unasked"


def test_choices_of_files_and_parts_left_out_are_shown_by_preview_page_and_run(tmp_path: Path) -> None:
    """A folder with a test file, of which the train file is read, and a message field that nothing reads."""
    turn = {"role": "user", "name": "x"}
    rows = [{"prompt": [turn | {"content": f"Why {i}?"}], "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig.model_validate({"train": [{"path": str(tmp_path / "data"), "source": "human"}]})
    spec = ingest.Spec(data=data, fingerprints=fingerprint_sources(data))
    facts = ingest.Facts.model_validate(execute(spec, ingest.run, Store(str(tmp_path / "store")))["facts"])
    preview, records, bad = preview_data(data, keep=10)
    (choice,) = facts.inputs[0].file_notes
    assert "test" in choice
    for text in (facts_markdown(facts), render_page(preview, records, bad, title="t"), "\n".join(preview.inputs[0].notes)):
        assert choice in html.unescape(text) and "30 message field name" in text


def test_facts_of_earlier_releases_have_no_inputs() -> None:
    old = ingest.Facts(rows_in=1, rows_bad=0, golden_rows=0, bad_by_reason={}, records={"train": 1, "eval": 0}, sources={}, fingerprint="")
    assert facts_markdown(old) == ""
