"""Labels, proxy pairs and trust of a mixture, as ``value`` computes them and ``race`` reads them: computed once where both run.

``proxy.npz`` holds what both need. ``value`` writes it only for a run with a race; a race whose ``value`` was computed without, by another
run or release, computes it anew.

Shape legend: P pairs, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dora_core.config.valuation import ExchangeConfig, TrustConfig
from tasks.tables.artifacts import PROXY_FILE, TRUST_FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.selection.proxy import ProxyPairs
    from tasks.stages._policy_vectors import Vectors
    from tasks.stages._value_labels import Labels, Overlap, PairFeatures
    from tasks.stages._value_trust import Estimate
    from tasks.tables.training_records import Aggregate

_LABELS = ("group_R", "golden_R", "prompt_R", "factor_R", "source_N", "start_R")
_PAIRS = ("difference_PD", "group_P", "prompt_P", "fold_P", "weight_P")


@dataclass(frozen=True)
class Proxy:
    """See the module docstring.

    Attributes:
        record_P: position of each pair's record among the train records.
        label_P: probability of each pair's label; None without trust.
        held_out_KP: the same without the golden labels of a fold; None without trust, or without golden labels.
    """

    labels: Labels
    pairs: ProxyPairs
    record_P: NDArray[np.int64]
    label_P: NDArray[np.float64] | None
    held_out_KP: NDArray[np.float64] | None


@dataclass(frozen=True)
class Computed:
    """The proxy of a mixture beside what only ``value`` uses."""

    proxy: Proxy
    features: PairFeatures
    overlap: Overlap
    estimate: Estimate


def read_mixture(
    records: Path, factors: Path | None, aggregate: Aggregate, golden: list[str], trust: TrustConfig, exchange: ExchangeConfig
) -> Labels:
    """Read the labels of the train records; arguments as in :func:`tasks.stages._value_labels.read_labels`."""
    from tasks.stages._value_labels import read_labels

    return read_labels(records, factors, aggregate, golden, trust.labeller, exchange.max_sources)


def compute_proxy(
    records: Path, labels: Labels, trust: TrustConfig, exchange: ExchangeConfig, warnings: list[str], vectors: Vectors | None = None
) -> Computed:
    """Make the pairs of a sample of the labels, and estimate trust.

    Args:
        warnings: added to.
        vectors: of the policy, for ``exchange.features`` other than text.
    """
    from tasks.stages._value_labels import find_overlap, proxy_pairs
    from tasks.stages._value_trust import estimate_trust

    chosen = labels.sample(exchange.max_labels, exchange.seed)
    pairs, features, record_P = proxy_pairs(records, labels, chosen, exchange, vectors)
    overlap = find_overlap(records, labels)
    estimate = estimate_trust(trust, exchange, labels, overlap, pairs, warnings)
    label_P = None if estimate.trust is None else estimate.trust.probability_P
    return Computed(Proxy(labels, pairs, record_P, label_P, estimate.held_out), features, overlap, estimate)


def write_proxy(folder: Path, proxy: Proxy) -> None:
    """Write the file, with exact numbers."""
    import numpy as np

    columns: dict[str, Any] = {"names": np.array(proxy.labels.names), "record_P": proxy.record_P}
    columns |= {name: getattr(proxy.labels, name) for name in _LABELS} | {f"pairs_{name}": getattr(proxy.pairs, name) for name in _PAIRS}
    trust = {"label_P": proxy.label_P, "held_out_KP": proxy.held_out_KP}
    np.savez_compressed(
        folder / PROXY_FILE, allow_pickle=False, **columns | {name: table for name, table in trust.items() if table is not None}
    )


def read_proxy(folder: Path) -> Proxy | None:
    """Read the file from the folder of a ``value``; None if it has none."""
    import numpy as np
    import pyarrow.parquet as pq

    from dora_core.selection.proxy import ProxyPairs
    from tasks.stages._value_labels import Labels

    if not (folder / PROXY_FILE).is_file():
        return None
    ids = pq.read_table(folder / TRUST_FILE, columns=["record_id"])["record_id"].to_pylist()
    with np.load(folder / PROXY_FILE, allow_pickle=False) as file:
        labels = Labels(names=file["names"].tolist(), ids=ids, **{name: file[name] for name in _LABELS})
        pairs = ProxyPairs(**{name: file[f"pairs_{name}"] for name in _PAIRS})
        trust = {name: file.get(name) for name in ("label_P", "held_out_KP")}
        return Proxy(labels, pairs, file["record_P"], **trust)
