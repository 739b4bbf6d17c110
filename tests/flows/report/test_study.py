"""Findings, figures and the page of a study, from synthetic facts of the shape that ``tasks/stages/study.py`` writes."""

import random
import re
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axis import Axis
from matplotlib.text import Text

from dora_core.evaluation.study_statistics import FACTOR_MEASURES, TABLES, Cell
from flows.report.figures import figures_for
from flows.report.page import ReportError
from flows.report.study import render_study
from flows.report.study_findings import findings, relation
from infra.store.store import Store

EVIL = "<script>alert('x')</script>$&\"quoted\""
ROBUST = {"objective": "dora", "lam": "auto", "factors": "mixture", "temper": "auto"}


def estimate(value: float, width: float = 0.02, seeds: int = 5) -> dict[str, Any]:
    wide = {"t_low": value - 1.4 * width, "t_high": value + 1.4 * width} if seeds > 1 else {"t_low": None, "t_high": None}
    return {"value": value, "low": value - width, "high": value + width, "seeds": seeds, "prompts": seeds * 60} | wide


def make_facts(*, seeds: int = 5, name: str = "dpo") -> dict[str, Any]:
    """A full grid: robust training wins by .08 without noise and loses under much noise with λ = 1."""
    draw = random.Random(0)
    cells: dict[str, Any] = {}
    tables: dict[str, list[str]] = {}

    def add(table: str, win_rate: float, **fields: Any) -> None:
        cell = Cell(**fields)
        tables.setdefault(table, []).append(cell.key())
        if cell.key() in cells:
            return
        twin = cell.model_copy(update={"objective": "erm", "lam": "–", "factors": "none", "temper": "–"})
        rate = estimate(win_rate, 0.025, seeds)
        values = {
            "win": win_rate - 0.08,
            "tie": 0.16,
            "lose": 0.92 - win_rate,
            "gold": 4 * win_rate - 2,
            "accuracy": 0.58,
            "accuracy_gold": 0.6,
        }
        measures = {measure: estimate(value, 0.02, seeds) for measure, value in values.items()} | {"win_rate": rate}
        measures |= {"kl": estimate(draw.uniform(2, 9), 0.6, seeds), "tokens": estimate(draw.uniform(24, 41), 1.5, seeds)}
        measures |= {f"confidence_{kind}": estimate(win_rate - s, 0.03, seeds) for kind, s in (("implicit", 0.4), ("likelihood", 0.55))}
        if twin.key() in cells:
            measures["win_rate_lift"] = estimate(win_rate - cells[twin.key()]["estimates"]["win_rate"]["value"], 0.015, seeds)
        before = cell.model_copy(update={"round": cell.round - 1})
        if cell.round and before.key() in cells:
            measures["win_rate_rise"] = estimate(win_rate - cells[before.key()]["estimates"]["win_rate"]["value"], 0.02, seeds)
        cells[cell.key()] = {
            "params": cell.model_dump() | {"seeds": seeds},
            "metrics": {"win_rate": win_rate},
            "method": cell.method(),
            "twin": twin.key() if twin.key() in cells and cell.objective != "erm" else None,
            "estimates": measures,
            "broken_rules": {},
        }

    for table, losses in (("pairwise", (name, "r_dpo", "exo", "simpo", "robust_dpo")), ("listwise", ("dpo_pl", "rrhf", "lire"))):
        for place, loss in enumerate(losses):
            base = 0.66 + 0.02 * place * (table == "pairwise")
            for also in (table, "confidence"):
                add(also, base, loss=loss, objective="erm")
                if loss != "robust_dpo":
                    add(
                        also,
                        base + {"r_dpo": 0.02, "exo": -0.07}.get(loss, 0.08),
                        loss=loss,
                        **ROBUST,
                    )
    for loss in (name, "lire"):
        add("ablation", 0.66, loss=loss, objective="erm")
        add("ablation", 0.67, loss=loss, objective="dro", lam="auto")
        add("ablation", 0.71, loss=loss, objective="reweight", factors="mixture", temper="auto")
        add("ablation", 0.74, loss=loss, **ROBUST)
        add("ablation", 0.70, loss=loss, **(ROBUST | {"objective": "dora_outer"}))
        add("ablation", 0.75, loss=loss, **(ROBUST | {"objective": "dora_tilted"}))
        add("ablation", 0.76, loss=loss, **(ROBUST | {"factors": "exact"}))
        add("lambda", 0.66, loss=loss, objective="erm")
        for lam, rate in (("0.1", 0.55), ("0.3", 0.62), ("1", 0.70), ("3", 0.73), ("10", 0.71), ("auto", 0.74)):
            add("lambda", rate, loss=loss, **(ROBUST | {"lam": lam}))
    for noise, erm in ((0.0, 0.66), (0.2, 0.63), (0.4, 0.58), (0.6, 0.47)):
        add("noise", erm, loss=name, objective="erm", label_noise=noise)
        add("noise", erm + 0.01, loss=name, objective="dro", lam="auto", label_noise=noise)
        add("noise", erm + 0.09 - 0.4 * noise, loss=name, objective="dora", lam="1", factors="mixture", temper="1", label_noise=noise)
        add("noise", erm + 0.08 - 0.1 * noise, loss=name, label_noise=noise, **ROBUST)
        add("noise", erm + 0.06 - 0.2 * noise, loss=name, label_noise=noise, **(ROBUST | {"objective": "dora_tilted"}))
    for number, (erm, robust) in enumerate(((0.66, 0.74), (0.70, 0.80), (0.69, 0.83))):
        add("rounds", erm, loss=name, objective="erm", round=number)
        add("rounds", robust, loss=name, round=number, **ROBUST)
    for shift in (0.0, 0.5, 1.0):
        add("shifted_golden", 0.66, loss=name, objective="erm", golden_shift=shift)
        add("shifted_golden", 0.72 - 0.05 * shift, loss=name, golden_shift=shift, **ROBUST)

    rows, scatter = [], {}
    truth = [draw.uniform(0.01, 3.0) ** 1.3 for _ in range(400)]
    for densities in ("classifiers", "exact"):
        for form, error in (("mixture", 0.25), ("paper", 0.7), ("released", 0.5)):
            error = 0.0 if (densities, form) == ("exact", "mixture") else error
            values = {"pearson": 1 - error / 3, "spearman": 1 - error / 4, "error": error, "ess": 0.5 + error / 2, "kl": error / 8}
            label = f"{form} · {densities}"
            rows.append(
                {"label": label, "form": form, "densities": densities, "used": "raw", "golden_shift": 0.0}
                | {"estimates": {m: estimate(v, 0.02, seeds) for m, v in values.items()}}
            )
            scatter[label] = {"truth": truth, "h": [abs(t + draw.gauss(0, error)) for t in truth]}
    used = {"label": "mixture · classifiers · τ=auto, cap 0.99", "used": "τ=auto, cap 0.99"}
    rows.insert(3, rows[0] | used)
    return {
        "tables": tables | {"calibration": [row["label"] for row in rows]},
        "missing": {},
        "cells": cells,
        "calibration": rows,
        "scatter": scatter,
        "settings": {
            "seeds": list(range(seeds)),
            "confidence": 0.95,
            "bootstrap_samples": 2000,
            "testbed": {"prompts": 240, "alpha": 0.25},
            "generate": {"samples": 4, "temperature": 1.0},
            "losses": {name: {"name": "dpo", "beta": 0.1}},
            "optimization": {name: {"epochs": 2.0, "learning_rate": 0.001}},
        },
    }


