"""Compute the exact gradient of a robust objective over a global batch, from micro-batches in one pass.

log-mean-exp couples all records of an optimisation step, so the mean over micro-batches is a different objective.
:class:`GlobalBatch` keeps a running normaliser and gives the weights of each micro-batch; with several processes it also takes
the process group, and nothing else changes.
"""

from __future__ import annotations

import torch

from dora_core.objectives import ObjectiveConfig, find_objective
from dora_core.objectives.global_batch import GlobalBatch

RECORDS, MICRO_BATCH, LAM = 8, 2, 0.5


def main() -> tuple[float, float]:
    """Return the relative error of the gradient from micro-batches: exact, and with a normaliser per micro-batch."""
    generator = torch.Generator().manual_seed(0)
    inputs_BD = torch.randn(RECORDS, 3, generator=generator, dtype=torch.float64)
    factors_B = torch.rand(RECORDS, generator=generator, dtype=torch.float64) * 2
    weights_D = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def losses(rows: slice) -> torch.Tensor:
        return torch.nn.functional.softplus(-inputs_BD[rows] @ weights_D)

    find_objective("dora")(losses(slice(None)), factors_B, LAM).backward()  # all records at once
    expected = weights_D.grad.clone()

    def accumulated(scope: str) -> torch.Tensor:
        weights_D.grad = None
        batch = GlobalBatch(ObjectiveConfig(name="dora", lam=LAM, scope=scope))
        count = RECORDS // MICRO_BATCH
        batch.begin(count, LAM)
        for number in range(count):
            rows = slice(number * MICRO_BATCH, (number + 1) * MICRO_BATCH)
            losses_B = losses(rows)
            share_B, rescale = batch.add(losses_B, factors_B[rows], torch.ones(MICRO_BATCH, dtype=torch.bool))
            if number == count - 1:  # before the last backward the ranks agree on one normaliser
                correction = batch.exchange()
                share_B, rescale = share_B * correction, rescale * correction
            if weights_D.grad is not None:
                weights_D.grad *= rescale
            (share_B * losses_B).sum().backward()
        return weights_D.grad * batch.final_scale

    exact, naive = ((accumulated(scope) - expected).norm().item() / expected.norm().item() for scope in ("global", "micro"))
    print(f"relative error of the gradient: {exact:.1e} over the global batch, {naive:.2f} with micro-batch means")
    return exact, naive


if __name__ == "__main__":
    main()
