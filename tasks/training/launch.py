"""Run a training job to its end. Entry point: :func:`launch`.

With ``execution.workers ≥ 1`` it starts a Ray Train run (``tasks/training/ray_backend.py``), with 0 it trains in this process. The work of
one worker is the same either way (``tasks/training/job.py``).
"""

from __future__ import annotations

import gc

from dora_core.errors import TrainingError
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime.stage import StageContext
from tasks.training.job import TrainingJob, train
from tasks.training.report import TrainingReport


def launch(context: StageContext, job: TrainingJob) -> TrainingReport:
    """Train to the end, through worker deaths.

    Raises:
        DoraError: a worker's permanent error, at once: another attempt would end with the same.
        TrainingError: more deaths than allowed, or fewer steps than planned.
    """
    if job.execution.workers == 0:
        report = train_on_this_process(job)
    else:
        from tasks.training.ray_backend import train_on_ray

        report = train_on_ray(context, job)
    if report.memory is not None:
        context.memory.append(report.memory)
    planned, done = report.planned_steps, len(report.curve["loss"])
    if report.steps != planned or done != planned:
        raise TrainingError(
            f"{job.stage} did {done} of {planned} planned steps",
            hint=f"delete {context.store.uri}/{job.stage}/{job.digest} and run again; a foreign checkpoint may have been resumed",
        )
    return report


def train_on_this_process(job: TrainingJob) -> TrainingReport:
    """Train in this process without Ray (tests, debugging); resumes from the stage's scratch folder."""
    import torch

    from dora_core.training.distributed import Worker
    from dora_core.training.loop import FolderHooks, OutOfMemory

    class Hooks(FolderHooks):
        def log(self, step: int, metrics: dict[str, float]) -> None:
            journal.metrics(step, metrics)

        def progress(self, done: int, total: int) -> None:
            journal.progress(done, total, "steps")

    folder = Store(job.store_uri).folder(job.stage, job.digest)
    journal = JournalWriter(folder)
    device = torch.device("cuda") if job.execution.gpus_per_worker else torch.device("cpu")
    hooks = Hooks(folder.path / "scratch" / "checkpoints")
    try:
        while True:
            try:
                return train(job, Worker(device=device), hooks)
            except OutOfMemory:
                pass  # until here the error keeps the tensors alive that did not fit
            gc.collect()
            torch.cuda.empty_cache()
    finally:
        journal.flush()
