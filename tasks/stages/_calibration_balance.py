"""Balance of text statistics between the mixture under h and golden responses, for the ``calibrate`` stage (``dora_core/balance.py``).

Statistics are log(1 + x) of ``dora_core/classifier/text_statistics.py``. The comparison takes at most :data:`SAMPLE` rows of either side,
evenly spaced. With a conditional ratio golden responses count as on the prompts of the mixture, weight 1/m_0(x) with m_0(x) the golden
share of their prompt; of extra golden rows no such share is known, so they are compared only if prompts tell nothing (all m_0(x) alike).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.stages._calibrate_facts import Balance, Imbalance
from tasks.tables.artifacts import GOLDEN_FILE, RECORDS_FILE
from tasks.tables.rows import read_index, text_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.balance import Moments, Tilt
    from tasks.stages._calibration_ratios import Ratios

SAMPLE = 20_000
CHUNK = 65_536  # rows whose statistics are in memory at a time
SMALLEST_SHARE = 0.01  # of golden responses to a prompt: no golden row weighs more than 100 times another
FEWEST = 50
"""Golden rows below which nothing is compared."""
BALANCED_ESS = 0.8
"""Share of the raw factors' effective sample size that enforced balance keeps."""


@dataclass(frozen=True)
class Sides:
    """Compared rows: positions ``mixture_M`` among the training rows, statistics of both sides, and their moments."""

    mixture_M: NDArray[np.int64]
    statistics_MF: NDArray[np.float64]
    golden: int
    moments: Moments

    @classmethod
    def read(cls, records: Path, golden_N: NDArray[np.bool_], ratios: Ratios, shares: NDArray[np.float64]) -> Sides | None:
        """None with fewer than :data:`FEWEST` golden rows.

        Args:
            golden_N: which training rows of the mixture are golden.
            shares: of the mixture, golden first.
        """
        import numpy as np

        from dora_core.balance import Moments

        mixture, own = _sample(np.arange(len(golden_N))), _sample(np.flatnonzero(golden_N))
        statistics, golden = (statistics_at(records / RECORDS_FILE, rows) for rows in (mixture, own))
        share = ratios.golden_share(own, shares)
        if share is None:
            extra = _sample(np.arange(len(read_index(records / GOLDEN_FILE, "train"))))
            golden = np.concatenate([golden, statistics_at(records / GOLDEN_FILE, extra)])
        weights = np.ones(len(golden)) if share is None else 1.0 / np.maximum(share, SMALLEST_SHARE)
        if len(golden) < FEWEST:
            return None
        return cls(mixture, statistics, len(golden), Moments.of(statistics, golden, weights))

    def tilt(self, h_N: NDArray[np.float64]) -> Tilt:
        """The tilt of h that balances, as far as :data:`BALANCED_ESS` allows."""
        from dora_core.balance import entropy_balance
        from dora_core.calibration import effective_sample_size

        h_M = h_N[self.mixture_M]
        return entropy_balance(h_M, self.statistics_MF, self.moments, BALANCED_ESS * effective_sample_size(h_M))

    def facts(self, h_N: NDArray[np.float64], ridge: float | None) -> Balance:
        import numpy as np

        from dora_core.balance import standardised_differences
        from dora_core.classifier.text_statistics import STATISTICS

        h = h_N[self.mixture_M]
        before, after = (standardised_differences(self.statistics_MF, w, self.moments) for w in (np.ones(len(h)), h))
        found = zip(STATISTICS, before.tolist(), after.tolist(), strict=True)
        compared = {name: Imbalance(before=b, after=a) for name, b, a in found}
        return Balance(statistics=compared, responses=len(h), golden=self.golden, ridge=ridge)


def balanced_factors(
    sides: Sides | None, raw_N: NDArray[np.float64], records: Path, *, enforce: bool
) -> tuple[NDArray[np.float64], float | None, list[str]]:
    """The raw factors, tilted where balance is enforced; the ridge of the tilt; and warnings."""
    import numpy as np

    if not enforce:
        return raw_N, None, []
    if sides is None:
        return raw_N, None, ["calibration.balance is enforce, but there are too few golden responses to compare with: h is as it was"]
    tilt = sides.tilt(raw_N)
    if tilt.ridge is None:
        kept = f"{BALANCED_ESS:.0%} of the effective sample size"
        return raw_N, None, [f"no tilt of h balances the text statistics and keeps {kept}: h is as it was"]
    out = np.empty_like(raw_N)
    for start in range(0, len(raw_N), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(raw_N)))
        out[rows] = tilt(raw_N[rows], statistics_at(records, rows))
    return out, tilt.ridge, []


def statistics_at(file: Path, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(1 + statistic) of the rows at ``positions`` (ascending) of the train split, (rows, F)."""
    import numpy as np

    from dora_core.classifier.text_statistics import STATISTICS, surface_statistics

    found = [np.empty((0, len(STATISTICS)))]
    for texts in text_rows(file, positions, "train", plain=True):
        found.append(surface_statistics(texts["prompt"].to_pylist(), texts["response"].to_pylist()))
    return np.log1p(np.concatenate(found))


def _sample(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    import numpy as np

    return positions if len(positions) <= SAMPLE else positions[np.linspace(0, len(positions) - 1, SAMPLE).astype(np.int64)]
