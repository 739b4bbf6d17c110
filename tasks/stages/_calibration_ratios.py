"""Probabilities c and density ratios w of a fitted classifier, row by row; calibration and drift compute h from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dora_core.errors import ModelError
from tasks.tables.artifacts import GOLDEN_PROMPT, UNLABELLED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.classifier.scoring import Meta
    from tasks.runtime.score_cache import Scores
    from tasks.stages._classify_facts import Facts as ClassifyFacts
    from tasks.stages._classify_facts import GivenPrompt, HeadFacts

MOST_UNSCORED = 0.01
"""Share of responses without a number beyond which the classifier is at fault, and not the responses."""


@dataclass(frozen=True)
class Heads:
    """Heads of a classifier whose sources have a share in the mixture, and the meaning of their logits.

    Attributes:
        gamma: (S,).
        prior: (S,) bool: heads indistinguishable from golden; their c is the prior, w = 1.
        highest: (S,) largest c of prompt and response.
        conditional: c and w are of the response given the prompt, else of both together.
    """

    names: list[str]
    gamma: NDArray[np.float64]
    prior: NDArray[np.bool_]
    highest: NDArray[np.float64]
    conditional: bool

    @classmethod
    def of(cls, names: list[str], meta: Meta, fit: ClassifyFacts, ratio: Literal["conditional", "joint"]) -> Heads:
        """The heads of the sources ``names``; ``fit``: facts of the classify stage that fitted them."""
        import numpy as np

        conditional = ratio == "conditional"
        gamma = np.array([meta.gamma[meta.sources.index(name)] for name in names])
        prior = np.array([not separation(fit.sources[name], ratio).told_apart for name in names], dtype=bool)
        a = np.array([fit.unlabelled.value if fit.unlabelled and name == UNLABELLED else 0.0 for name in names])
        return cls(names, gamma, prior, 1.0 / (1.0 + gamma * a), conditional)  # c of w = 1/a⁺

    def probabilities(self, scores: Mapping[str, Any]) -> NDArray[np.float64]:
        """c (rows, S) of columns ``logit_<source>`` and, if conditional, ``prompt_<source>``."""
        import numpy as np

        from dora_core.calibration import given_prompt, probabilities

        logits = np.column_stack([scores[f"logit_{name}"] for name in self.names])
        if self.conditional:
            with np.errstate(divide="ignore"):  # without unlabelled rows c has no bound: its logit is infinite
                most = np.log(self.highest) - np.log1p(-self.highest)
            prompt = self.prompts(scores)
            assert prompt is not None
            c = probabilities(given_prompt(np.minimum(logits, most), prompt[:, 1:]))
        else:
            c = np.minimum(probabilities(logits), self.highest)
        return np.where(self.prior | np.isnan(c), 1.0 / (1.0 + self.gamma), c)

    def prompts(self, scores: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """Log-ratios of the prompts (rows, S + 1), golden first; None if the ratio is not conditional."""
        import numpy as np

        if not self.conditional:
            return None
        return np.column_stack([scores[GOLDEN_PROMPT], *(scores[f"prompt_{name}"] for name in self.names)])


def separation(head: HeadFacts, ratio: Literal["conditional", "joint"]) -> HeadFacts | GivenPrompt:
    """How well a head separates what the ratio compares."""
    return head if ratio == "joint" or head.given_prompt is None else head.given_prompt


@dataclass(frozen=True)
class Ratios:
    """c, w and prompts of rows, before any step that needs all rows."""

    scores: Scores
    heads: Heads

    def of(self, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(c, w) of the rows [start, stop), both (rows, S)."""
        from dora_core.calibration import density_ratios

        c = self.heads.probabilities(self.scores.rows(start, stop))
        return c, density_ratios(c, self.heads.gamma)

    def prompts(self, start: int, stop: int) -> NDArray[np.float64] | None:
        """:meth:`Heads.prompts` of the rows [start, stop)."""
        return self.heads.prompts(self.scores.rows(start, stop))

    def golden_share(self, positions: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Golden share m_0(x) of the prompts of rows; None where prompts tell nothing, or are not asked: it is the mixture's."""
        from dora_core.calibration import prompt_shares

        columns = [GOLDEN_PROMPT, *(f"prompt_{name}" for name in self.heads.names)]
        if not self.heads.conditional or not any(self.scores.columns[name].any() for name in columns):
            return None
        prompts = self.heads.prompts(self.scores.at(positions))
        assert prompts is not None
        return prompt_shares(shares, prompts)[:, 0]


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
