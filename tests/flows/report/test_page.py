"""The page of a realignment, from facts of the shape that the stages write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.report import html
from flows.report.figures import FIGURES
from flows.report.page import render, sections, stages_in
from infra.store.store import Store
from tests.flows.report.runs import EVIL, MANY, Page, make_facts, make_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, which takes most of the time of a page; figures are looked at by the tests without this fixture."""
    monkeypatch.setattr(html, "figures_for", lambda result: {})


def shown(page: Page) -> str:
    """The page's text without its style sheet, which names every decision."""
    text = re.sub(r"\s+", " ", page.text)
    return text[text.index("demo / brave-otter") :]


def test_the_page_says_what_happened(store: Store) -> None:
    page = Page(render(store, make_run(store, MANY)))
    for words in (
        "refused",
        "against the champion 0.550 [0.500, 0.600] … at equal length 0.500 [0.440, 0.560]",
        "golden pairs 0.700 [0.670, 0.730] synthetic pairs 0.630 [0.600, 0.660]",
        "over plain training (erm) +0.060 [+0.030, +0.090]",
        "worst source",
        "Texts of the data are not shown. report.prompts: 6",
        "dora promote demo 4 --why REASON",
        "brave-otter",
        "4 min 15 s",
        "2026-01-31 12:00 UTC",
        "57",
        "quarantined (0.5%)",
        "the prompt alone reaches AUC 0.71",
        "0.660 [0.630, 0.690]",
        "64.0%",
        "paper 97.0%",
        "KL(policy‖start) per response, nats, at most 50: 61.2",
        "resumed from step 50",
        "r0-00042",
        "champion → 3",
        "lambda: 1.0",
        "0" * 64,
        "dora-align",
    ):
        assert words in re.sub(r"\s+", " ", page.text), words
    assert all(name in page.text for name in MANY)
    drawn = sum(len(FIGURES.get(stage, {})) for stage in make_facts(MANY))
    assert sum(tag == "figure" for tag, _ in page.tags) == drawn == sum(tag == "svg" for tag, _ in page.tags)


