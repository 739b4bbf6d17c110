"""What ``objective: auto`` chooses on real preference data, and what that is worth beside plain training and ``dora``.

Needs ``mixture.parquet``, by default of ``../shared/data`` beside the checkout. Two worlds, in each of which 30 % of the training
records have a label of people and 70 % one of a second labeller, named in a carried column (``trust.labeller``):

* ``verified``: GSM8K solutions, rewards are verified answers. The second labeller has the same rewards: nothing needs correction.
* ``biased``: explanations rated by people. The second labeller is a judge that likes length: its reward of a response is
  ¼·z(people's) + z(log characters) + ¼·noise, z within the record; it agrees with people on 63 % of the pairs.

Policies: ``--policy tiny``, trainings of the pipeline, as below; ``--policy linear``, a Bradley-Terry head on frozen text features, fitted
to the optimum as in the race's proxy and in ``bench_worlds.py``, h from logistic regressions on the same features: seconds instead of
minutes a seed, and the same model family as the race's, which flatters ``auto``.

Arms: ``erm`` on all records, ``golden_only`` (people's labels, as many steps), ``dora`` (λ auto, the conditional ratio) and ``auto``, with
the settings of ``infra/configs/listwise.yaml``: real trainings of its tiny policy with ``dpo_pl`` from one supervised start. A seed
draws the held-out quarter of the prompts, the 30 %, the judge's noise, and the order of training. Judged by people's (verified) rewards
of held-out prompts alone: *accuracy* and *win* as in ``bench_real_mixture.py``, with a two-level bootstrap over seeds and prompts.

Seeds, shares, judge and settings were fixed before the first training. Results are kept in --state, one line per world, seed and arm, and
finished stages in --home, so an interrupted benchmark continues; ``--limit 1`` does one arm and ends.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.calibration import calibrate, mixture_factor
from dora_core.config.method import CalibrationConfig
from dora_core.config.twins import TwinName
from dora_core.data.inputs import fingerprint_sources
from dora_core.data.records import fold_of, hash_prompt
from dora_core.evaluation.metrics import correct
from dora_core.evaluation.study_statistics import mean_over
from dora_core.objectives.settings import ObjectiveConfig
from dora_core.selection.features import TextFeatures, hashed_ngrams
from dora_core.selection.label_trust import held_out_label_probabilities, reward_model_trust
from dora_core.selection.proxy import Floats, Head, ProxyPairs, choose_ridge, fit
from dora_core.selection.race import Entrant, Race, RaceData, entrants, fit_objective, ridge_of
from flows.config.loading import load_preset
from flows.config.models import RealignConfig
from flows.planning.specs import Chain, pinned
from infra.store.store import Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages.registry import STAGES
from tests.benchmarks.bench_real_mixture import BOOTSTRAP, DATA, measure
from tests.benchmarks.bench_worlds import CLASSIFIER_FOLDS, log_odds
from tests.benchmarks.harness import Row, argument_parser, report

WORLDS = {
    "verified": ("gsm8k_solutions",),
    "biased": ("feb_ecqa", "feb_esnli", "feb_sensemaking", "snli_explain", "cqa_explain_ecqa"),
}
ARMS = ("erm", "golden_only", "dora", "auto")
GOLDEN_SHARE, HELD_OUT = 0.3, 0.25
FOLDS, PROMPT_BUCKETS = 5, 128  # of the linear policy
DORA = Entrant(objective="dora", ess_target=0.9, uses_factors=True)
TRUTH, LENGTH, NOISE = 0.25, 1.0, 0.25
Line = dict[str, Any]


def z(values: np.ndarray) -> np.ndarray:
    """Standardised over one record; 0 where all are equal."""
    spread = float(values.std())
    out: np.ndarray = (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))
    return out


def facts_of(store: Store, ref: StageRef) -> dict[str, Any]:
    result = store.read_result(ref.stage, ref.digest)
    assert result is not None, f"{ref.stage} has run"
    facts: dict[str, Any] = result["facts"]
    return facts


def judged(rewards: np.ndarray, responses: list[str], rng: np.random.Generator) -> np.ndarray:
    """The biased judge's rewards of one record's measured responses."""
    length = np.log([1 + len(text) for text in responses])
    scores: np.ndarray = TRUTH * z(rewards) + LENGTH * z(length) + NOISE * rng.standard_normal(len(rewards))
    return scores


def agreement(rewards: np.ndarray, scores: np.ndarray) -> tuple[int, int]:
    """Pairs of one record that people order, and those among them that the judge orders the same way."""
    first, second = np.triu_indices(len(rewards), 1)
    gap, own = rewards[first] - rewards[second], scores[first] - scores[second]
    return int((gap != 0).sum()), int((gap * own > 0).sum())


def write_world(data: Path, world: str, seed: int, path: Path) -> float:
    """Write the records of a world; returns the second labeller's agreement with people, over strict pairs of train records."""
    rng = np.random.default_rng([seed, list(WORLDS).index(world)])
    rows = [row for row in pq.read_table(data / "mixture.parquet").to_pylist() if row["task"] in WORLDS[world]]
    prompts = sorted({row["prompt"] for row in rows})
    held_out = set(rng.permutation(prompts)[: round(HELD_OUT * len(prompts))].tolist())
    pairs = same = 0
    for row in rows:
        row["split"] = "eval" if row["prompt"] in held_out else "train"
        row["labeller"] = "human" if rng.random() < GOLDEN_SHARE or row["split"] == "eval" else "judge"
        measured = [i for i, reward in enumerate(row["rewards"]) if reward is not None]
        if row["labeller"] == "human" or len(measured) < 2:
            continue
        rewards = np.array([row["rewards"][i] for i in measured])
        scores = rewards if world == "verified" else judged(rewards, [row["responses"][i] for i in measured], rng)
        ordered, right = agreement(rewards, scores)
        pairs, same = pairs + ordered, same + right
        for i, score in zip(measured, scores.tolist(), strict=True):
            row["rewards"][i] = round(score, 6)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return same / pairs


