"""Labelled texts of three kinds and a configuration that fits them in a second."""

from __future__ import annotations

import numpy as np

from dora_core.classifier.model import GOLDEN, Examples
from dora_core.classifier.scaling import Scaling
from dora_core.classifier.scoring import Meta
from dora_core.classifier.text_statistics import STATISTICS, SurfaceBasis
from dora_core.classifier.wide import WideModel
from dora_core.config.method import ClassifierConfig, ModelConfig
from dora_core.data.records import fold_of

TINY = ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=400)
CONFIG = ClassifierConfig(encoder=TINY, deep="always", folds=2, epochs=4, batch_tokens=1024, max_prompt_tokens=8, max_response_tokens=24)
SCALING = [Scaling(temperature=2.0), Scaling(at=[-1.0, 1.0], to=[-0.5, 3.0])]
META = Meta(["a", "b"], ["human"], [1.0, 1.0], SCALING, CONFIG.folds, CONFIG.model_dump(mode="json"))
WIDE = WideModel(2, SurfaceBasis.fit(np.zeros((1, len(STATISTICS)))))
PLAIN = {GOLDEN: "mild bread soup", 0: "grand cosmic wisdom", 1: "mild cosmic soup"}


def make_examples(prompts: int = 150, seed: int = 0) -> Examples:
    """Every prompt is answered by all three; each has words of its own among common ones."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(prompts):
        for head, words in PLAIN.items():
            text = " ".join(rng.choice([*words.split(), "and", "the", "of", "with"], size=8))
            rows.append((f"question {p}", text, head, p * 2**40 + 12345))
    columns = list(zip(*rows, strict=True))
    hashes = np.array(columns[3], dtype=np.uint64)
    return Examples(columns[0], columns[1], np.array(columns[2]), hashes, fold_of(hashes, CONFIG.folds))
