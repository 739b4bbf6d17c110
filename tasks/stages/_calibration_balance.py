"""Balance of text statistics between the mixture under h and golden responses, for the ``calibrate`` stage (``dora_core/balance.py``).

Statistics are log(1 + x) of ``dora_core/classifier/text_statistics.py``. The comparison takes at most :data:`SAMPLE` rows of either side,
evenly spaced. With a conditional ratio golden responses count as on the prompts of the mixture, weight 1/m_0(x) with m_0(x) the golden
share of their prompt; of extra golden rows no such share is known, so they are compared only if prompts tell nothing (all m_0(x) alike).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from dora_core.strict_model import StrictModel
from tasks.tables.artifacts import GOLDEN_FILE, RECORDS_FILE
from tasks.tables.rows import read_index, text_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dora_core.balance import Moments, Tilt
    from tasks.stages._calibration_ratios import Ratios

SAMPLE = 20_000
SMALLEST_SHARE = 0.01  # of golden responses to a prompt: no golden row weighs more than 100 times another
FEWEST = 50
"""Golden rows below which nothing is compared."""


class Imbalance(StrictModel):
    """Standardised mean difference of a statistic: mixture − golden, in standard deviations."""

    before: float = Field(description="All responses alike.")
    after: float = Field(description="Responses weighted by h.")


class Balance(StrictModel):
    """Text statistics of the mixture beside golden ones."""

    statistics: dict[str, Imbalance]
    responses: int = Field(description="Compared responses of the mixture.")
    golden: int = Field(description="Compared golden responses.")
    ridge: float | None = Field(None, description="Of the enforced balance; null: not enforced.")

    @property
    def worst_before(self) -> float:
        return max((abs(one.before) for one in self.statistics.values()), default=0.0)

    @property
    def worst(self) -> float:
        """Largest |difference| after weighting."""
        return max((abs(one.after) for one in self.statistics.values()), default=0.0)


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

    def tilt(self, h_N: NDArray[np.float64], ess_floor: float) -> Tilt:
        """The tilt of h that balances; ``ess_floor`` as of ``dora_core.balance.entropy_balance``."""
        from dora_core.balance import entropy_balance

        return entropy_balance(h_N[self.mixture_M], self.statistics_MF, self.moments, ess_floor)

    def facts(self, h_N: NDArray[np.float64], ridge: float | None) -> Balance:
        import numpy as np

        from dora_core.balance import standardised_differences
        from dora_core.classifier.text_statistics import STATISTICS

        h = h_N[self.mixture_M]
        before, after = (standardised_differences(self.statistics_MF, w, self.moments) for w in (np.ones(len(h)), h))
        found = zip(STATISTICS, before.tolist(), after.tolist(), strict=True)
        compared = {name: Imbalance(before=b, after=a) for name, b, a in found}
        return Balance(statistics=compared, responses=len(h), golden=self.golden, ridge=ridge)


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