def configuration(path: Path, seed: int) -> RealignConfig:
    settings = [f"data.train.0.path={path}", "data.train.0.columns.split=split", "data.train.0.columns.task=task"]
    settings += ["data.train.0.carry=[labeller]", "data.train.0.ignore=[license]", "trust.labeller=labeller", "project=real-data"]
    settings += ["evaluate.twins=[]", "evaluate.kl_prompts=0", "compare=null", "execution.default.workers=0"]
    seeds = [f"{place}.seed={seed}" for place in ("classifier", "sft.optimization", "align.optimization", "evaluate", "race", "exchange")]
    return load_preset("listwise.yaml", [*settings, *seeds], RealignConfig)


def run_arm(data: Path, home: Path, world: str, seed: int, arm: str) -> Line:
    """Train and judge one arm; finished stages in the store, those of the other arms included, are not computed again."""
    import torch

    torch.set_num_threads(1)
    started = time.process_time()
    path = home / "data" / f"{world}-{seed}.parquet"
    agrees = write_world(data, world, seed, path)
    config = pinned(configuration(path, seed))
    chain = Chain(config, fingerprint_sources(config.data))
    start = chain.start()
    reference = chain.reference(start)
    line: Line = {"world": world, "seed": seed, "arm": arm, "agreement": agrees}
    race: StageRef | None = None
    if arm == "golden_only":
        name: TwinName = "golden_only"
        policy = chain.twin(name, start, reference)
    elif arm == "auto":
        calibration = chain.calibrate()
        race = chain.race(calibration, chain.value(calibration))
        policy = chain.align(start, reference, None, "align", config.align, race)
    else:
        align = config.align.evolve(objective=ObjectiveConfig(name=arm))
        policy = chain.align(start, reference, chain.calibrate() if arm == "dora" else None, "align", align)
    evaluation = chain.evaluate(start, reference, policy)
    store = Store(str(home))
    for label, spec in chain.specs.items():
        seconds = execute(spec, STAGES[spec.stage].run, store)["seconds"]
        print(f"{world} seed {seed} {arm}: {label} {seconds:.0f} s", flush=True)
    if race is not None:
        facts = facts_of(store, race)
        line |= {name: facts[name] for name in ("reason", "decided", "mean_weight", "golden_prompts", "standings")}
        value = chain.specs["value"]
        judge = facts_of(store, value.ref())["sources"]["judge"]
        line["estimated_agreement"] = judge["agreement"]
    measures = measure(store, chain.specs, evaluation, reference)
    line |= {name: [round(float(v), 4) for v in values] for name, values in measures.items()}
    return line | {"cpu_seconds": round(time.process_time() - started)}


# ------------------------------------------------------------------------------------------------------- linear policy