def saved(tmp_path: Path, facts: dict[str, Any] | None, *, project: str = "study", status: str = "completed") -> tuple[Store, str]:
    store, digest = Store(str(tmp_path / "store")), "d" * 64
    if facts is not None:
        store.mark_done(store.folder("study", digest), {"stage": "study", "digest": digest, "facts": facts})
    stage = {"label": "tables", "stage": "study", "digest": digest, "state": "ran"}
    run = {
        "run_id": "0a1b2c3d", "project": project, "name": "quiet-otter", "status": status, "started": 1.79e9, "finished": 1.79e9 + 571,
        "stages": [{"label": "seed 0", "stage": "batch", "digest": "e" * 64, "state": "ran"}, stage], "error": None,
        "links": {"prefect": None, "mlflow": "http://127.0.0.1:5000/#/experiments/1", "ray": "javascript:alert(1)"},
        "config": {"project": project},
    }  # fmt: skip
    store.write_json(f"runs/{run['run_id']}/run.json", run)
    return store, run["run_id"]


# ------------------------------------------------------------------------------------------------------------ findings


def test_relation() -> None:
    here = estimate(0.6, 0.02)
    cases = {0.70: "above", 0.62: "ahead of", 0.6001: "level with", 0.58: "behind", 0.50: "below"}
    assert {value: relation(estimate(value, 0.02), here) for value in cases} == cases


