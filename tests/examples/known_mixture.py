"""Generate preference data with known densities, and check a calibration against the exact ratio p_golden/P.

Every source of the testbed is an explicit distribution over texts, so log-densities, the true ratio and the gold reward are exact.
A perfect classifier is computed from the densities; its factor h equals the true ratio.
"""

from __future__ import annotations

import numpy as np

from dora_core.calibration import factor
from dora_core.testbed import GOLDEN, Testbed, TestbedConfig


def main() -> tuple[float, float, float]:
    """Return the largest error of h, the mean true ratio over the mixture (1 in expectation), and that over golden responses."""
    testbed = Testbed(TestbedConfig(prompts=200, alpha=0.25, seed=1))
    rows = [(r["prompt"], y, s) for r in testbed.generate() for y, s in zip(r["responses"], r["sources"], strict=True)]
    ratio_N = np.array([testbed.true_ratio(prompt, response) for prompt, response, _ in rows])

    log_q_NS = np.array([list(testbed.log_densities(prompt, response).values()) for prompt, response, _ in rows])
    c_NS = 1 / (1 + np.exp(log_q_NS[:, 1:] - log_q_NS[:, :1]))  # P(golden | x, y) with balanced training sets
    shares = np.array(list(testbed.shares.values()))
    own_N = np.array([testbed.sources.index(source) for _, _, source in rows])
    h_N = factor("mixture", c_NS, np.ones(len(shares) - 1), shares, own_N)

    error = float(np.abs(h_N / ratio_N - 1).max())
    golden = ratio_N[[source == GOLDEN for _, _, source in rows]].mean()
    print(f"error of h {error:.1e}; mean true ratio {ratio_N.mean():.3f} over the mixture, {golden:.3f} over golden responses")
    return error, float(ratio_N.mean()), float(golden)


if __name__ == "__main__":
    main()
