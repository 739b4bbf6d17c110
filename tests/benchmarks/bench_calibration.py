"""Distance of the learned h from the truth, with and without source labels: the known mixture, fresh seeds, side by side.

Per setting and seed: Pearson correlation of the raw ``mixture`` h with the exact p_golden/P on all training responses, and the golden
share α if it is estimated, beside the true one and the *largest share the data allow*, min P/p_golden: golden and unlabelled
rows alone identify no more than that (Scott, Blanchard and Handy 2013, "irreducibility").

    python tests/benchmarks/bench_calibration.py [--seeds 5] [--prompts 800]
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # before transformers is imported

import numpy as np
import pyarrow.parquet as pq
import torch

from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import CalibrationConfig, ClassifierConfig, TestbedConfig
from dora_core.data.encoding import plain_prompt
from dora_core.data.inputs import fingerprint_sources
from dora_core.testbed.mixture import GOLDEN, Testbed, materialize
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages import calibrate, classify, ingest

RAW = CalibrationConfig(normalize=False, cap_quantile=None, temper=1.0)
ENCODER = {"source": "tiny", "hidden_size": 64, "layers": 1, "heads": 4, "vocab_size": 1024}
CLASSIFIER = ClassifierConfig(encoder=ENCODER, max_prompt_tokens=24, max_response_tokens=96)


def measure(config: TestbedConfig, golden: int, folder: Path) -> dict[str, float]:
    """Correlation, α and its reference values, for one mixture."""
    here, store = Execution(workers=0), Store(str(folder / "store"))
    train, reference = materialize(config, golden, folder / "data")
    data = DataConfig(train=[DataSource(path=str(train))], golden=[DataSource(path=str(reference))])
    records = ingest.Spec(data=data, fingerprints=fingerprint_sources(data), execution=here)
    fit = classify.Spec(records=records.ref(), classifier=CLASSIFIER, golden_sources=[GOLDEN], execution=here)
    factors = calibrate.Spec(records=records.ref(), classifier=fit.ref(), calibration=RAW, golden_sources=[GOLDEN], execution=here)
    for module, spec in ((ingest, records), (classify, fit), (calibrate, factors)):
        result = execute(spec, module.run, store)
    table = pq.read_table(store.fetch("calibrate", factors.digest()) / "calibration.parquet")
    rows = pq.read_table(store.fetch("ingest", records.digest()) / "records.parquet", columns=["record_id", "prompt", "responses"])
    texts = {row["record_id"]: (plain_prompt(row["prompt"]), row["responses"]) for row in rows.to_pylist()}
    known = Testbed(config)
    keys = zip(table["record_id"].to_pylist(), table["response_index"].to_pylist(), strict=True)
    truth = np.array([known.true_ratio(texts[record][0], texts[record][1][i]) for record, i in keys])
    alpha = result["facts"]["alpha"]
    return {
        "r": float(np.corrcoef(table["h"].to_numpy(), truth)[0, 1]),
        "alpha": alpha["value"],
        "low": alpha["low"],
        "high": alpha["high"],
        "limit": float(1 / truth.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--golden", type=int, default=1500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    settings = [("labelled", 0.0, 1.0), ("half unlabelled", 0.5, 1.0), ("unlabelled", 1.0, 1.0), ("unlabelled", 1.0, 2.0)]
    print(
        f"{'sources':<16} {'shift':>5}  {'r mean ± sd':<14} {'r of each seed':<30} α of each seed [interval] (true .25; data allow at most)"
    )
    for name, unlabelled, shift in settings:
        found = []
        for seed in range(arguments.seeds):
            config = TestbedConfig(prompts=arguments.prompts, unlabelled=unlabelled, shift=shift, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(config, arguments.golden, Path(folder)))
        r = np.array([f["r"] for f in found])
        each = " ".join(f"{value:.3f}" for value in r)
        alphas = (
            " ".join(f"{f['alpha']:.2f} [{f['low']:.2f}, {f['high']:.2f}] ({f['limit']:.2f})" for f in found) if unlabelled else "counted"
        )
        print(f"{name:<16} {shift:>5g}  {r.mean():.3f} ± {r.std(ddof=1) if len(r) > 1 else 0.0:.3f}  {each:<30} {alphas}", flush=True)


if __name__ == "__main__":
    main()