def test_findings_say_what_the_numbers_say() -> None:
    found = {f.headline: f for f in findings(make_facts())}
    text = "\n".join(found)
    assert found["Of 15 policies of different losses, 15 are better than their start and 0 worse, intervals clear of ½"].mark == "met"
    above, below = "Above plain training (erm): dpo + dora, simpo + dora, dpo_pl + dora, rrhf + dora, lire + dora", "Below erm: exo + dora"
    assert above in found and below in found and "Ahead of erm by the paired difference only: r_dpo + dora" in found
    assert found[above].items[0] == (
        "dpo · dora λ=auto · mixture τ=auto: 0.740 [0.715, 0.765] against 0.660 [0.635, 0.685]; paired +0.080 [+0.065, +0.095]"
    )
    assert found[below].items[0].startswith("exo · dora λ=auto · mixture τ=auto: 0.630 ")
    assert "lire: the paper's order dora > reweight > dro holds (dora is ahead of reweight, reweight is ahead of dro)" in found
    assert "dpo: best λ is auto, win rate 0.740 [0.715, 0.765]; erm has 0.660 [0.635, 0.685]" in found
    assert "Label noise: dpo + dora λ=1 · mixture τ=1 is below erm at 40%" in found
    assert found["Label noise: dpo + dora λ=auto · mixture τ=auto is not behind erm at any level tried"].mark == "met"
    assert "h of form mixture is closest to the truth; intervals apart from released and paper" in found
    assert "1e" not in text and "None" not in text and "nan" not in text


def test_policies_that_lose_to_their_start_are_named() -> None:
    facts = make_facts()
    facts["cells"][Cell(loss="exo", **ROBUST).key()]["estimates"]["win_rate"] = estimate(0.4)
    first = findings(facts)[0]
    assert first.mark == "broken" and "14 are better than their start and 1 worse" in first.headline
    assert first.items == ("worse: exo · dora λ=auto · mixture τ=auto: 0.400 [0.380, 0.420]",)


def test_an_order_that_fails_is_said_to_fail() -> None:
    facts = make_facts()
    for cell in facts["cells"].values():
        if cell["params"]["objective"] == "dro":
            cell["estimates"]["win_rate"] = estimate(0.90)
    found = [f for f in findings(facts) if "paper's order" in f.headline]
    assert [f.mark for f in found] == ["broken", "broken"] and "reweight is below dro" in found[0].headline


def test_a_paired_difference_is_doubted_where_t_disagrees() -> None:
    facts = make_facts()
    lift = facts["cells"][Cell(loss="dpo", **ROBUST).key()]["estimates"]["win_rate_lift"]
    lift |= {"t_low": -0.01, "t_high": 0.17}
    above = next(f for f in findings(facts) if f.headline.startswith("Above"))
    assert above.items[0].endswith("but the t-interval over seeds contains 0")


