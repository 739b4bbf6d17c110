"""Trust in labels for the stages ``value`` and ``race``: the method of each source, and the probability of every record's label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.errors import DataError
from tasks.stages._value_labels import Labels, Overlap, label_pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.config.valuation import ExchangeConfig, TrustConfig
    from dora_core.evaluation.metrics import Interval
    from dora_core.selection.label_trust import Trust
    from dora_core.selection.proxy import ProxyPairs

CHANCE = 0.68
"""A golden loss above this, of log 2 = .693 at chance, gets a warning: features or labels are too few to learn people's preference."""


class Estimate:
    """Trust of every group: how it was estimated, and what other records' labels get by it.

    Attributes:
        trust: of the proxy; None if trust is off, or nothing could be fitted.
        agreement, method: by group.
        noise: by group, η that the probability of its labels is computed with.
        held_out: q for the search, see ``held_out_label_probabilities``; None without golden labels.
    """

    def __init__(self) -> None:
        self.trust: Trust | None = None
        self.agreement: dict[int, Interval] = {}
        self.method: dict[int, Any] = {}
        self.noise: dict[int, float] = {}
        self.held_out: NDArray[np.float64] | None = None

    def probabilities(self, records: Path, labels: Labels, features: Any, overlap: Overlap, folds: int) -> NDArray[np.float64]:
        """q of every train record, (R,); NaN without a preference or an estimate."""
        import numpy as np

        from dora_core.data.records import fold_of
        from dora_core.selection.reversal import label_probability

        q_R = np.full(len(labels.ids), np.nan)
        if not self.agreement:
            return q_R
        q_R[labels.group_R == 0] = 1.0
        noise = np.array([self.noise.get(g, np.nan) for g in range(len(labels.names))])
        if self.trust is None:
            for group in self.agreement:
                q_R[labels.group_R == group] = self.agreement[group].value
        else:
            for record_P, difference_PD in label_pairs(records, labels, features):
                people_P = self.trust.people(difference_PD, fold_of(labels.prompt_R[record_P], folds))
                group_P = labels.group_R[record_P]
                q_R[record_P] = np.where(group_P == 0, 1.0, label_probability(people_P, noise[group_P]))
        for record, right in overlap.right.items():
            q_R[record] = float(right)  # people have labelled this very pair
        return q_R


def estimate_trust(
    settings: TrustConfig, exchange: ExchangeConfig, labels: Labels, overlap: Overlap, pairs: ProxyPairs, warnings: list[str]
) -> Estimate:
    """Estimate every group's agreement by the configured method, or the best that the data allow."""
    import numpy as np

    from dora_core.selection.label_trust import em_trust, held_out_label_probabilities, overlap_agreement, reward_model_trust
    from dora_core.selection.proxy import ProxyPairs, choose_ridge

    estimate = Estimate()
    groups = range(1, len(labels.names))
    if settings.method == "off" or not groups:
        return estimate
    options: dict[str, Any] = {"confidence": exchange.confidence, "seed": exchange.seed}
    golden = labels.golden_prompts
    by_model = golden >= (settings.min_golden if settings.method == "auto" else 2) and len(np.unique(pairs.fold_P[pairs.golden_P])) > 1
    if settings.method == "reward_model" and not by_model:
        raise DataError(
            f"trust.method is reward_model, which learns from golden labels, and there are {golden} golden-labelled prompts",
            hint="use trust.method: auto or em, or check data.golden_sources and trust.labeller",
        )
    if by_model and settings.method != "em":
        ridge = choose_ridge(pairs, pairs.golden_P.astype(np.float64))
        estimate.trust = reward_model_trust(pairs, ridge, **options)
        estimate.held_out = held_out_label_probabilities(pairs, estimate.trust, ridge)
        if estimate.trust.golden_loss is not None and estimate.trust.golden_loss > CHANCE:
            warnings.append(
                f"the reward model of {golden} golden-labelled prompts is barely better than chance "
                f"(loss {estimate.trust.golden_loss:.3f} nats, chance .693): trust and exchange rates are vague"
            )
    elif settings.method in ("auto", "em"):
        alike = ProxyPairs(pairs.difference_PD, np.zeros_like(pairs.group_P), pairs.prompt_P, pairs.fold_P, pairs.weight_P)
        estimate.trust = em_trust(pairs, choose_ridge(alike, np.ones(len(pairs))), **options)
        warnings.append(
            f"labels are compared with each other ({golden} prompts have golden labels): a bias that sources share counts as agreement"
        )
    for group in groups:
        prompts = overlap.prompts.get(group)
        enough = prompts is not None and len(np.unique(prompts)) >= (settings.min_overlap if settings.method == "auto" else 1)
        if settings.method in ("auto", "overlap") and enough and prompts is not None:
            estimate.agreement[group] = overlap_agreement(overlap.agrees[group], prompts, exchange.confidence)
            estimate.method[group], estimate.noise[group] = "overlap", 1 - estimate.agreement[group].value
        elif settings.method != "overlap" and estimate.trust is not None and group in estimate.trust.agreement:
            agreement = estimate.agreement[group] = estimate.trust.agreement[group]
            estimate.method[group] = "reward_model" if estimate.trust.golden_loss is not None else "em"
            estimate.noise[group] = estimate.trust.noise[group]
            if (deviation := estimate.trust.deviations.get(group)) is not None and deviation.biased:
                warnings.append(
                    f"{labels.names[group]} has a judgement of its own: at least {deviation.systematic_B[0]:.0%} of its labels differ from "
                    f"people's in a way that texts predict; they agree with people on {agreement.value:.0%} "
                    f"[{agreement.low:.0%}, {agreement.high:.0%}]"
                )
    if settings.method == "overlap" and (missing := [labels.names[g] for g in groups if g not in estimate.agreement]):
        warnings.append(f"no pair of {', '.join(missing)} has a golden label too: their labels have no probability")
    return estimate
