"""Worth of suggested labels: 200 labels of people on suggested pairs against 200 on random ones, in random worlds.

Every world (``dora_core/testbed/worlds.py``) is drawn from its number. From what a run knows (cross-fitted factors, label trust, the race's
members) each rule of ``dora_core/selection/acquisition.py`` suggests pairs of the synthetic records; people label them (Bradley-Terry on
the gold reward, the same draw for a pair whichever rule suggests it); the pair's label becomes golden, and factors, trust and race are
computed again. Compared are policies after that: gold win rate at the same KL divergence from the start, and accuracy on pairs that the
gold reward orders. Differences to random pairs are paired by world and seed, with random pairs drawn twice.

The race runs with its weightings, without robust objectives, so that a world takes seconds. Worlds have at least 3 × 200 synthetic
records: the first of that kind from number --first on. Results are kept in --state, one line per world and seed.

    python -m tests.benchmarks.bench_label_suggest [--first 100] [--worlds 12] [--seeds 1] [--labels 200] [--state FILE] [--save FILE]
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from dora_core.selection.acquisition import RULES, Candidates, GoldenPairs, random_choice, suggest
from dora_core.selection.label_trust import Trust, held_out_label_probabilities, reward_model_trust
from dora_core.selection.proxy import Head, ProxyPairs, choose_ridge, fit
from dora_core.selection.race import Choice, Race, RaceData, entrants, ridge_of
from dora_core.testbed.worlds import WorldData, WorldModel, random_world
from tests.benchmarks.bench_worlds import CLASSIFIER_FOLDS, FOLDS, factors
from tests.benchmarks.harness import Row, argument_parser, report

MEASURES = {"gold win rate": "win", "accuracy on golden pairs": "accuracy"}
DRAWS = 2
TEST_PAIRS = 4000


def trained(data: WorldData, rng: np.random.Generator) -> tuple[Head, Race, Choice, Trust]:
    """The policy that a run with ``objective: auto`` makes of the data, and the race behind it."""
    n = len(data.source_N)
    folds = min(FOLDS, int(data.golden_N.sum()))
    fold = np.empty(n, np.int64)
    for part in (np.flatnonzero(data.golden_N), np.flatnonzero(~data.golden_N)):
        fold[rng.permutation(part)] = np.arange(len(part)) % folds
    pairs = ProxyPairs(data.difference_Nd, data.source_N, np.arange(n), fold, np.ones(n))
    h = factors(data, rng.permutation(np.arange(n) % CLASSIFIER_FOLDS))
    ridge = ridge_of(pairs)
    trust_ridge = choose_ridge(pairs, data.golden_N.astype(float))
    trust = reward_model_trust(pairs, trust_ridge, samples=50)
    race = Race(RaceData(pairs, h, trust.probability_P, held_out_label_probabilities(pairs, trust, trust_ridge)), ridge)
    for entrant in entrants(factors=True, trust=True, objectives=()):
        race.run(entrant)
    choice = race.choose()
    weight, label = choice.recipe(data.golden_N, h, trust.probability_P)
    return fit(pairs.difference_PD, weight, label, ridge=ridge), race, choice, trust


def candidates_of(race: Race, choice: Choice, trust: Trust) -> tuple[Candidates, GoldenPairs, NDArray[np.int64]]:
    """Synthetic pairs as the rules see them, the golden ones, and the positions of the former."""
    pairs, h = race.data.pairs, race.data.factor_P
    assert h is not None
    weight_P, _ = choice.recipe(pairs.golden_P, h, trust.probability_P)
    pool, golden = np.flatnonzero(~pairs.golden_P), pairs.golden_P
    margin_MP = np.stack([race.margins(entrant, pairs.difference_PD, pairs.fold_P) for entrant in choice.shares])
    found = Candidates(
        difference_ND=pairs.difference_PD[pool],
        prompt_N=pairs.prompt_P[pool],
        factor_N=h[pool],
        margin_MN=margin_MP[:, pool],
        share_M=np.array(list(choice.shares.values())),
        people_N=trust.people_P[pool],
        trust_N=trust.probability_P[pool],
        weight_N=weight_P[pool],
    )
    return found, GoldenPairs(pairs.difference_PD[golden], trust.people_P[golden]), pool


def with_labels(data: WorldData, chosen: NDArray[np.int64], people_first_N: NDArray[np.bool_]) -> WorldData:
    """The data after people labelled the ``chosen`` pairs: these labels replace the synthetic ones."""
    swap = np.zeros(len(data.source_N), bool)
    swap[chosen] = ~people_first_N[chosen]
    better, worse = (np.where(swap[:, None], a, b) for a, b in ((data.worse_Nd, data.better_Nd), (data.better_Nd, data.worse_Nd)))
    source = data.source_N.copy()
    source[chosen] = 0
    return replace(data, better_Nd=better, worse_Nd=worse, source_N=source, agrees_N=np.where(swap, 1 - data.agrees_N, data.agrees_N))


def measure(number: int, seed: int, labels: int) -> dict[str, Any]:
    """Measures of one world and seed, by arm."""
    model = WorldModel(random_world(number).evolve(seed=seed))
    data = model.sample()
    rng = np.random.default_rng([number, seed, 11])
    people_first_N = rng.random(len(data.agrees_N)) < data.agrees_N  # what people would say of each pair, drawn once
    head, race, choice, trust = trained(data, np.random.default_rng([number, seed]))
    candidates, golden, pool = candidates_of(race, choice, trust)
    chosen = {rule: pool[suggest(candidates, labels, rule, golden=golden, ridge=race.ridge).positions] for rule in RULES}
    chosen |= {f"random {i}": pool[random_choice(candidates.prompt_N, labels, rng)] for i in range(DRAWS)}
    prompt_Np = rng.normal(size=(TEST_PAIRS, model.world.prompt_features))
    one, two = (model.responses(prompt_Np, np.zeros(TEST_PAIRS, np.int64), rng) - model.text_shift_Sd[0] for _ in range(2))
    truth = model.gold_reward(one) > model.gold_reward(two)

    def measures(policy: Head) -> dict[str, float]:
        accuracy = float((((one - two) @ policy.theta_D > 0) == truth).mean())
        return {"win": float(model.gold_win_rate(policy.theta_D).mean()), "accuracy": accuracy}

    out: dict[str, Any] = {"before": measures(head)}
    for name, positions in chosen.items():
        policy, *_ = trained(with_labels(data, positions, people_first_N), np.random.default_rng([number, seed]))
        out[name] = measures(policy) | {"synthetic label wrong": float((~people_first_N[positions]).mean())}
    return out


def worlds_from(first: int, wanted: int, labels: int) -> list[int]:
    def fits(number: int) -> bool:
        world = random_world(number)
        return world.records * (1 - world.golden_share) >= 3 * labels

    return list(islice((number for number in count(first) if fits(number)), wanted))


def difference(found: list[dict[str, Any]], name: str, key: str) -> tuple[float, float, int]:
    """Mean difference of an arm to random pairs, its standard error, and the number of worlds where it is above."""
    gaps = np.array([line[name][key] - np.mean([line[f"random {i}"][key] for i in range(DRAWS)]) for line in found])
    return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps))), int((gaps > 0).sum())


def rows_of(found: list[dict[str, Any]], labels: int) -> list[Row]:
    rows = []
    for title, key in MEASURES.items():
        before = np.mean([line["before"][key] for line in found])
        at_random = np.mean([line[f"random {i}"][key] for line in found for i in range(DRAWS)])
        rows.append(Row(f"{title}: before, with {labels} random labels", f"{before:.4f}, {at_random:.4f}"))
        for rule in RULES:
            gap, error, above = difference(found, rule, key)
            text = f"{gap:+.4f} [{gap - 1.96 * error:+.4f}, {gap + 1.96 * error:+.4f}], above in {above} of {len(found)}"
            rows.append(Row(f"{title}: {rule} − random", text, "> 0", bool(gap - 1.96 * error > 0)))
    for name in (*RULES, "random 0"):
        wrong = np.mean([line[name]["synthetic label wrong"] for line in found])
        rows.append(Row(f"share of the synthetic labels that people correct: {name}", f"{wrong:.3f}"))
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--state", type=Path, default=Path("build/label-suggest.jsonl"))
    arguments = parser.parse_args()
    wanted = [(w, s) for w in worlds_from(arguments.first, arguments.worlds, arguments.labels) for s in range(arguments.seeds)]
    lines = arguments.state.read_text(encoding="utf-8").splitlines() if arguments.state.exists() else []
    kept = {(line["world"], line["seed"]): line for line in map(json.loads, lines) if line["labels"] == arguments.labels}
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    with arguments.state.open("a", encoding="utf-8") as file:
        left = [place for place in wanted if place not in kept]
        for number, seed in track(left, description="worlds", disable=not sys.stderr.isatty()):
            kept[number, seed] = {"world": number, "seed": seed, "labels": arguments.labels} | measure(number, seed, arguments.labels)
            file.write(json.dumps(kept[number, seed]) + "\n")
            file.flush()
    title = f"Suggested labels: {arguments.labels} of them against as many random ones, {len(wanted)} worlds from {arguments.first} on"
    report(title, rows_of([kept[place] for place in wanted], arguments.labels), arguments.save)


if __name__ == "__main__":
    main()
