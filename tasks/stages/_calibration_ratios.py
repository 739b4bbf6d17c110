"""Probabilities c and density ratios w of a fitted classifier, row by row; calibration and drift compute h from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dora_core.errors import ModelError
from tasks.tables.artifacts import UNLABELLED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.classifier.scoring import Meta
    from tasks.runtime.score_cache import Scores
    from tasks.stages._classify_facts import Facts as ClassifyFacts

MOST_UNSCORED = 0.01
"""Share of responses without a number beyond which the classifier is at fault, and not the responses."""


@dataclass(frozen=True)
class Heads:
    """Heads of a classifier whose sources have a share in the mixture, and the meaning of their logits.

    Attributes:
        gamma: (S,).
        prior: (S,) bool: heads indistinguishable from golden; their c is the prior, w = 1.
        highest: (S,) largest c.
    """

    names: list[str]
    gamma: NDArray[np.float64]
    prior: NDArray[np.bool_]
    highest: NDArray[np.float64]

    @classmethod
    def of(cls, names: list[str], meta: Meta, fit: ClassifyFacts) -> Heads:
        """The heads of the sources ``names``; ``fit``: facts of the classify stage that fitted them."""
        import numpy as np

        gamma = np.array([meta.gamma[meta.sources.index(name)] for name in names])
        prior = np.array([not fit.sources[name].told_apart for name in names], dtype=bool)
        a = np.array([fit.unlabelled.value if fit.unlabelled and name == UNLABELLED else 0.0 for name in names])
        return cls(names, gamma, prior, 1.0 / (1.0 + gamma * a))  # c of w = 1/a⁺

    def probabilities(self, logits: Mapping[str, Any]) -> NDArray[np.float64]:
        """c (rows, S) of columns ``logit_<source>``."""
        import numpy as np

        from dora_core.calibration import probabilities

        c = probabilities(np.column_stack([logits[f"logit_{name}"] for name in self.names]))
        return np.where(self.prior | np.isnan(c), 1.0 / (1.0 + self.gamma), np.minimum(c, self.highest))


@dataclass(frozen=True)
class Ratios:
    """c and w of rows, before any step that needs all rows."""

    scores: Scores
    heads: Heads

    def of(self, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(c, w) of the rows [start, stop), both (rows, S)."""
        from dora_core.calibration import density_ratios

        c = self.heads.probabilities(self.scores.rows(start, stop))
        return c, density_ratios(c, self.heads.gamma)


def poisoned(scores: Scores, heads: Heads, rows: int) -> dict[str, int]:
    """Count ``{"in", "scored", "unscored", "clipped"}`` of ``rows`` responses: in = scored + unscored; clipped are scored responses with a
    logit beyond its limit.

    Raises:
        ModelError: too many are unscored.
    """
    import numpy as np

    from dora_core.calibration import LOGIT_LIMIT

    unscored, clipped = np.zeros((2, rows), dtype=bool)
    columns = scores.rows()
    for name in (name for name, prior in zip(heads.names, heads.prior, strict=True) if not prior):
        logits = columns[f"logit_{name}"]
        unscored |= np.isnan(logits)
        clipped |= np.abs(logits) > LOGIT_LIMIT
    count = int(unscored.sum())
    if count > MOST_UNSCORED * rows:
        raise ModelError(
            f"the classifier gave no number to {count} of {rows} responses ({count / rows:.1%}, at most {MOST_UNSCORED:.0%} may lack one)",
            hint="its weights or activations overflow: fit it again with a lower classifier.learning_rate or another classifier.encoder",
        )
    return {"in": rows, "scored": rows - count, "unscored": count, "clipped": int((clipped & ~unscored).sum())}


def undefined(form: str, shares: NDArray[np.float64], heads: list[str]) -> bool:
    """Whether a form of h is undefined for a mixture: without labelled golden responses, or with unlabelled ones."""
    return {"paper": bool(shares[0] == 0), "released": UNLABELLED in heads}.get(form, False)
