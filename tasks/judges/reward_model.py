"""Judge ``reward_model``: r(x, y) of a reward model, nats of log-odds.

Sharded over actors as every inference is; a score depends on its own (prompt, response) alone, up to the rounding of batches, which
neither workers nor their deaths change. Cost: one forward pass over every response.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dora_core.config.judging import RewardModelJudge
from dora_core.config.method import ModelConfig, TextConfig
from tasks.judges.base import JudgeKind, JudgeSpec, Scored
from tasks.runtime.spec import ModelSource, local_model
from tasks.runtime.stage import StageContext
from tasks.runtime.workers import ModelWorker, WorkerArguments

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


class RewardArguments(WorkerArguments):
    """Arguments of :class:`RewardScorer`: the reward model by name, or the stage that trained it."""

    model: ModelSource
    text: TextConfig


class RewardScorer(ModelWorker[RewardArguments]):
    """Scores (prompt, response) rows with a reward model. The output is one column, ``score``."""

    def model(self) -> ModelConfig | Path:
        """The reward model, as it is loaded on this machine."""
        return local_model(self.arguments.model, self.arguments.store_uri)

    def load(self) -> None:
        from dora_core.data.encoding import Encoder
        from dora_core.models.loading import load_reward_model
        from dora_core.training.reward_model import RewardModel

        loaded, tokenizer = load_reward_model(self.model(), self.dtype)
        self._model = RewardModel(loaded).eval().to(self.device)
        self._encoder, self._pad_id = Encoder(tokenizer, self.arguments.text), tokenizer.pad_token_id

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.training.reward_model import score

        texts = [[response] for response in rows["response"].to_pylist()]
        encoded = [row for [row] in self._encoder.encode_lists(rows["prompt"].to_pylist(), texts)]
        return pa.table({"score": pa.array(score(self._model, encoded, self._pad_id, self.budget, self.device), pa.float64())})


def score(spec: JudgeSpec, context: StageContext, rows: pa.Table) -> Scored:
    from tasks.runtime.shards import run_shards

    assert isinstance(spec.judge, RewardModelJudge)
    model = spec.model or spec.judge.model
    arguments = RewardArguments(store_uri=context.store.uri, execution=spec.execution, model=model, text=spec.text)
    scored = run_shards(
        context,
        rows.select(["prompt", "response"]),
        name="scores",
        worker=partial(RewardScorer, arguments),
        execution=spec.execution,
        unit="responses",
    )
    return Scored(scored["score"].to_numpy())


def lacks(spec: JudgeSpec) -> str | None:
    if isinstance(spec.judge, RewardModelJudge) and spec.judge.model.is_tiny and spec.model is None:
        return "no trained model is named, and the tiny reward model exists only once it is trained: give the reward stage as `model`"
    return None


JUDGE = JudgeKind(RewardModelJudge, score, lacks)
