"""Stage ``sft``: the supervised start.

Input: records (and the golden reference beside them), a model. Output: ``model/``, a Hugging Face folder. Guarantee: training reads
the train split alone, so held-out prompts stay unseen. Cost: one pass over the trusted responses per epoch.
With ``model.source: tiny`` and no ``start`` a tokenizer and a small Llama are made from the training texts first. A self-training round
of reward-ranked fine-tuning (RAFT, Dong et al. 2023) is this stage with ``sft.data: best`` from the last policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dora_core.config.method import ModelConfig, SftConfig, TextConfig
from dora_core.errors import DataError
from tasks.runtime.descriptor import Stage, StageResult
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.training.facts import TrainingFacts

if TYPE_CHECKING:
    from pathlib import Path

    from dora_core.training.distributed import Worker
    from dora_core.training.sft import SftTask
    from tasks.training.job import Start


LONGEST_SAMPLE = 16_384
"""Tokens that a policy built from scratch has positions for after a prompt: the limit of ``generate.max_new_tokens``, as samples may be
longer than the responses it was trained on. Rotary positions cost no weights."""


class Spec(StageSpec):
    """See the module docstring. ``start``: a stage whose model is trained further, in place of ``model``."""

    stage: ClassVar[str] = "sft"
    version: ClassVar[int] = 2  # no dropout, no adapted routers, weights in their stored type

    records: StageRef
    model: ModelConfig
    text: TextConfig
    sft: SftConfig
    golden_sources: list[str]
    start: StageRef | None = None


class Facts(TrainingFacts):
    """Facts of the supervised training, which has neither a preference loss nor an objective."""


def run(spec: Spec, context: StageContext) -> StageOutput:
    from tasks.training.job import TrainingJob
    from tasks.training.launch import launch

    records = context.fetch(spec.records)
    examples = sft_examples(records, spec.sft, spec.golden_sources)
    if not examples and spec.sft.data == "best":
        raise DataError(
            "no training record has a measured response, or a labelled one that is desirable, so there is no best response to learn from",
            hint="map rewards, ranks, chosen/rejected or labels of data.train[i], or set sft.data to 'golden'",
        )
    if not examples:
        raise DataError(
            f"no training response comes from a golden source ({', '.join(spec.golden_sources)}) and there is no golden reference",
            hint="set data.golden_sources, add data.golden, or set sft.data to 'best'",
        )
    model = spec.start or (_make_tiny(records, spec, context) if spec.model.is_tiny else spec.model)
    job = TrainingJob(
        build=build_task,
        arguments={"records": str(records), "sft": spec.sft, "golden_sources": spec.golden_sources, "text": spec.text},
        model=model,
        optimization=spec.sft.optimization,
        execution=spec.execution,
        store_uri=context.store.uri,
        stage=spec.stage,
        digest=spec.digest(),
    )
    report = launch(context, job)
    metrics = {"loss_first": report.curve["loss"][0], "loss_last": report.curve["loss"][-1]}
    return StageOutput(rows=len(examples), metrics=metrics, facts=Facts.of(report, len(examples), loss=None, objective=None))


def sft_examples(records: Path, sft: SftConfig, golden_sources: list[str]) -> list[tuple[Any, str]]:
    """(prompt messages, response) of the train split: trusted responses, or each record's best measured one (none of an unpaired record
    with the label undesirable). Where prompts state a reward, a trusted response is one of the prompt that asks for its own."""
    import pyarrow.parquet as pq

    from dora_core.data.records import is_golden_source
    from dora_core.data.unpaired import LABEL, is_desirable

    rows = pq.read_table(
        records / "records.parquet", columns=["prompt", "responses", "rewards", "reward_kind", "sources"], filters=[("split", "=", "train")]
    )
    examples = []
    for row in rows.to_pylist():
        if sft.data == "golden":
            asks = row["reward_kind"] == "goal"
            chosen = [
                response
                for response, source, reward in zip(row["responses"], row["sources"], row["rewards"], strict=True)
                if is_golden_source(source, golden_sources) and (not asks or reward == 0)
            ]
        elif row["reward_kind"] == LABEL and not is_desirable(row["rewards"]):
            chosen = []
        else:
            measured = [(reward, r) for reward, r in zip(row["rewards"], row["responses"], strict=True) if reward is not None]
            chosen = [max(measured, key=lambda pair: pair[0])[1]] if measured else []
        examples += [(row["prompt"], response) for response in chosen]
    if sft.data == "golden":
        golden = pq.read_table(records / "golden.parquet", columns=["prompt", "response"], filters=[("split", "=", "train")])
        examples += [(row["prompt"], row["response"]) for row in golden.to_pylist()]
    return examples


def build_task(start: Start, worker: Worker, *, records: str, sft: SftConfig, golden_sources: list[str], text: TextConfig) -> SftTask:
    """Build the task; called on every training worker."""
    from pathlib import Path

    from dora_core.data.encoding import Encoder
    from dora_core.training.sft import SftTask

    examples = sft_examples(Path(records), sft, golden_sources)
    return SftTask(start.module, start.layers, examples, Encoder(start.tokenizer, text), worker, start.tokenizer.pad_token_id)


def _make_tiny(records: Path, spec: Spec, context: StageContext) -> ModelConfig:
    """Tokenizer and random weights from the training texts, as a folder that loads like any other model."""
    import pyarrow.parquet as pq
    import torch

    from dora_core.data.encoding import plain_prompt
    from dora_core.models.loading import build_policy, save_model, train_tokenizer

    folder = context.scratch / "tiny"
    if not (folder / "model.safetensors").exists():
        rows = pq.read_table(records / "records.parquet", columns=["prompt", "responses"], filters=[("split", "=", "train")]).to_pylist()
        tokenizer = train_tokenizer((t for r in rows for t in (plain_prompt(r["prompt"]), *r["responses"])), spec.model.vocab_size)
        torch.manual_seed(spec.sft.optimization.seed)
        positions = spec.text.max_prompt_tokens + max(spec.text.max_response_tokens, LONGEST_SAMPLE)
        save_model(build_policy(spec.model, tokenizer, positions), tokenizer, folder)
    return ModelConfig(source=str(folder))


def headline(result: StageResult[Facts]) -> str:
    return f"{result.facts.steps} steps"


STAGE = Stage(Spec, run, facts=Facts, headline=headline, section="training")