def factors(features: TextFeatures, rows: list[Line], fold_R: Floats) -> Floats:
    """Calibrated h by record, the mean over its responses: ratios of responses given the prompt, from cross-fitted logistic regressions on
    the frozen features, one per source, with the prompt's own log-odds taken away."""
    flat = [(r, x["prompt"], y, s) for r, x in enumerate(rows) for y, s in zip(x["responses"], x["sources"], strict=True)]
    record, prompts, responses, sources = (list(column) for column in zip(*flat, strict=True))
    names = ["", *sorted({name for name in sources if not name.startswith("human")})]
    code = np.array([0 if name.startswith("human") else names.index(name) for name in sources])
    x_Nd, fold_N = hashed_ngrams(prompts, PROMPT_BUCKETS), fold_R[np.array(record)]
    x_Nd = x_Nd / np.maximum(x_Nd.std(axis=0), 1e-9)
    joint_Nd, golden = np.column_stack([features(prompts, responses), x_Nd]), code == 0
    log_w = np.empty((len(flat), len(names) - 1))
    for source in range(1, len(names)):
        used = golden | (code == source)
        log_w[:, source - 1] = log_odds(joint_Nd, golden, used, fold_N) - log_odds(x_Nd, golden, used, fold_N)
    ratios, counts = np.exp(np.clip(log_w, -30, 30)), np.bincount(code).astype(float)
    h_N = calibrate(mixture_factor(ratios, counts / counts.sum()), CalibrationConfig()).h
    return np.asarray(np.bincount(record, h_N) / np.bincount(record))


