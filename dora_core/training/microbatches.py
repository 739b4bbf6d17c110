"""Micro-batches of one optimisation step: every record once, little padding, ranks that finish together.

Best-fit decreasing finds how few token budgets hold the step's records; then the records are spread evenly over that many (rounded up
to a multiple of the ranks), largest first into the emptiest. Equal micro-batches mean the lowest peak of memory, and
ranks that meet in a collective at the same time. A pure function of its arguments: a resumed run packs as the first did.

Left out: the attention's quadratic share of the work. Records of one step differ less in it than the linear layers weigh.
"""

from __future__ import annotations

from collections.abc import Sequence


def split_step(tokens: Sequence[int], ranks: int, budget: int, most: int | None = None) -> list[list[list[int]]]:
    """Spread the records of one step over ranks and micro-batches.

    Args:
        tokens: length of each record, prompt counted once.
        ranks: number of ranks, ≥ 1.
        budget: tokens of a micro-batch; a record longer than that goes alone.
        most: largest number of records in a micro-batch.

    Returns:
        For each rank its micro-batches, each a list of positions in ``tokens``, ascending. All ranks have the same number of
        micro-batches; where there are fewer records than places some are empty.
    """
    bins = _best_fit(tokens, budget, most)
    steps = max(1, -(-len(bins) // ranks))
    bins = _spread(tokens, ranks * steps, budget, most) or bins + [[] for _ in range(ranks * steps - len(bins))]
    bins.sort(key=lambda b: -sum(tokens[i] for i in b))
    # Neighbours in size meet in the same micro-step; every other one is dealt backwards, so that the sums are even too.
    order = [range(ranks) if step % 2 == 0 else range(ranks - 1, -1, -1) for step in range(steps)]
    return [[sorted(bins[step * ranks + order[step].index(rank)]) for step in range(steps)] for rank in range(ranks)]


def _decreasing(tokens: Sequence[int]) -> list[int]:
    """Positions from long to short."""
    return sorted(range(len(tokens)), key=lambda i: (-tokens[i], i))


def _best_fit(tokens: Sequence[int], budget: int, most: int | None) -> list[list[int]]:
    """Put each record into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for i in _decreasing(tokens):
        fits = [b for b, load in enumerate(loads) if load + tokens[i] <= budget and (most is None or len(bins[b]) < most)]
        if fits:
            best = max(fits, key=lambda b: (loads[b], -b))
            bins[best].append(i)
            loads[best] += tokens[i]
        else:
            bins.append([i])
            loads.append(tokens[i])
    return bins


def _spread(tokens: Sequence[int], count: int, budget: int, most: int | None) -> list[list[int]] | None:
    """Put each record into the emptiest of ``count`` bins; None if one does not fit there."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in _decreasing(tokens):
        open_bins = [b for b in range(count) if most is None or len(bins[b]) < most]
        if not open_bins:
            return None
        emptiest = min(open_bins, key=lambda b: (loads[b], b))
        if loads[emptiest] and loads[emptiest] + tokens[i] > budget:
            return None
        bins[emptiest].append(i)
        loads[emptiest] += tokens[i]
    return bins