def test_rounds_are_judged_by_their_paired_rise() -> None:
    """dora rises by .06 and .03 (± .02), erm by .04 and then falls by .01, which is not shown."""
    found = [f for f in findings(make_facts()) if f.headline.startswith("Rounds")]
    assert [(f.mark, f.headline) for f in found] == [
        ("open", "Rounds: dpo · erm is shown to rise in round 1 only"),
        ("met", "Rounds: dpo · dora λ=auto · mixture τ=auto rises in every round"),
    ]
    assert found[1].items[1].startswith("round 2: 0.830 [0.805, 0.855]; paired +0.030 [+0.010, +0.050]; against erm paired +0.140")


def test_a_round_that_the_guard_rails_would_stop_says_so() -> None:
    facts = make_facts()
    assert not any("guard rails" in item for f in findings(facts) for item in f.items)
    of_round_1 = facts["cells"][Cell(loss="dpo", round=1, **ROBUST).key()]
    of_round_1["broken_rules"] = {"0": {"kl": "…"}, "3": {"kl": "…", "one_answer": "…"}}
    items = next(f for f in findings(facts) if f.headline.startswith("Rounds: dpo · dora")).items
    assert items[0].endswith("; guard rails would stop it: kl in 2, one_answer in 1 of 5 seeds") and "guard rails" not in items[1]


# ------------------------------------------------------------------------------------------------------------- figures


def test_every_table_has_a_figure_and_no_label_leaves_it() -> None:
    drawn = figures_for("study", {"facts": make_facts()})
    assert set(drawn) == {*TABLES, "against_truth"}
    for name, figure in drawn.items():
        figure.savefig(BytesIO(), format="png", dpi=80)
        ticks = {tick.label1 for axis in figure.findobj(Axis) for tick in axis.get_major_ticks()}
        shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in ticks]
        boxes = {t.get_text(): t.get_window_extent() for t in shown}
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes.values()), (name, boxes)
        overlaps = [(a, b) for a, b in combinations(boxes, 2) if boxes[a].padded(-2).overlaps(boxes[b].padded(-2))]
        assert not overlaps, (name, overlaps)


def test_a_study_of_one_table_has_its_figures_only() -> None:
    facts = make_facts()
    facts |= {"tables": {"pairwise": facts["tables"]["pairwise"]}, "calibration": [], "scatter": {}}
    assert set(figures_for("study", {"facts": facts})) == {"pairwise"}


# ---------------------------------------------------------------------------------------------------------------- page


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if "id" in given:
            self.ids.append(given["id"] or "")
        self.loaded += [given[name] or "" for name in ("src", "srcset") if name in given] + ([tag] if tag in ("script", "link") else [])


def test_the_page_has_every_table_and_loads_nothing(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, make_facts()))
    reader = Reader()
    reader.feed(page)
    assert set(TABLES) | {"findings", "settings"} <= set(reader.ids) and len(set(reader.ids)) == len(reader.ids)
    assert reader.loaded == [] and not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == len(TABLES) + 1  # two for calibration
    assert "Round 0 is the alignment on the given data" in page and "(i) A golden reference" in page
    assert all(measure.title in page for measure in FACTOR_MEASURES.values())
    assert "0.740" in page and "0.715 … 0.765" in page and "0.705 … 0.775" in page  # value, bootstrap and t
    assert "javascript:" not in page and "http://127.0.0.1:5000" in page
    assert "learning_rate: 0.001" in page


def test_names_are_escaped(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, make_facts(name=EVIL), project=EVIL))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_one_seed_has_no_t_interval(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, make_facts(seeds=1)))
    assert "× 1 seed." in page and "None" not in page


def test_a_study_that_has_not_finished_says_so(tmp_path: Path) -> None:
    page = render_study(*saved(tmp_path, None, status="failed"))
    assert "There are no tables yet: the run is failed." in page


def test_other_runs_are_refused(tmp_path: Path) -> None:
    store, run_id = saved(tmp_path, None)
    run = store.read_json(f"runs/{run_id}/run.json")
    store.write_json(f"runs/{run_id}/run.json", run | {"stages": run["stages"][:1]})
    with pytest.raises(ReportError, match="is no study"):
        render_study(store, run_id)
    with pytest.raises(ReportError, match="no manifest"):
        render_study(store, "nothing")
