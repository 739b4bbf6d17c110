"""One fitted classifier for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dora_core.classifier.fit import FoldFit, fit_fold
from dora_core.classifier.model import Examples, build_tokenizer
from dora_core.classifier.scoring import save_meta
from tests.dora_core.classifier.examples import CONFIG, META, make_examples


class Fitted(NamedTuple):
    folder: Path
    examples: Examples
    tokenizer: PreTrainedTokenizerBase
    fits: list[FoldFit]
    logits: NDArray[np.float64]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Two folds fitted once for all tests of classifiers; read only."""
    folder, examples = tmp_path_factory.mktemp("classifier"), make_examples()
    tokenizer = build_tokenizer(examples, CONFIG)
    fits = [fit_fold(examples, 2, tokenizer, CONFIG, fold, folder / f"fold-{fold}") for fold in range(CONFIG.folds)]
    save_meta(folder, tokenizer, META)
    logits = np.zeros((len(examples), 2))
    for fit in fits:
        logits[examples.fold_N == fit.fold] = fit.logits_NS
    return Fitted(folder, examples, tokenizer, fits, logits)
