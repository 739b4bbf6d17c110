"""Training jobs of two gloo ranks that read their model by shards, or whole where it cannot be read so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dora_core.config.execution import Execution
from dora_core.config.method import LoraConfig, ModelConfig, OptimizationConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks
from dora_core.training.reward_model import RewardTask, preference_records
from dora_core.training.sft import SftTask
from tasks.training.job import CausalLM, ScalarHead, Start, TrainingJob, train
from tasks.training.report import TrainingReport

EXAMPLES = [([{"role": "user", "content": "the cat"}], f"sat on {w} mat") for w in ("a", "one", "the", "very")]
SHARDED = Execution(workers=2, strategy="fsdp", gradient_checkpointing=True, activation_offload=True)
KINDS = {"policy": CausalLM, "adapters": CausalLM, "reward": ScalarHead, "whole": CausalLM}
DIGESTS = {name: str(number) * 64 for number, name in enumerate(KINDS)}


def build_sft(start: Start, worker: Worker) -> SftTask:
    return SftTask(start.module, start.layers, EXAMPLES, Encoder(start.tokenizer, TextConfig()), worker, start.tokenizer.pad_token_id)


def build_reward(start: Start, worker: Worker) -> RewardTask:
    prompts, responses = [prompt for prompt, _ in EXAMPLES], [[text, text[::-1]] for _, text in EXAMPLES]
    records = preference_records(prompts, responses, [[1.0, 0.0]] * len(EXAMPLES), Encoder(start.tokenizer, TextConfig()))
    return RewardTask(start.module, start.layers, records, worker, start.tokenizer.pad_token_id)


def job(name: str, folder: Path, execution: Execution, **optimization: Any) -> TrainingJob:
    """Three steps on four examples; ``whole`` starts from files with which weights cannot be read by rows."""
    if name == "adapters":
        optimization["lora"] = LoraConfig(rank=4)
    return TrainingJob(
        build=build_reward if name == "reward" else build_sft,
        arguments={},
        model=ModelConfig(source=str(folder / ("untied" if name == "whole" else "start"))),
        optimization=OptimizationConfig(epochs=3, batch_size=4, learning_rate=1e-2, **optimization),
        execution=execution,
        store_uri=str(folder / "store"),
        stage="sft",
        digest=DIGESTS[name],
        kind=KINDS[name],
    )


def run(name: str, folder: Path, worker: Worker, execution: Execution = SHARDED) -> TrainingReport:
    return train(job(name, folder, execution), worker, FolderHooks(folder / f"{name}-checkpoints"))


def rank_main(worker: Worker, root: str) -> None:
    for name in KINDS:
        report = run(name, Path(root), worker)
        if worker.rank == 0:
            (Path(root) / f"{name}.json").write_text(report.model_dump_json())
