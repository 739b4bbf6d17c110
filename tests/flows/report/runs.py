"""Runs for the tests of reports: facts of the shape that the stages write (no texts, no models), and pages as a browser reads them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from io import BytesIO
from itertools import combinations
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from dora_core.classifier.text_statistics import STATISTICS
from infra.store.store import Store
from tasks.runtime.descriptor import StageResult
from tasks.stages.registry import parse_result

MANY = ["human", *(f"vendor-{n}/instruct-model-{n}b-preview-2026-0{n % 9 + 1}" for n in range(1, 15))]
EVIL = "<script>alert('x')</script>$&\"quoted\""


def estimate(value: float, width: float = 0.03, n: int = 400) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width, "n": n}


def make_facts(sources: list[str]) -> dict[str, dict[str, Any]]:
    """Facts of every stage for a mixture of these sources, the first one golden."""
    draw = random.Random(0)
    synthetic = sources[1:] or ["model"]
    steps = list(range(120))
    curve = {
        "step": steps,
        "loss": [0.69 * math.exp(-s / 90) + draw.gauss(0, 0.03) for s in steps],
        "grad_norm": [abs(draw.gauss(1.2, 0.3)) for _ in steps],
        "learning_rate": [1e-3 * min(1, s / 12) * (1 - s / 120) for s in steps],
        "tokens_per_second": [draw.gauss(15_000, 800) for _ in steps],
    }
    robust = (
        curve
        | {
            "objective": [0.9 * math.exp(-s / 80) + draw.gauss(0, 0.04) for s in steps],
            "accuracy": [0.5 + 0.2 * (1 - math.exp(-s / 40)) + draw.gauss(0, 0.05) for s in steps],
            "margin": [1.5 * (1 - math.exp(-s / 60)) + draw.gauss(0, 0.2) for s in steps],
            "weight_ess": [0.6 + draw.gauss(0, 0.05) for _ in steps],
            "max_weight": [0.1 + abs(draw.gauss(0, 0.03)) for _ in steps],
            "lambda": [1e6 if s == 0 else 0.2 + 0.01 * s for s in steps],
        }
        | {f"weight_share_{name}": [1 / len(sources) for _ in steps] for name in sources}
    )
    confidence = [0.05 + 0.1 * k for k in range(10)]
    edges = [k / 10 for k in range(31)]
    shares = [draw.uniform(0.5, 1.5) for _ in sources]
    shares = [s / sum(shares) for s in shares]

    def classifier() -> dict[str, Any]:
        auc = draw.uniform(0.6, 0.95)
        quality = {"auc": auc, "auc_low": auc - 0.03, "auc_high": auc + 0.03, "log_loss": 0.5, "ece": 0.021, "temperature": 1.3}
        controls = {"prompt_only_auc": draw.uniform(0.48, 0.53), "length_only_auc": draw.uniform(0.5, 0.6), "within_prompt_auc": auc}
        family = {"auc_family_low": auc - 0.04, "auc_family_high": auc + 0.04, "told_apart": True}
        reliability = {
            "confidence": confidence,
            "accuracy": [min(1.0, max(0.0, c + draw.gauss(0, 0.05))) for c in confidence],
            "count": [draw.randrange(20, 400) for _ in confidence],
        }
        return {"n": draw.randrange(500, 3000), "gamma": 1.0, "reliability": reliability} | quality | controls | family

    def factor() -> dict[str, Any]:
        middle = draw.uniform(0.6, 1.4)
        quantiles = {"0.05": middle * 0.3, "0.25": middle * 0.7, "0.5": middle, "0.75": middle * 1.4, "0.95": middle * 2}
        return {"n": draw.randrange(500, 3000), "mean": middle * 1.1, "quantiles": quantiles}

    models = {"policy": 0.66, "start": 0.55, "erm": 0.62, "golden_only": 0.6}

    def by_model(change: Callable[[float], dict[str, Any]], *leave_out: str) -> dict[str, Any]:
        found = {m: change(v) for m, v in models.items() if m not in leave_out}
        own = {m: found.pop(m) for m in ("policy", "start") if m in found}
        return own | {"twins": found}

    parts = {
        part: {
            "accuracy": by_model(lambda v, shift=shift: estimate(v + shift), "start"),
            "margin": by_model(lambda v: estimate(3 * v - 1, 0.2), "start"),
            "ranking": by_model(lambda v, shift=shift: estimate(v + shift)),
        }
        for part, shift in (("all", 0.0), ("golden", 0.04), ("synthetic", -0.03))
    }

    def drifted() -> dict[str, Any]:
        spread = {"before": factor()["quantiles"], "new": None, "ks": None}
        numbers = {"responses": {"before": 900, "now": 1000, "new": 100}, "share": {"before": 0.25, "now": 0.27}}
        return numbers | {"length": spread, "auc": {"fit": 0.9, "new": 0.85}, "h": spread | {"new": factor()["quantiles"]}}

    def compared(rate: float, groups: list[str], by_task: list[str]) -> dict[str, Any]:
        def outcome(rate: float, n: int = 150) -> dict[str, Any]:
            shares = {"win": rate - 0.1, "tie": 0.2, "lose": 0.9 - rate}
            return {name: estimate(value, 0.04, n) for name, value in shares.items()} | {"win_rate": estimate(rate, 0.05, n)}

        tables = {"source": {g: outcome(draw.uniform(0.4, 0.7), 30) for g in groups}, "task": {t: outcome(0.35, 25) for t in by_task}}
        return outcome(rate) | {
            "sign_test_p": 0.0004,
            "length_controlled": estimate(rate - 0.05, 0.06),
            "length": {"unit": "tokens", "policy": 31.4, "opponent": 27.9},
            "records": 150,
            "records_left_out": 3,
            "pairs": 600,
            "pairs_without_score": 12,
            "by_source": tables["source"],
            "by_task": tables["task"],
            "worst_group": {"by": "source", "name": groups[0]} | tables["source"][groups[0]]["win_rate"],
        }

    rules = [
        {
            "name": "accuracy",
            "passed": True,
            "value": 0.63,
            "threshold": 0.5,
            "message": "lower bound of held-out accuracy above 0.5: 0.63",
        },
        {
            "name": "kl",
            "passed": False,
            "value": 61.2,
            "threshold": 50.0,
            "message": "KL(policy‖start) per response, nats, at most 50: 61.2",
        },
    ]
    return {
        "ingest": {
            "rows_in": 12_345,
            "rows_bad": 57,
            "bad_by_reason": {"empty_response": 31, "nan_reward": 20, "duplicate_id": 6},
            "records": {"train": 11_060, "eval": 1_228},
            "sources": {
                name: {"responses": int(40_000 * share), "share": share, "mean_chars": 812.4, "measured_rewards": int(39_000 * share)}
                for name, share in zip(sources, shares, strict=True)
            },
            "golden_rows": 500,
            "repeated_responses": 12,
            "fingerprint": "f" * 64,
        },
        "classify": {
            "classifier": {"stage": "classify", "digest": "b" * 64},
            "reused": False,
            "reason": "no earlier classifier",
            "seconds_fit": 31.0,
            "sources": {name: classifier() for name in synthetic},
            "unlabelled": None,
            "deep_folds": 3,
            "warnings": [f"source {synthetic[0]}: the prompt alone reaches AUC 0.71"],
            "curve": [
                {"fold": f, "step": s, "loss": 0.7 * math.exp(-s / 50) + 0.01 * f, "validation_loss": 0.6}
                for f in range(3)
                for s in range(0, 100, 10)
            ],
        },
        "calibrate": {
            "form": "mixture",
            "scored_rows": 20_000,
            "reused_rows": 4_576,
            "rows_per_second": 310.0,
            "padding_waste": 0.04,
            "rows": {"in": 24_576, "scored": 24_576, "unscored": 0, "clipped": 3, "capped": 246},
            "h": {name: factor() for name in sources},
            "histogram": {
                "edges": edges,
                "counts": {name: [int(900 * math.exp(-((e - 1) ** 2)) / (k + 1)) for e in edges[1:]] for k, name in enumerate(sources)},
            },
            "ess": 0.64,
            "ess_by_form": {"mixture": 0.64, "paper": 0.97, "released": 0.71},
            "capped_fraction": 0.01,
            "nan": 0,
            "no_shift": False,
            "ratio": "conditional",
            "balance": {
                "statistics": {name: {"before": 0.05 * (i - 9), "after": 0.01 * (i - 9)} for i, name in enumerate(STATISTICS)},
                "responses": 20_000,
                "golden": 6_144,
            },
            "alpha": {"value": 0.25, "low": 0.25, "high": 0.25, "estimated": False},
            "tau": 1.0,
            "shares": dict(zip(sources, shares, strict=True)),
            "warnings": [],
        },
        "value": {
            "golden_labels": 2_500,
            "golden_prompts": 2_400,
            "sources": {
                name: {
                    "n": 1_200,
                    "auc": 0.81,
                    "mean_h": 0.9,
                    "method": "reward_model",
                    "agreement": estimate(0.74),
                    "rate": {"value": 0.3, "low": 0.1, "high": 0.55, "n": 2_400},
                    "worth": 360.0,
                    "verdict": "weight",
                    "profile": {"0": 0.52, "0.03": 0.515, "0.1": 0.51, "0.3": 0.505, "1": 0.53},
                }
                for name in synthetic
            },
            "golden_loss": 0.52,
            "factor": "h·trust",
            "losses": {"none": 0.507, "h": 0.506, "trust": 0.506, "h·trust": 0.505},
            "golden_alone": 0.52,
            "all_alike": 0.55,
            "fits": 61,
        },
        "sft": {"steps": 120, "records": 4_000, "resumed_from": None, "loss": None, "objective": None, "curve": curve},
        "align": {
            "steps": 120,
            "records": 11_060,
            "resumed_from": 50,
            "loss": {"name": "dpo", "beta": 0.1},
            "objective": {"name": "dora", "lambda": 1.0},
            "heaviest": [{"record_id": "r0-00042", "steps": 17, "max_weight": 0.31}],
            "curve": robust,
        },
        "drift": {
            "decision": "refit",
            "reason": "characters a response of model moved by 0.41",
            "keep": None,
            "stop": None,
            "previous": {
                "records": {"stage": "ingest", "digest": "e" * 64},
                "classify": {"stage": "classify", "digest": "d" * 64},
                "calibrate": None,
            },
            "sources": {name: drifted() for name in sources} | {"gone": {"auc": {"fit": 0.8, "new": None}}},
            "rules": [
                {"name": name, "source": None, "value": 0.4, "chance": 0.05, "refit_at": 0.3, "refuse_at": 0.8}
                | {"verdict": verdict, "message": f"{name} of {EVIL}: {verdict}"}
                for name, verdict in (("share_shift", "ok"), ("length_shift", "refit"), ("auc_drop", "refuse"), ("h_shift", "not judged"))
            ],
        },
        "compare": {
            "judge": "reward_model",
            "wins": {
                name: compared(rate, sources, ["math", EVIL]) for name, rate in (("start", 0.62), ("champion", 0.55), ("chosen", 0.31))
            },
            "golden": sources[:1],
            "warnings": [],
        },
        "evaluate": {
            "parts": parts,
            "kl": estimate(61.2, 4.0, 64),
            "by_task": {"math": {"accuracy": estimate(0.6), "accuracy_policy": 0.6, "ranking_policy": 0.64, "ranking_start": 0.5, "n": 90}},
            "by_column": {
                EVIL: {
                    "groups": {
                        name: {"accuracy": estimate(0.6, n), "accuracy_policy": 0.6, "ranking_policy": 0.64, "ranking_start": 0.5, "n": 90}
                        for name, n in ((EVIL, 0.05), ("[0, 4)", 0.1))
                    },
                    "without": 7,
                    "merged": 3,
                },
            },
            "worst_group": {"by": "source", "name": sources[-1]} | estimate(0.48, 0.05, 40),
            "reward_calibration": {
                "beta": 0.1,
                "ece": estimate(0.071, 0.02),
                "confidence": [0.53, 0.58, 0.64, 0.72, 0.83, 0.97],
                "accuracy": [0.51, 0.55, 0.58, 0.61, 0.66, 0.7],
                "low": [0.44, 0.5, 0.52, 0.52, 0.5, 0.4],
                "high": [0.57, 0.6, 0.66, 0.7, 0.8, 0.95],
                "count": [210, 120, 80, 40, 12, 3],
            },
            "reward_correlation": {"implicit": estimate(0.21), "likelihood": estimate(0.3), "likelihood_start": None},
            "by_source": {
                name: {
                    "accuracy": estimate(0.6),
                    "accuracy_policy": 0.6,
                    "ranking_policy": draw.uniform(0.55, 0.75),
                    "ranking_start": 0.55,
                    "n": draw.randrange(20, 300),
                }
                for name in sources
            },
            "margins": {
                "edges": [k - 5 for k in range(13)],
                "policy": [1, 4, 9, 20, 40, 60, 70, 50, 30, 12, 5, 1],
                "twins": {"erm": [30] * 12},
            },
            "reward_confidence": {"bins": [0.1, 0.4, 0.9, 1.6], "accuracy": [0.52, 0.6, 0.71, 0.8], "count": [80, 80, 80, 79]},
            "lift": {"start_all": estimate(0.11)},
            "twins": {
                name: {"accuracy": estimate(0.6), "ranking": estimate(0.6), "win_rate": estimate(0.55)}
                | {"accuracy_lift": estimate(0.04), "win_rate_lift": estimate(0.06)}
                for name in ("erm", "golden_only")
            },
            "summary": "win rate against the start 0.640; better than plain training (erm) by +0.060",
            "gate": {"passed": False, "rules": rules},
        },
        "promote": {
            "decision": "refused",
            "model_name": "demo",
            "version": "4",
            "aliases": {"champion": "3", "previous": "2"},
            "reasons": ["KL(policy‖start) per response, nats, at most 50: 61.2"],
        },
    }


def result_of(stage: str, facts: dict[str, Any]) -> StageResult[Any]:
    """A stage's result with these facts."""
    content = {"stage": stage, "digest": "0" * 64, "spec": {}, "inputs": {}, "rows": 10, "metrics": {}, "facts": facts, "seconds": 2.5}
    return parse_result(content)


