"""Judge ``implicit``: a policy's own implicit reward β·(log π − log π_ref) (Rafailov et al. 2023, eq. 5), nats; with ``per_token`` divided
by the response's tokens.

Sharded as in ``tasks/judges/reward_model.py``. Cost: one forward pass over every response for each of two models.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dora_core.config.judging import ImplicitJudge
from tasks.judges.base import JudgeKind, JudgeSpec, Scored
from tasks.runtime.stage import StageContext

if TYPE_CHECKING:
    import pyarrow as pa


def score(spec: JudgeSpec, context: StageContext, rows: pa.Table) -> Scored:
    from tasks.runtime.shards import run_shards
    from tasks.stages.reference import LogpArguments, LogpScorer

    judge = spec.judge
    assert isinstance(judge, ImplicitJudge) and spec.model is not None and spec.reference is not None
    models = {"policy": spec.model, "reference": spec.reference}
    arguments = LogpArguments(store_uri=context.store.uri, execution=spec.execution, models=models, text=spec.text)
    scored = run_shards(
        context,
        rows.select(["prompt", "response"]),
        name="scores",
        worker=partial(LogpScorer, arguments),
        execution=spec.execution,
        unit="responses",
    )
    rewards = judge.beta * (scored["logp_policy"].to_numpy() - scored["logp_reference"].to_numpy())
    return Scored(rewards / scored["tokens"].to_numpy() if judge.per_token else rewards)


def lacks(spec: JudgeSpec) -> str | None:
    if spec.model is None or spec.reference is None:
        return "an implicit reward is that of a policy against its start: give both as `model` and `reference`"
    return None


JUDGE = JudgeKind(ImplicitJudge, score, lacks)
