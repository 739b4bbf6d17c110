"""Worth of the race: its choice beside golden records alone, all records, density ratios and fixed ``dora``, in random worlds.

Every world (``dora_core/testbed/worlds.py``) is drawn from its number, with three data seeds. In each the factors h come from cross-fitted
classifiers and label trust from a cross-fitted reward model, as in a run: nothing knows the truth but the last column. Policies are
compared by gold win rate against the start, all at the same KL divergence from it.

The promise: the choice is nowhere below the better of {erm, golden_only} by more than one standard error, and on average above both and
above fixed ``dora``. "Better" is known in hindsight only, per world, from the mean of its seeds.

Results are kept in --state, one line per world and seed, so an interrupted benchmark continues.

    python -m tests.benchmarks.bench_worlds [--worlds 0-23] [--seeds 3] [--state FILE] [--save FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from rich.progress import track

from dora_core.calibration import calibrate, mixture_factor
from dora_core.config.method import CalibrationConfig
from dora_core.selection.label_trust import held_out_label_probabilities, reward_model_trust
from dora_core.selection.proxy import Floats, Head, ProxyPairs, choose_ridge, fit
from dora_core.selection.race import Entrant, Race, RaceData, entrants, fit_objective, ridge_of
from dora_core.testbed.worlds import WorldData, WorldModel, random_world
from tests.benchmarks.harness import Row, argument_parser, report

FOLDS, CLASSIFIER_FOLDS = 10, 3
CLASSIFIER_RIDGE = 1.0
NAMES = ("golden_only", "erm", "reweight", "dora", "choice", "hindsight")


def factors(data: WorldData, fold: np.ndarray) -> Floats:
    """Calibrated h of every record, the mean over its responses, from the ratios of responses given the prompt.

    Both responses of a pair are rows of one classifier: one for better and one for worse responses would tell it the golden labels.
    """
    counts = np.bincount(data.source_N).astype(float)
    prompts, golden = np.concatenate([data.prompt_Np] * 2), np.concatenate([data.golden_N] * 2)
    joint = np.column_stack([np.concatenate([data.better_Nd, data.worse_Nd]), prompts])
    log_w = np.empty((2 * len(fold), len(counts) - 1))
    for source in range(1, len(counts)):
        used = np.concatenate([(data.source_N == 0) | (data.source_N == source)] * 2)
        log_w[:, source - 1] = log_odds(joint, golden, used, np.concatenate([fold] * 2)) - log_odds(
            prompts, golden, used, np.concatenate([fold] * 2)
        )
    ratios = np.exp(np.clip(log_w, -30, 30))
    return calibrate(mixture_factor(ratios, counts / counts.sum()), CalibrationConfig()).h.reshape(2, -1).mean(axis=0)


def log_odds(features: Floats, golden: np.ndarray, used: np.ndarray, fold: np.ndarray) -> Floats:
    """log p(golden)/p(source) of every row from logistic regression on the ``used`` ones, with the class balance taken out; out of fold
    where the row is used, the mean of the folds' classifiers elsewhere."""
    rows = np.column_stack([features, np.ones(len(features))])
    out = np.zeros(len(rows))
    for k in range(CLASSIFIER_FOLDS):
        seen = used & (fold != k)
        head = fit(rows[seen], np.ones(seen.sum()), golden[seen].astype(float), ridge=CLASSIFIER_RIDGE)
        margin = head.margins(rows) - np.log(golden[seen].mean() / (1 - golden[seen].mean()))
        out += np.where(used, np.where(fold == k, margin, 0.0), margin / CLASSIFIER_FOLDS)
    return out