def make_run(
    store: Store, sources: list[str], *, without: tuple[str, ...] = (), run_id: str = "demo-20260131-120000-ab12", **manifest: Any
) -> str:
    """A finished run in the store; the stages named in ``without`` were not planned."""
    facts = {stage: f for stage, f in make_facts(sources).items() if stage not in without}
    stages = []
    for n, (stage, values) in enumerate(facts.items()):
        digest = f"{n:x}" * 64
        inputs = {"records": {"stage": "ingest", "digest": "0" * 64}} if n else {}
        result = {
            "stage": stage,
            "digest": digest,
            "spec": {},
            "facts": values,
            "inputs": inputs,
            "rows": 10,
            "seconds": 2.5,
            "metrics": {},
            "files": {},
        }
        store.write_json(f"{stage}/{digest}/result.json", result)
        stages.append(
            {"stage": stage, "label": stage, "digest": digest, "state": "ran" if n else "cached", "reason": "runs: data.train changed"}
            | {"seconds": 2.5 * n, "mlflow_run_id": f"run{n}", "submission_id": f"dora-{stage}-{digest[:12]}-1" if n else None}
        )
    run = {
        "run_id": run_id,
        "name": "brave-otter",
        "project": "demo",
        "config": {
            "project": "demo",
            "align": {"objective": {"name": "dora", "lambda": 1.0}},
            "data": {"train": [{"path": "data.parquet"}]},
        },
        "started": 1_769_860_800.0,
        "finished": 1_769_861_055.0,
        "status": "completed",
        "error": None,
        "stages": stages,
        "links": {"prefect": "http://127.0.0.1:4200/runs/flow-run/1", "mlflow": "sqlite:///mlflow.db", "ray": None},
        "decision": facts.get("promote", {}).get("decision"),
    }
    store.write_json(f"runs/{run_id}/run.json", run | manifest)
    return run_id


class Page(HTMLParser):
    """What a browser would act upon: tags with attributes, ids, and visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_text_fits(figure: Figure, name: Iterable[str]) -> None:
    """Nothing leaves the figure, and no two texts overlap."""
    figure.savefig(BytesIO(), format="png", dpi=100)
    inside = figure.get_tightbbox().padded(-0.05)
    assert inside.x0 >= 0 and inside.y0 >= 0 and inside.x1 <= figure.get_figwidth() and inside.y1 <= figure.get_figheight(), name
    ticks = {tick.label1 for axis in figure.findobj(Axis) for tick in axis.get_major_ticks()}
    texts = [t.get_window_extent().padded(-2) for t in figure.findobj(Text) if t not in ticks and t.get_visible() and t.get_text()]
    overlaps = [(a, b) for a, b in combinations(texts, 2) if a.width > 0 and b.width > 0 and a.overlaps(b)]
    assert not overlaps, (name, overlaps)