def test_the_page_stands_alone(store: Store) -> None:
    html = render(store, make_run(store, ["human", "model"]))
    page = Page(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    outside = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src", "xlink:href")]
    assert [url for url in outside if not url.startswith("#")] == ["http://127.0.0.1:4200/runs/flow-run/1"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(url[1:] in ids for url in outside if url.startswith("#"))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert "url(http" not in html and "@import" not in html


def test_names_from_data_cannot_become_markup(store: Store) -> None:
    run_id = make_run(
        store,
        ["human", EVIL],
        name=EVIL,
        status="failed",
        error={"message": EVIL, "hint": EVIL},
        config={"data": EVIL},
        links={"prefect": "javascript:alert(1)", "mlflow": None, "ray": None},
    )
    page = Page(render(store, run_id))
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags and all(str(attributes["href"]).startswith("#") for tag, attributes in page.tags if tag == "a")
    assert page.text.count(EVIL) >= 6


def test_a_run_without_calibration_says_why(store: Store, words_only: None) -> None:
    run_id = make_run(store, ["human", "model"], without=("classify", "calibrate"), config={"align": {"objective": {"name": "erm"}}})
    text = Page(render(store, run_id)).text
    assert text.count("Not part of this run: the erm objective does not use calibration factors.") == 2


def test_a_failed_run_shows_its_error_and_what_was_finished(store: Store, words_only: None) -> None:
    run_id = make_run(store, ["human", "model"])
    run = store.read_json(f"runs/{run_id}/run.json")
    failed = next(s for s in run["stages"] if s["stage"] == "align")
    failed |= {"state": "failed", "digest": "9" * 64}
    for stage in run["stages"][run["stages"].index(failed) + 1 :]:
        stage |= {"state": "pending", "digest": "8" * 64, "seconds": None}
    error = {"message": "stage align: the loss became NaN at step 7", "hint": "lower align.optimization.learning_rate"}
    store.write_json(f"runs/{run_id}/run.json", run | {"status": "failed", "error": error, "decision": None})
    text = Page(render(store, run_id)).text
    assert "The stage failed: stage align: the loss became NaN at step 7" in text and error["hint"] in text
    assert "Retry on its page in Prefect" in text
    assert "The stage did not finish: the run failed first." in text
    assert "champion stays" in text and "effective sample size" in text


def test_the_report_of_a_failed_run_shows_nothing_of_a_later_run(store: Store) -> None:
    """Fail at align, run again to the end: both runs have the same digests, and the later one promoted."""
    later = make_run(store, ["human", "model"], run_id="demo-20260201-120000-cd34")
    record = store.read_json(f"runs/{later}/run.json")
    promote = record["stages"][-1]
    result = store.read_json(f"promote/{promote['digest']}/result.json")
    result["facts"] |= {"decision": "promoted", "reasons": ["gate passed"]}
    store.write_json(f"promote/{promote['digest']}/result.json", result)
    store.write_json(f"runs/{later}/run.json", record | {"decision": "promoted"})
    at = next(n for n, entry in enumerate(record["stages"]) if entry["stage"] == "classify")
    ends = [{"state": "failed"}, *[{"state": "pending", "seconds": None}] * (len(record["stages"]) - at - 1)]
    stages = record["stages"][:at] + [entry | end for entry, end in zip(record["stages"][at:], ends, strict=True)]
    error = {"message": "stage classify: the golden file is empty", "hint": "give data.golden_sources more rows"}
    old = {"run_id": "demo-20260131-120000-ab12", "status": "failed", "decision": None, "error": error, "stages": stages}
    store.write_json("runs/demo-20260131-120000-ab12/run.json", record | old | {"command": "dora realign -c nightly.yaml"})

    page = Page(render(store, "demo-20260131-120000-ab12"))
    text = re.sub(r"\s+", " ", page.text)
    assert "demo · brave-otter · failed" in text and "promoted" not in shown(page).lower()
    assert error["message"] in text and error["hint"] in text and "dora realign -c nightly.yaml" in text
    assert "0.640" not in text, "the win rate is the later run's"
    assert not [a for tag, a in page.tags if tag == "svg" and "compare" in str(a.get("aria-label"))]
    assert "promoted" in shown(Page(render(store, later)))


def test_a_decision_that_a_later_run_replaced_is_not_shown(store: Store, words_only: None) -> None:
    run_id = make_run(store, ["human", "model"], decision="challenger")  # the result in the store says: refused
    text = shown(Page(render(store, run_id)))
    assert "challenger" in text and "refused" not in text
    assert "This run decided: challenger. A later run has decided about the same model since" in text


def test_a_running_run_can_be_looked_at(store: Store, words_only: None) -> None:
    without = ("classify", "calibrate", "sft", "align", "compare", "evaluate", "promote")
    run_id = make_run(store, ["human", "model"], without=without, status="running", finished=None, decision=None)
    text = Page(render(store, run_id)).text
    assert "The run has not ended" in text and "Took" not in text


def test_the_sections_follow_from_the_descriptors() -> None:
    """What a reader decides by first, the other stages in the order of the pipeline, the trainings together at the end."""
    assert sections() == [
        "promote.html", "compare.html", "evaluate.html", "examples.html", "records.html", "value.html", "trend.html", "drift.html",
        "ingest.html", "classify.html", "calibrate.html", "race.html", "finals.html", "training.html",
    ]  # fmt: skip
    assert set(stages_in("stage")) == {name.removesuffix(".html") for name in sections()} - {"examples", "records", "trend", "training"}


def test_an_evaluation_by_labels_shows_them_and_what_had_no_evidence(store: Store, words_only: None) -> None:
    run_id = make_run(store, ["human", "model"])
    auc = {"policy": {"value": 0.712, "low": 0.69, "high": 0.731, "n": 128}}
    counts = {"desirable": 91, "undesirable": 37, "prompts": 128, "pairs": 0, "accuracy_undesirable": None, "accuracy_desirable": None}
    bare = {"parts": {}, "margins": {"edges": [], "policy": []}, "reward_calibration": None, "lift": {}, "by_source": {}, "by_task": {}}
    bare |= {"reward_confidence": {"bins": [], "accuracy": [], "count": []}}
    gate = {"passed": True, "rules": [], "unchecked": {"lift": "no held-out prompt has a pair of responses"}}
    changes = {
        "evaluate": bare | {"labels": counts | {"auc": auc, "accuracy": auc, "auc_likelihood": None}, "gate": gate},
        "align": {"unpaired": 33},
    }
    for stage, values in changes.items():
        digest = next(entry["digest"] for entry in store.read_json(f"runs/{run_id}/run.json")["stages"] if entry["stage"] == stage)
        result = store.read_json(f"{stage}/{digest}/result.json")
        store.write_json(f"{stage}/{digest}/result.json", result | {"facts": result["facts"] | values})
    text = re.sub(r"\s+", " ", Page(render(store, run_id)).text)
    for words in (
        "91 desirable and 37 undesirable, of 128 prompts",
        "AUC of the implicit reward over all prompts (chance ½)",
        "0.712 [0.690, 0.731]",
        "No held-out prompt has a pair of responses",
        "lift: no evidence, no held-out prompt has a pair of responses",
        "(33 unpaired: one response with a label)",
    ):
        assert words in text, words
    assert "Expected calibration error" not in text and "Paired lift" not in text
