"""Compare samples: diversity of a policy's responses, and drift of data beyond chance.

Diversity detects a collapsing generator. Distances between finite samples are never 0, so each is compared with its chance part.
"""

from __future__ import annotations

import numpy as np

from dora_core.evaluation.distances import ks_chance, ks_distance
from dora_core.evaluation.diversity import Diversity, diversity

HEALTHY = [["Try a fixed bedtime.", "A dark room helps you sleep."], ["Warm up slowly.", "Good shoes matter most."]]
COLLAPSED = [["I cannot say.", "I cannot say."], ["I cannot say.", "I cannot say."]]


def main() -> tuple[Diversity, Diversity, float, float]:
    """Return the diversity of both sets, and the excess over chance of two distances: same and shifted distribution."""
    healthy, collapsed = diversity(HEALTHY), diversity(COLLAPSED)
    rng = np.random.default_rng(0)
    lengths, same, longer = rng.normal(50, 10, 400), rng.normal(50, 10, 400), rng.normal(60, 10, 400)
    excess_same, excess_longer = (ks_distance(lengths, other) - ks_chance(400, 400) for other in (same, longer))
    print(f"self-BLEU {healthy.self_bleu:.2f} and {collapsed.self_bleu:.2f}; prompts with one answer {collapsed.one_answer:.0%}")
    print(f"distance beyond chance: {excess_same:.3f} for the same distribution, {excess_longer:.3f} for longer texts")
    return healthy, collapsed, excess_same, excess_longer


if __name__ == "__main__":
    main()
