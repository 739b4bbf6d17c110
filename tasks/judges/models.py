"""Judges that are models: a reward model's score, and a policy's own implicit reward.

Sharded over actors as every inference is; a score depends on its own (prompt, response) alone, up to the rounding of batches, which
neither workers nor their deaths change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dora_core.config.judging import ImplicitJudge
from dora_core.config.method import ModelConfig, TextConfig
from tasks.runtime.stage import StageContext, StageRef, local_model

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from tasks.stages.judge import Spec


class RewardScorer:
    """Scores (prompt, response) rows with a reward model; lives in an actor with the model loaded. The output is one column, ``score``.

    Args:
        model: by name, or the stage that trained it.
        store_uri: where a stage's model is fetched from, on whatever machine this runs.
    """

    def __init__(self, model: ModelConfig | StageRef, store_uri: str, text: TextConfig, batch_tokens: int, gpu: bool):
        self._open(local_model(model, store_uri), text, batch_tokens, gpu)

    def _open(self, model: ModelConfig | Path, text: TextConfig, batch_tokens: int, gpu: bool) -> None:
        import torch

        from dora_core.data.encoding import Encoder
        from dora_core.models.batching import TokenBudget
        from dora_core.models.loading import load_reward_model
        from dora_core.training.reward_model import RewardModel

        self._device, self.budget = torch.device("cuda" if gpu else "cpu"), TokenBudget(batch_tokens)
        loaded, tokenizer = load_reward_model(model, torch.bfloat16 if gpu else torch.float32)
        self._model = RewardModel(loaded).eval().to(self._device)
        self._encoder, self._pad_id = Encoder(tokenizer, text), tokenizer.pad_token_id

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        from dora_core.training.reward_model import score

        texts = [[response] for response in rows["response"].to_pylist()]
        encoded = [row for [row] in self._encoder.encode_lists(rows["prompt"].to_pylist(), texts)]
        return pa.table({"score": pa.array(score(self._model, encoded, self._pad_id, self.budget, self._device), pa.float64())})


def model_scores(spec: Spec, context: StageContext, rows: pa.Table) -> np.ndarray:
    """Scores of ``rows`` (columns prompt, response; those of a prompt are neighbours) by ``spec.judge``, shape (N,), finite.

    ``reward_model``: r(x, y), nats of log-odds. ``implicit``: β·(log π − log π_ref) (Rafailov et al. 2023, eq. 5), nats; with
    ``per_token`` divided by the response's tokens.
    """
    from tasks.runtime.shards import run_shards
    from tasks.stages.reference import LogpScorer

    judge = spec.judge
    implicit = isinstance(judge, ImplicitJudge)
    models: dict[str, Any] = (
        {"models": {"policy": spec.model, "reference": spec.reference}} if implicit else {"model": spec.model or judge.model}
    )
    scored = run_shards(
        context,
        rows.select(["prompt", "response"]),
        name="scores",
        worker=LogpScorer if implicit else RewardScorer,
        arguments=models
        | {
            "store_uri": context.store.uri,
            "text": spec.text,
            "batch_tokens": spec.execution.batch_tokens,
            "gpu": spec.execution.gpus_per_worker > 0,
        },
        execution=spec.execution,
        unit="responses",
    )
    if not implicit:
        return scored["score"].to_numpy()
    rewards = judge.beta * (scored["logp_policy"].to_numpy() - scored["logp_reference"].to_numpy())
    return rewards / scored["tokens"].to_numpy() if judge.per_token else rewards