def strict_pairs(rows: list[Line]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(record, preferred, other) of every strict pair; responses of all records counted through."""
    found, start = list[tuple[int, int, int]](), 0
    for record, row in enumerate(rows):
        r = [np.nan if reward is None else reward for reward in row["rewards"]]
        found += [(record, start + i, start + j) for i in range(len(r)) for j in range(len(r)) if r[i] > r[j]]
        start += len(r)
    record_P, winner_P, loser_P = np.array(found).T
    return record_P, winner_P, loser_P


def run_linear(data: Path, home: Path, world: str, seed: int) -> list[Line]:
    """All arms of one seed with a linear Bradley-Terry policy on frozen text features, fitted to the optimum."""
    path = home / "data" / f"{world}-{seed}.parquet"
    agrees = write_world(data, world, seed, path)
    rows = pq.read_table(path).to_pylist()
    train, held_out = ([row for row in rows if row["split"] == split] for split in ("train", "eval"))
    features = TextFeatures.fit([x["prompt"] for x in train for _ in x["responses"]], [y for x in train for y in x["responses"]])

    def differences(of: list[Line]) -> tuple[np.ndarray, Floats]:
        values = features([x["prompt"] for x in of for _ in x["responses"]], [y for x in of for y in x["responses"]])
        record_P, winner_P, loser_P = strict_pairs(of)
        return record_P, values[winner_P] - values[loser_P]

    record_P, difference_PD = differences(train)
    hash_R = np.array([hash_prompt([{"role": "user", "content": row["prompt"]}]) for row in train], dtype=np.uint64)
    human_R = np.array([row["labeller"] == "human" for row in train])
    h_R = factors(features, train, fold_of(hash_R, CLASSIFIER_FOLDS))
    weight_P = 1.0 / np.bincount(record_P)[record_P]
    pairs = ProxyPairs(difference_PD, (~human_R).astype(int)[record_P], hash_R[record_P], fold_of(hash_R, FOLDS)[record_P], weight_P)
    trust_ridge = choose_ridge(pairs, pairs.golden_P.astype(float))
    trust = reward_model_trust(pairs, trust_ridge)
    labels_KP = held_out_label_probabilities(pairs, trust, trust_ridge)
    race = Race(RaceData(pairs, h_R[record_P], trust.probability_P, labels_KP), ridge_of(pairs))
    for entrant in entrants(factors=True, trust=True):
        race.run(entrant)
    choice = race.choose()
    heads = {name: fitted(race, entrant) for name, entrant in (("golden_only", Entrant(kappa=0.0)), ("erm", Entrant()), ("dora", DORA))}
    if choice.robust is None:
        weight, label = choice.recipe(pairs.golden_P, race.data.factor_P, trust.probability_P)
        heads["auto"] = fit(pairs.difference_PD, weight * pairs.weight_P, label, ridge=race.ridge)
    else:
        heads["auto"] = fitted(race, choice.robust)
    record_E, difference_ED = differences(held_out)
    mean = {name: float(choice.recipe(pairs.golden_P, race.data.factor_P, None)[0][pairs.golden_P == golden].mean()) for name, golden in
            (("golden", True), ("judge", False))}  # fmt: skip
    facts: Line = {"reason": choice.reason, "decided": choice.decided, "mean_weight": {n: m / mean["golden"] for n, m in mean.items()}}
    estimate = trust.agreement[1]
    facts |= {"estimated_agreement": {"value": estimate.value, "low": estimate.low, "high": estimate.high}}
    lines = []
    for arm in ARMS:
        right = correct(heads[arm].margins(difference_ED))
        accuracy = np.bincount(record_E, right)[np.unique(record_E)] / np.bincount(record_E)[np.unique(record_E)]
        line: Line = {"world": world, "seed": seed, "arm": arm, "agreement": agrees, "accuracy": [round(float(a), 4) for a in accuracy]}
        lines.append(line | (facts if arm == "auto" else {}))
    return lines


def fitted(race: Race, entrant: Entrant) -> Head:
    """The head of one entrant on all train pairs."""
    pairs = race.data.pairs
    if entrant.is_weighting:
        return fit(pairs.difference_PD, race.data.weights(entrant) * pairs.weight_P, race.data.labels(entrant), ridge=race.ridge)
    assert race.data.factor_P is not None
    of: Any = {"objective": entrant.objective, "ess_target": entrant.ess_target, "ridge": race.ridge}
    return fit_objective(pairs.difference_PD, pairs.weight_P, race.data.factor_P, race.data.labels(entrant), **of)


# ------------------------------------------------------------------------------------------------------------- report


def kept(state: Path) -> dict[tuple[str, int, str], Line]:
    """Finished arms; a partially written last line is ignored."""
    text = state.read_text(encoding="utf-8") if state.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return {(line["world"], line["seed"], line["arm"]): line for line in lines}


def rows(found: dict[tuple[str, int, str], Line], world: str, seeds: list[int]) -> list[Row]:
    """Every arm, and its difference from ``erm`` and ``golden_only``, over the seeds of which all arms are done."""

    def values(arm: str, measure: str) -> list[np.ndarray]:
        return [np.array(found[world, seed, arm][measure]) for seed in seeds]

    shown = []
    for measure_ in (name for name in ("accuracy", "win") if name in found[world, seeds[0], "erm"]):
        for arm in ARMS:
            own = mean_over(values(arm, measure_), **BOOTSTRAP)
            shown.append(Row(f"{arm}: {measure_}", f"{own.value:.3f} [{own.low:.3f}, {own.high:.3f}]"))
        for arm, other in (("golden_only", "erm"), ("dora", "erm"), ("auto", "erm"), ("auto", "golden_only"), ("auto", "dora")):
            pairs = zip(values(arm, measure_), values(other, measure_), strict=True)
            gap = mean_over([a - b for a, b in pairs], **BOOTSTRAP)
            verdict = "above" if gap.low > 0 else "below" if gap.high < 0 else "no difference shown"
            figure = f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            shown.append(Row(f"{arm} − {other}: {measure_}", figure, limit=f"{verdict}; t [{gap.t_low:+.3f}, {gap.t_high:+.3f}]"))
    for seed in seeds:
        line = found[world, seed, "auto"]
        estimate = line["estimated_agreement"]
        agrees = f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]" if estimate else "none"
        weight = ", ".join(f"{name} {value:.2f}" for name, value in line["mean_weight"].items())
        limit = f"agreement {line['agreement']:.2f}, estimate {agrees}; weights {weight}; decided: {line['decided']}"
        shown.append(Row(f"choice of seed {seed}", line["reason"], limit=limit))
    return shown


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mixture.parquet")
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--policy", choices=["tiny", "linear"], default="tiny")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="end after this many arms")
    parser.add_argument("--home", type=Path, default=Path(".dora/bench-real-data"), help="where stages are kept")
    parser.add_argument("--state", type=Path, help="default: build/real-data-<policy>.jsonl")
    options: Any = parser.parse_args()
    options.state = options.state or Path(f"build/real-data-{options.policy}.jsonl")
    if not (options.data / "mixture.parquet").exists():
        parser.error(f"no mixture.parquet in {options.data}: give its folder with --data")
    found = kept(options.state)
    wanted = [(world, seed, arm) for seed in range(options.seeds) for world in options.worlds for arm in ARMS]
    options.state.parent.mkdir(parents=True, exist_ok=True)
    with options.state.open("a", encoding="utf-8") as file:
        for world, seed, arm in [key for key in wanted if key not in found][: options.limit]:
            if (world, seed, arm) in found:
                continue  # a linear seed has all arms at once
            place = (options.data.resolve(), options.home.resolve(), world, seed)
            for line in run_linear(*place) if options.policy == "linear" else [run_arm(*place, arm)]:
                found[world, seed, line["arm"]] = line
                file.write(json.dumps(line) + "\n")
                file.flush()
    for world in options.worlds:
        seeds = [seed for seed in range(options.seeds) if all((world, seed, arm) in found for arm in ARMS)]
        if seeds:
            prompts = len(found[world, seeds[0], "erm"]["accuracy"])
            title = f"Real data, {options.policy} policy, {world}: about {prompts} held-out prompts with a preference a seed, seeds {seeds}"
            report(title, rows(found, world, seeds), options.save)


if __name__ == "__main__":
    main()
