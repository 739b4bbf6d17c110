"""Compare two methods over seeds: a paired difference with a two-level bootstrap and a t-interval.

Each seed repeats everything random. The bootstrap resamples seeds, then prompts within each; the t-interval uses the seeds' own means
and is the safer one with few seeds.
"""

from __future__ import annotations

import numpy as np

from dora_core.evaluation.study_statistics import Estimate, mean_over, separated

SETTINGS = {"resamples": 1000, "confidence": 0.95, "seed": 0}


def main() -> tuple[str, Estimate]:
    """Return whether the separate intervals overlap, and the paired difference."""
    rng = np.random.default_rng(0)
    seeds = [rng.normal(0.5, 0.2, 100) + rng.normal(0, 0.05) for _ in range(5)]  # a prompt's win rate under the baseline, by seed
    better = [wins + 0.03 + rng.normal(0, 0.02, 100) for wins in seeds]
    baseline, method = mean_over(seeds, **SETTINGS), mean_over(better, **SETTINGS)
    lift = mean_over([b - a for a, b in zip(seeds, better, strict=True)], **SETTINGS)
    print(f"{baseline.value:.3f} against {method.value:.3f}: intervals {separated(method, baseline)}")
    print(f"paired difference {lift.value:.3f} [{lift.low:.3f}, {lift.high:.3f}], t [{lift.t_low:.3f}, {lift.t_high:.3f}]")
    return separated(method, baseline), lift


if __name__ == "__main__":
    main()
