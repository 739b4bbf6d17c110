"""A study for the tests of its report: synthetic facts of the shape that ``tasks/stages/study.py`` writes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dora_core.evaluation.study_statistics import Cell
from infra.store.store import Store

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
        twin = cell.model_copy(update={"objective": "erm", "lam": "–", "factors": "none", "temper": "–", "baseline": "–"})
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
        golden = Cell(loss=cell.loss, objective="erm", baseline="golden_only").key()
        against_golden = golden in cells and not cell.is_baseline and not (cell.label_noise or cell.golden_shift or cell.round)
        if against_golden:
            measures["win_rate_over_golden"] = estimate(win_rate - cells[golden]["estimates"]["win_rate"]["value"], 0.015, seeds)
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
            "golden": golden if against_golden else None,
            "estimates": measures,
            "broken_rules": {},
        }

    for table, loss, rate in (("pairwise", name, 0.68), ("listwise", "lire", 0.84)):
        add(table, rate, loss=loss, objective="erm", baseline="golden_only")
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
        empty = {"spec": {}, "inputs": {}, "rows": 1, "metrics": {}, "seconds": 1.0}
        store.mark_done(store.folder("study", digest), {"stage": "study", "digest": digest, "facts": facts} | empty)
    stage = {"label": "tables", "stage": "study", "digest": digest, "state": "ran"}
    run = {
        "run_id": "0a1b2c3d", "project": project, "name": "quiet-otter", "status": status, "started": 1.79e9, "finished": 1.79e9 + 571,
        "stages": [{"label": "seed 0", "stage": "batch", "digest": "e" * 64, "state": "ran"}, stage], "error": None,
        "links": {"prefect": None, "mlflow": "http://127.0.0.1:5000/#/experiments/1", "ray": "javascript:alert(1)"},
        "config": {"project": project},
    }  # fmt: skip
    store.write_json(f"runs/{run['run_id']}/run.json", run)
    return store, run["run_id"]