def measure(number: int, seed: int) -> dict[str, float | str]:
    """Gold win rates of one world and seed."""
    model = WorldModel(random_world(number).evolve(seed=seed))
    data = model.sample()
    rng = np.random.default_rng([number, seed])
    n = len(data.source_N)
    folds = min(FOLDS, int(data.golden_N.sum()))
    fold = np.empty(n, np.int64)
    for part in (np.flatnonzero(data.golden_N), np.flatnonzero(~data.golden_N)):
        fold[rng.permutation(part)] = np.arange(len(part)) % folds
    pairs = ProxyPairs(data.difference_Nd, data.source_N, np.arange(n), fold, np.ones(n))
    h = factors(data, rng.permutation(np.arange(n) % CLASSIFIER_FOLDS))
    golden = data.golden_N.astype(float)
    ridge = ridge_of(pairs)
    trust_ridge = choose_ridge(pairs, golden)
    trust = reward_model_trust(pairs, trust_ridge, samples=50)
    labels_KP = held_out_label_probabilities(pairs, trust, trust_ridge)
    race = Race(RaceData(pairs, h, trust.probability_P, labels_KP), ridge)
    field = entrants(factors=True, trust=True)
    for entrant in field:
        race.run(entrant)
    choice = race.choose()

    def final(entrant: Entrant) -> Head:
        labels = race.data.labels(entrant)
        if entrant.is_weighting:
            return fit(pairs.difference_PD, race.data.weights(entrant), labels, ridge=ridge)
        of = {"objective": entrant.objective, "ess_target": entrant.ess_target}
        return fit_objective(pairs.difference_PD, pairs.weight_P, h, labels, ridge=ridge, **of)

    if choice.robust is None:
        weight, label = choice.recipe(data.golden_N, h, trust.probability_P)
        chosen = fit(pairs.difference_PD, weight, label, ridge=ridge)
    else:
        chosen = final(choice.robust)
    rate = {entrant.name: float(model.gold_win_rate(final(entrant).theta_D).mean()) for entrant in field}
    shown = {"golden_only": "golden_only", "erm": "erm", "reweight": "reweight", "dora": "dora @ 0.9"}
    return {name: rate[of] for name, of in shown.items()} | {
        "choice": float(model.gold_win_rate(chosen.theta_D).mean()),
        "hindsight": max(rate.values()),
        "reason": choice.reason,
    }


def kept(state: Path) -> dict[tuple[int, int], dict[str, float | str]]:
    if not state.exists():
        return {}
    lines = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(line["world"], line["seed"]): line for line in lines}


def mean_and_error(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def tables(found: dict[tuple[int, int], dict[str, float | str]], worlds: list[int], seeds: int) -> tuple[list[Row], list[Row]]:
    """A row per world, and the summary."""
    rate = {name: np.array([[float(found[w, s][name]) for s in range(seeds)] for w in worlds]) for name in NAMES}
    golden_is_better = rate["golden_only"].mean(axis=1) > rate["erm"].mean(axis=1)
    better = np.where(golden_is_better[:, None], rate["golden_only"], rate["erm"])
    rows, below = [], 0
    for i, number in enumerate(worlds):
        gap, error = mean_and_error(rate["choice"][i] - better[i])
        below += gap < -error
        world = random_world(number)
        described = (
            f"{number}: {world.records} records, {world.golden_share:.0%} golden, {world.sources} sources, "
            f"{world.features} features; shift "
            f"{world.prompt_shift:.1f} prompts {world.text_shift:.1f} texts {world.golden_shift:.1f} golden, bias {world.label_bias:.1f}, "
            f"noise {world.noise:.2f}, curvature {world.curvature:.1f}"
        )
        figure = " · ".join(f"{name} {rate[name][i].mean():.3f}" for name in NAMES)
        rows.append(Row(described, figure, "≥ −1 se", bool(gap >= -error), f"choice − better {gap:+.4f} ± {error:.4f}"))
    summary = [Row("worlds where the choice is below the better one by more than one standard error", str(below), "0", below == 0)]
    for name in ("erm", "golden_only", "dora", "reweight"):
        gap, error = mean_and_error((rate["choice"] - rate[name]).mean(axis=1))
        summary.append(Row(f"choice − {name}, mean over worlds ± se", f"{gap:+.4f} ± {error:.4f}", "> 0", gap > 0))
    gap, error = mean_and_error((rate["choice"] - better).mean(axis=1))
    summary.append(Row("choice − the better of erm and golden_only in hindsight", f"{gap:+.4f} ± {error:.4f}"))
    gap, error = mean_and_error((rate["choice"] - rate["hindsight"]).mean(axis=1))
    summary.append(Row("choice − the best entrant of each seed in hindsight", f"{gap:+.4f} ± {error:.4f}"))
    return rows, summary


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--worlds", default="0-23", help="first-last")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--state", type=Path, default=Path("build/worlds.jsonl"))
    arguments = parser.parse_args()
    first, _, last = arguments.worlds.partition("-")
    worlds, seeds = list(range(int(first), int(last or first) + 1)), arguments.seeds
    found = kept(arguments.state)
    left = [(w, s) for w in worlds for s in range(seeds) if (w, s) not in found]
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    with arguments.state.open("a", encoding="utf-8") as file:
        for number, seed in track(left, description="worlds", disable=not sys.stderr.isatty()):
            found[number, seed] = {"world": number, "seed": seed} | measure(number, seed)
            file.write(json.dumps(found[number, seed]) + "\n")
            file.flush()
    rows, summary = tables(found, worlds, seeds)
    report("Worlds: gold win rate against the start, mean of seeds", rows, arguments.save)
    report("Worlds: the choice", summary, arguments.save)


if __name__ == "__main__":
    main()
