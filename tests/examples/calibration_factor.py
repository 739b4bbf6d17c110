"""Turn classifier probabilities into calibration factors: h per response, then one factor per record.

c_i(x, y) = P(golden | x, y) of a response, by the classifier of golden against synthetic source i. γ_i corrects for unequal counts in
its training set. The default form ``mixture`` estimates p_golden/P.
"""

from __future__ import annotations

import numpy as np

from dora_core.calibration import aggregate, calibrate, factor, mixture_shares
from dora_core.config.method import CalibrationConfig

SOURCES = ["verbose-lm", "vague-lm"]


def main() -> tuple[list[float], list[float], float]:
    """Return h of five responses, the factors of their two records, and the effective sample size."""
    c_NS = np.array([[0.9, 0.8], [0.5, 0.7], [0.2, 0.6], [0.7, 0.3], [0.4, 0.4]])
    own_source_N = np.array([0, 1, 1, 2, 2])  # 0 is golden, 1 and 2 are the synthetic sources
    record_N = np.array([0, 0, 0, 1, 1])
    counts = {"human": 250, "verbose-lm": 400, "vague-lm": 350}
    shares = mixture_shares(counts, None, golden=["human"], heads=SOURCES)

    raw_h = factor("mixture", c_NS, gamma_S=np.array([1.6, 1.4]), shares=shares, source_N=own_source_N)
    calibrated = calibrate(raw_h, CalibrationConfig(cap_quantile=None, temper="auto", ess_floor=0.5))
    records = aggregate(calibrated.h, record_N, "mean")
    print(f"h {calibrated.h.round(3)}, by record {records.round(3)}, effective sample size {calibrated.ess:.3f}, tau {calibrated.tau}")
    return calibrated.h.tolist(), records.tolist(), calibrated.ess


if __name__ == "__main__":
    main()
