"""The ratio of responses given the prompt beside that of prompts and responses, where sources answer different topics.

*Known mixture*: per ``prompt_shift`` and seed, one classifier and both settings of ``calibration.ratio`` on it, over all training responses
of the mixture, against exact densities: correlation of log w with log p_golden(y|x)/q_i(y|x) and its root-mean-square error in nats
(each head on its own and on golden responses, mean over heads), the same for log h and log p_golden(y|x)/P(y|x) up to a
constant, and the effective sample size. *one m*: conditional w with the mixture's shares instead of each prompt's. Seeds are 0 … n − 1.

*Real mixture* (``mixture.parquet`` and ``golden.parquet`` in ``--data``; skipped with a reason if absent): no exact density is known; by
source the quantiles of h (mean 1, neither capped nor tempered) of both settings, their rank correlation, and the effective sample sizes.

    python -m tests.benchmarks.bench_ratio [--seeds 3] [--shifts 0 1 2] [--real]
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # before transformers is imported

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dora_core.calibration import effective_sample_size, mixture_factor
from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import CalibrationConfig, ClassifierConfig, TestbedConfig
from dora_core.data.encoding import plain_prompt
from dora_core.data.inputs import fingerprint_sources
from dora_core.testbed.mixture import GOLDEN, Testbed, materialize
from infra.store.store import Store
from tasks.runtime.spec import StageRef
from tasks.runtime.stage import execute
from tasks.stages import calibrate, classify, ingest
from tests.benchmarks.bench_real_mixture import DATA, configuration

RATIOS = ("joint", "conditional")
ENCODER = {"source": "tiny", "hidden_size": 64, "layers": 1, "heads": 4, "vocab_size": 1024}
CLASSIFIER = ClassifierConfig(encoder=ENCODER, max_prompt_tokens=24, max_response_tokens=96)
HERE = Execution(workers=0)


def tables(
    data: DataConfig, classifier: ClassifierConfig, folder: Path
) -> tuple[dict[str, pa.Table], dict[str, Any], list[dict[str, Any]]]:
    """Calibration tables of both ratios (raw h), facts of classify, and the records."""
    store = Store(str(folder / "store"))
    records = ingest.Spec(data=data, fingerprints=fingerprint_sources(data), execution=HERE)
    golden = data.golden_sources
    fit = classify.Spec(records=records.ref(), classifier=classifier, golden_sources=golden, execution=HERE)
    for module, spec in ((ingest, records), (classify, fit)):
        result = execute(spec, module.run, store)
    found = {ratio: _calibrated(store, records.ref(), fit.ref(), golden, ratio) for ratio in RATIOS}
    rows = pq.read_table(store.fetch("ingest", records.digest()) / "records.parquet", columns=["record_id", "prompt", "responses"])
    return found, result["facts"], rows.to_pylist()


def _calibrated(store: Store, records: StageRef, fit: StageRef, golden: list[str], ratio: str) -> pa.Table:
    raw = CalibrationConfig(ratio=ratio, normalize=False, cap_quantile=None, temper=1.0)
    spec = calibrate.Spec(records=records, classifier=fit, calibration=raw, golden_sources=golden, execution=HERE)
    execute(spec, calibrate.run, store)
    return pq.read_table(store.fetch("calibrate", spec.digest()) / "calibration.parquet")


# ------------------------------------------------------------------------------------------------------- known mixture


def known(config: TestbedConfig, golden: int, folder: Path) -> tuple[dict[str, np.ndarray], float]:
    """Measures by contestant, (r log w, RMSE log w, r log h, RMSE log h, ESS), and the highest prompt-only AUC."""
    train, reference = materialize(config, golden, folder / "data")
    data = DataConfig(train=[DataSource(path=str(train))], golden=[DataSource(path=str(reference))], golden_sources=[GOLDEN])
    by_ratio, fit, records = tables(data, CLASSIFIER, folder)
    testbed, texts = Testbed(config), {row["record_id"]: row for row in records}
    heads = sorted(set(testbed.sources) - {GOLDEN})
    first = by_ratio["joint"]
    pairs = zip(first["record_id"].to_pylist(), first["response_index"].to_pylist(), strict=True)
    rows = [(plain_prompt(texts[record]["prompt"]), texts[record]["responses"][i]) for record, i in pairs]
    densities = [testbed.log_densities(x, y) for x, y in rows]
    log_w = np.array([[q[GOLDEN] - q[name] for name in heads] for q in densities])
    log_h = np.log([testbed.true_ratio(x, y) for x, y in rows])
    source = np.array(first["source"].to_pylist())
    own = np.column_stack([(source == name) | (source == GOLDEN) for name in heads])
    w = {ratio: np.column_stack([table[f"w_{name}"].to_numpy() for name in heads]) for ratio, table in by_ratio.items()}
    h = {ratio: table["h"].to_numpy() for ratio, table in by_ratio.items()}
    counts = np.array([(source == name).mean() for name in (GOLDEN, *heads)])
    w["one m"], h["one m"] = w["conditional"], mixture_factor(w["conditional"], counts)
    return {name: _against(np.log(w[name]), np.log(h[name]), log_w, log_h, own) for name in w}, max(
        head["prompt_only_auc"] for head in fit["sources"].values()
    )


def _against(w: np.ndarray, h: np.ndarray, true_w: np.ndarray, true_h: np.ndarray, own: np.ndarray) -> np.ndarray:
    heads = range(w.shape[1])
    of_w = [np.corrcoef(w[own[:, i], i], true_w[own[:, i], i])[0, 1] for i in heads]
    error_w = [np.sqrt(np.mean((w - true_w)[own[:, i], i] ** 2)) for i in heads]
    return np.array([np.mean(of_w), np.mean(error_w), np.corrcoef(h, true_h)[0, 1], np.std(h - true_h), effective_sample_size(np.exp(h))])


def show_known(shifts: list[float], seeds: int, prompts: int, golden: int) -> None:
    print("shift  prompt-only AUC  ratio        r(log w)           RMSE(log w)       r(log h)           RMSE(log h)       ESS", flush=True)
    for shift in shifts:
        found, aucs = [], []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                one, auc = known(TestbedConfig(prompts=prompts, prompt_shift=shift, seed=seed), golden, Path(folder))
            found.append(one)
            aucs.append(auc)
        for name in found[0]:
            values = np.array([one[name] for one in found])
            cells = "  ".join(
                f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in zip(values.mean(0), values.min(0), values.max(0), strict=True)
            )
            print(f"{shift:>5g}  {np.mean(aucs):>15.2f}  {name:<11}  {cells}", flush=True)


# -------------------------------------------------------------------------------------------------------- real mixture


def show_real(data: Path) -> None:
    if not (data / "mixture.parquet").exists():
        print(f"real mixture: skipped, no mixture.parquet in {data} (give its folder with --data)")
        return
    config = configuration(data.resolve(), 0)
    with tempfile.TemporaryDirectory() as folder:
        by_ratio, fit, _ = tables(config.data, config.classifier, Path(folder))
    h = {ratio: table["h"].to_numpy() / table["h"].to_numpy().mean() for ratio, table in by_ratio.items()}
    source = np.array(by_ratio["joint"]["source"].to_pylist())
    ess = {ratio: effective_sample_size(values) for ratio, values in h.items()}
    print(f"real mixture: {len(source)} responses; ESS joint {ess['joint']:.2f}, conditional {ess['conditional']:.2f}; ", end="")
    print(f"rank correlation of h {_rank_correlation(h['joint'], h['conditional']):.2f}")
    columns = f"{'source':<24} {'n':>5} {'AUC':>5} {'prompt':>6} {'given':>6} {'slope':>5}"
    print(f"{columns}  h joint 5/50/95 %, mean    h conditional 5/50/95 %, mean  rank r")
    for name in sorted(set(source), key=str):
        own, head = source == name, fit["sources"].get(name)
        quality = "    –      –      –     –" if head is None else _quality(head)
        cells = "   ".join(
            "/".join(f"{q:.2f}" for q in np.quantile(h[ratio][own], [0.05, 0.5, 0.95])) + f", {h[ratio][own].mean():.2f}"
            for ratio in RATIOS
        )
        print(f"{name!s:<24} {own.sum():>5} {quality}  {cells}   {_rank_correlation(h['joint'][own], h['conditional'][own]):.2f}")


def _quality(head: dict[str, Any]) -> str:
    given = head["given_prompt"]["auc"]
    shown = [f"{value:.2f}" if value is not None else "–" for value in (head["auc"], head["prompt_only_auc"], given, head["prompt_slope"])]
    return f"{shown[0]:>5} {shown[1]:>6} {shown[2]:>6} {shown[3]:>5}"


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shifts", type=float, nargs="*", default=[0.0, 1.0, 2.0])
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--golden", type=int, default=1500)
    parser.add_argument("--real", action="store_true", help="the real mixture too (about ten minutes)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mixture.parquet and golden.parquet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    show_known(arguments.shifts, arguments.seeds, arguments.prompts, arguments.golden)
    if arguments.real:
        show_real(arguments.data)


if __name__ == "__main__":
    main()
