"""Fit a source classifier with cross-fitting: golden responses against each synthetic source.

Folds are a hash of the prompt, so every response is scored by a model that never saw its prompt. Here only the wide part and a very
small encoder are fitted, on the known mixture, where the best possible scores are known too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from dora_core.classifier.diagnostics import auc
from dora_core.classifier.fit import fit_fold
from dora_core.classifier.model import GOLDEN, Examples, build_tokenizer
from dora_core.config.method import ClassifierConfig, ModelConfig
from dora_core.data.records import fold_of, hash_prompt
from dora_core.testbed import Testbed, TestbedConfig

CONFIG = ClassifierConfig(
    encoder=ModelConfig(hidden_size=16, layers=1, heads=2, vocab_size=400), folds=2, epochs=1, max_prompt_tokens=8, max_response_tokens=64
)


def main() -> tuple[float, float]:
    """Return the out-of-fold AUC of the fitted classifier and that of the exact density ratio."""
    testbed = Testbed(TestbedConfig(prompts=300, sources=1, alpha=0.5, shift=1.5))
    rows = [(r["prompt"], y, s) for r in testbed.generate() for y, s in zip(r["responses"], r["sources"], strict=True)]
    prompts, responses, sources = (list(column) for column in zip(*rows, strict=True))
    hashes = np.array([hash_prompt([{"role": "user", "content": prompt}]) for prompt in prompts], dtype=np.uint64)
    golden = np.array([source == "human" for source in sources])
    examples = Examples(prompts, responses, np.where(golden, GOLDEN, 0), hashes, fold_of(hashes, CONFIG.folds))

    tokenizer = build_tokenizer(examples, CONFIG)
    logits = np.zeros(len(examples))
    with tempfile.TemporaryDirectory() as folder:
        for fold in range(CONFIG.folds):
            fitted = fit_fold(examples, 1, tokenizer, CONFIG, fold, Path(folder) / f"fold-{fold}")
            logits[examples.fold_N == fold] = fitted.logits_NS[:, 0]
    exact = np.array([testbed.log_density("human", x, y) - testbed.log_density(testbed.sources[1], x, y) for x, y, _ in rows])
    learned, best = (float(auc(scores, golden)[0]) for scores in (logits, exact))
    print(f"AUC on prompts not seen: {learned:.3f}; of the exact density ratio: {best:.3f}")
    return learned, best


if __name__ == "__main__":
    main()
