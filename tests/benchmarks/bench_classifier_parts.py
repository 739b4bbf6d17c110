"""Whether the encoder of the source classifiers pays, by number of rows: one fold fitted without it and with it.

Worlds: *known mixture* (a log-linear family: n-grams and text statistics suffice), *word order* (golden and synthetic responses have
the same words; two of them, some words apart, change places: an encoder is needed), *real mixture* (``mixture.parquet`` in ``--data``;
skipped with a reason if absent). ``deep`` is the seconds that the encoder adds to the fit of one fold. The gain is the held-out log-loss
without the encoder minus with it, nats a row, mean over heads and seeds 0 … n − 1 with the standard error over the seeds' held-out rows;
*kept* counts the fits that the rule in ``dora_core/classifier/fit.py`` keeps.

    python -m tests.benchmarks.bench_classifier_parts [--seeds 3] [--rows 1000 3000 …] [--worlds known order real]
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # before transformers is imported

import numpy as np
import pyarrow.parquet as pq
import torch

from dora_core.classifier.fit import fit_fold
from dora_core.classifier.model import GOLDEN, Examples, build_tokenizer
from dora_core.config.method import ClassifierConfig, TestbedConfig
from dora_core.data.records import Message, fold_of, hash_prompt
from dora_core.testbed.mixture import GOLDEN as HUMAN
from dora_core.testbed.mixture import Testbed
from tests.benchmarks.bench_real_mixture import DATA

ENCODER = {"source": "tiny", "hidden_size": 64, "layers": 2, "heads": 4, "vocab_size": 2048}
PER_PROMPT = 4  # responses of the generated worlds


def known(rows: int, seed: int) -> tuple[Examples, int]:
    """Responses of the known mixture, golden and three sources."""
    config = TestbedConfig(prompts=max(rows // PER_PROMPT, 1), seed=seed)
    testbed, rng = Testbed(config), np.random.default_rng(seed)
    names = [s for s in testbed.sources if s != HUMAN]
    found = []
    for record in testbed.generate():
        for response, source in zip(record["responses"], record["sources"], strict=True):
            found.append((record["prompt"], response, GOLDEN if source == HUMAN else names.index(source)))
    rng.shuffle(found)
    return _examples(found[:rows]), len(names)


def order(rows: int, seed: int) -> tuple[Examples, int]:
    """Two of a response's words change places between golden and synthetic."""
    rng, found = np.random.default_rng(seed), []
    for i in range(rows):
        golden = i % 2 == 0
        pair = ["soup", "bread"] if golden else ["bread", "soup"]
        filler = rng.choice(["and", "the", "of", "with", "some", "warm"], size=7).tolist()
        at = sorted(rng.choice(8, size=2, replace=False))
        while at[1] - at[0] < 3:
            at = sorted(rng.choice(8, size=2, replace=False))
        for place, word in zip(at, pair, strict=True):
            filler.insert(place, word)
        found.append((f"question {i // PER_PROMPT} of {seed}", " ".join(filler), GOLDEN if golden else 0))
    return _examples(found), 1


def real(rows: int, seed: int, data: Path) -> tuple[Examples, int]:
    """Responses of the real mixture; people are golden, every model is a source."""
    found = []
    for record in pq.read_table(data / "mixture.parquet", columns=["prompt", "responses", "sources"]).to_pylist():
        found += [(record["prompt"], y, s) for y, s in zip(record["responses"], record["sources"], strict=True)]
    np.random.default_rng(seed).shuffle(found)
    found = found[:rows]
    counts = {name: sum(s == name for _, _, s in found) for name in {s for _, _, s in found}}
    names = sorted(name for name, n in counts.items() if not name.startswith("human") and n >= 30)
    people = [(x, y, GOLDEN) for x, y, s in found if s.startswith("human")]
    return _examples(people + [(x, y, names.index(s)) for x, y, s in found if s in names]), len(names)


def _examples(rows: list[tuple[str, str, int]]) -> Examples:
    prompts, responses, head = zip(*rows, strict=True)
    hashes = np.array([hash_prompt([Message(role="user", content=x)]) for x in prompts], dtype=np.uint64)
    return Examples(prompts, responses, np.array(head), hashes, fold_of(hashes, 3))


def losses(examples: Examples, heads: int, logits_NS: np.ndarray) -> np.ndarray:
    """Held-out log-loss of each row, mean over its heads."""
    held = examples[examples.fold_N == 0]
    target_NS, mask_NS = held.targets(heads)
    loss_NS = np.logaddexp(0, logits_NS) - target_NS * logits_NS
    return (loss_NS * mask_NS).sum(axis=1) / mask_NS.sum(axis=1)


def compare(examples: Examples, heads: int, seed: int) -> tuple[np.ndarray, np.ndarray, bool, float, float]:
    """Losses without and with the encoder, whether it is kept, seconds of both fits."""
    seconds, held, kept = [], [], False
    config = ClassifierConfig(encoder=ENCODER, seed=seed, max_prompt_tokens=48, max_response_tokens=128)
    tokenizer = build_tokenizer(examples, config)
    for deep in ("never", "always"):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            fit = fit_fold(examples, heads, tokenizer, config.model_copy(update={"deep": deep}), 0, Path(folder))
            seconds.append(time.perf_counter() - started)
        held.append(losses(examples, heads, fit.logits_NS))
        kept = fit.deep
    return held[0], held[1], kept, seconds[0], seconds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 3000, 10_000, 24_000])
    parser.add_argument("--worlds", nargs="*", default=["known", "order", "real"])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with mixture.parquet")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    print("world   rows    log-loss wide   gain of encoder ± SE   kept   seconds wide   deep   ratio", flush=True)
    for world in arguments.worlds:
        if world == "real" and not (arguments.data / "mixture.parquet").exists():
            print(f"real mixture: skipped, no mixture.parquet in {arguments.data} (give its folder with --data)")
            continue
        for rows in arguments.rows:
            found = []
            for seed in range(arguments.seeds):
                make = {"known": known, "order": order}.get(world)
                examples, heads = real(rows, seed, arguments.data) if make is None else make(rows, seed)
                found.append(compare(examples, heads, seed))
            gain = np.concatenate([wide - deep for wide, deep, *_ in found])
            wide, seconds = np.concatenate([w for w, *_ in found]), np.array([[a, b] for *_, a, b in found]).mean(axis=0)
            added, times = seconds[1] - seconds[0], seconds[1] / seconds[0]
            print(
                f"{world:<7} {len(examples):>6} {wide.mean():>12.4f} {gain.mean():>14.4f} ± {gain.std() / len(gain) ** 0.5:.4f} "
                f"{sum(k for _, _, k, *_ in found):>8}/{len(found)} {seconds[0]:>12.1f} {added:>8.1f} {times:>7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
