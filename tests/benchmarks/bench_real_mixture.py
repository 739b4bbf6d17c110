"""Objectives on real preference data: erm, reweight and dora from the same start, several seeds, on prompts held out from all of it.

Needs ``mixture.parquet`` (and ``golden.parquet`` beside it), by default those in ``../shared/data`` beside the checkout. 90 % of the
prompts are trained on, 10 % judged, by verified rewards or those of people:

* *accuracy*: the implicit reward orders a pair of responses as the rewards do (chance .5);
* *win*: of a prompt's responses the policy picks its likeliest per token, and so does the start; the side with the higher reward wins
  (win + ½ tie; .5 = no better than the start). Fresh samples have no verified reward, so none are judged here.

Every number is a mean over seeds with a two-level bootstrap interval (seeds, then prompts); differences are paired by seed and prompt.
The held-out prompts are the same for all seeds, so the intervals cover training and prompts like these.

Not part of ``make bench``: about an hour of processor time. Resumable: finished stages are kept in ``--home``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dora_core.data.inputs import fingerprint_sources
from dora_core.evaluation.metrics import correct
from dora_core.evaluation.study_statistics import Estimate, mean_over
from dora_core.objectives.settings import ObjectiveConfig
from flows.config.loading import load_preset
from flows.config.models import RealignConfig
from flows.planning.specs import Chain, pinned
from infra.store.store import Store
from tasks.runtime.stage import StageRef, StageSpec, execute
from tasks.stages.registry import STAGES
from tests.benchmarks.harness import Row, argument_parser, report

DATA = Path(__file__).parents[3] / "shared" / "data"
OBJECTIVES = {"erm": ObjectiveConfig(name="erm"), "reweight": ObjectiveConfig(name="reweight"), "dora": ObjectiveConfig(name="dora")}
BOOTSTRAP = {"resamples": 2000, "confidence": 0.95, "seed": 0}
Measures = dict[str, dict[str, np.ndarray]]  # objective → measure → (K,) by held-out prompt


def configuration(data: Path, seed: int) -> RealignConfig:
    """``infra/configs/listwise.yaml`` on the real mixture, with shifted seeds, all stages in this process."""
    paths = [f"data.train.0.path={data / 'mixture.parquet'}", f"data.golden=[{{path: {data / 'golden.parquet'}}}]"]
    settings = ["project=real-mixture", "evaluate.twins=[]", "evaluate.kl_prompts=0", "compare=null", "execution.default.workers=0"]
    seeds = [f"{place}.seed={seed}" for place in ("classifier", "sft.optimization", "align.optimization", "evaluate")]
    return load_preset("listwise.yaml", [*paths, *settings, *seeds], RealignConfig)


def run_seed(data: Path, home: Path, seed: int) -> Measures:
    """Run all objectives of one seed; finished stages in the store are not computed again."""

    import torch

    torch.set_num_threads(1)
    config = pinned(configuration(data, seed))
    chain = Chain(config, fingerprint_sources(config.data))
    calibration, start = chain.calibrate(), chain.start()
    reference = chain.reference(start)
    evaluations: dict[str, StageRef] = {}
    for name, objective in OBJECTIVES.items():
        align = config.align.model_copy(update={"objective": objective})
        policy = chain.align(start, reference, None if name == "erm" else calibration, name, align)
        evaluations[name] = chain.evaluate(start, reference, policy, label=f"evaluate {name}")
    store = Store(str(home))
    for label, spec in chain.specs.items():
        seconds = execute(spec, STAGES[spec.stage].run, store)["seconds"]
        print(f"seed {seed}: {label} {seconds:.0f} s", flush=True)
    return {name: measure(store, chain.specs, ref, reference) for name, ref in evaluations.items()}


def measure(store: Store, specs: dict[str, StageSpec], evaluation: StageRef, reference: StageRef) -> dict[str, np.ndarray]:
    """Accuracy and win per held-out prompt, prompts in the order of their hash."""
    folder = store.fetch(evaluation.stage, evaluation.digest)
    pairs = pq.read_table(folder / "evaluation.parquet", columns=["prompt_hash", "margin_policy"])
    prompts, index = np.unique(pairs["prompt_hash"].to_numpy(), return_inverse=True)
    accuracy = np.bincount(index, correct(pairs["margin_policy"].to_numpy())) / np.bincount(index)

    keys = ["record_id", "response_index"]
    start = pq.read_table(store.fetch(reference.stage, reference.digest) / "logps.parquet", columns=[*keys, "logp"])
    scored = pq.read_table(folder / "responses.parquet").join(start, keys, join_type="inner").sort_by([(k, "ascending") for k in keys])
    per_token = scored["logp_per_token"].to_numpy(), scored["logp"].to_numpy() / scored["tokens"].to_numpy()
    place, start_of = {}, 0
    for record, count in zip(*np.unique(np.array(scored["record_id"].to_pylist()), return_counts=True), strict=True):
        place[record] = slice(start_of, start_of := start_of + int(count))
    records = pq.read_table(
        store.fetch("ingest", specs["ingest"].digest()) / "records.parquet",
        columns=["record_id", "prompt_hash", "rewards"],
        filters=[("split", "=", "eval")],
    )
    found: dict[int, float] = {}
    for record in records.to_pylist():
        rewards = np.array([np.nan if r is None else r for r in record["rewards"]])
        measured = np.isfinite(rewards)
        if record["prompt_hash"] in set(prompts.tolist()):
            ours, theirs = (rewards[measured][np.argmax(p[place[record["record_id"]]][measured])] for p in per_token)
            found[record["prompt_hash"]] = 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    return {"accuracy": accuracy, "win": np.array([found[int(p)] for p in prompts])}


def rows(seeds: Sequence[Measures]) -> list[Row]:
    def estimate(values: list[np.ndarray]) -> Estimate:
        return mean_over(values, **BOOTSTRAP)

    shown = [
        Row(f"{name}: {measure}", _interval(estimate([one[name][measure] for one in seeds]), ".3f"))
        for measure in ("accuracy", "win")
        for name in OBJECTIVES
    ]
    for name, other in (("dora", "erm"), ("reweight", "erm"), ("dora", "reweight")):
        for measure in ("accuracy", "win"):
            gap = estimate([one[name][measure] - one[other][measure] for one in seeds])
            verdict = "above" if gap.low > 0 else "below" if gap.high < 0 else "no difference shown"
            t_interval = f"t over seeds [{gap.t_low:+.3f}, {gap.t_high:+.3f}]"
            shown.append(Row(f"{name} − {other}: {measure}", _interval(gap, "+.3f"), limit=f"{verdict}; {t_interval}"))
    return shown


def _interval(estimate: Estimate, form: str) -> str:
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mixture.parquet and golden.parquet")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="seeds at a time")
    parser.add_argument("--home", type=Path, default=Path(".dora/bench-real"), help="where stages are kept")
    options: Any = parser.parse_args()
    if not (options.data / "mixture.parquet").exists():
        parser.error(f"no mixture.parquet in {options.data}: give its folder with --data")
    run = partial(run_seed, options.data.resolve(), options.home.resolve())
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(run, range(options.seeds)))
    prompts = len(found[0]["erm"]["accuracy"])
    report(f"Real mixture: {prompts} held-out prompts with a preference, {options.seeds} seeds", rows(found), options.save)


if __name__ == "__main__":
    main()
