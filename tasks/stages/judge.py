"""Stage ``judge``: a score for every response.

Input: records, and either a ``generate`` stage's samples or, without one, the records' own responses. Output: ``scores.parquet``
(record_id, sample, score), in the order of the responses; larger is better, null where a judge reached no verdict. ``sample`` is the
sample's number, or the place of the response in its record. Guarantee: a score depends on the responses of its own prompt alone; resume
and other numbers of workers do not change it.
Cost: gold, microseconds per response; a model, one forward pass over it; an LLM, two requests per pair of responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from dora_core.config.judging import GoldJudge, ImplicitJudge, Judge, LLMJudge, RewardModelJudge
from dora_core.config.method import ModelConfig, TextConfig
from tasks.runtime.descriptor import Stage
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.stage import StageContext, StageOutput, StageRef, StageSpec
from tasks.tables.artifacts import RECORDS_FILE, SAMPLES_FILE, SCORES_FILE
from tasks.tables.rows import responses_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class Spec(StageSpec):
    """See the module docstring.

    Attributes:
        samples: None judges the records' own responses of ``split``.
        model: the ``reward`` stage; for ``implicit`` the policy, as the stage that trained it or by name.
        reference: for ``implicit``: what the policy started from, likewise.
        text: how prompt and response become tokens; unused by ``gold`` and ``llm``.
    """

    stage: ClassVar[str] = "judge"
    version: ClassVar[int] = 2  # own responses can be judged; the judge's settings have more kinds

    records: StageRef
    samples: StageRef | None = None
    split: Literal["train", "eval"] = "eval"
    judge: Judge
    model: StageRef | ModelConfig | None = None
    reference: StageRef | ModelConfig | None = None
    text: TextConfig = TextConfig()

    @model_validator(mode="after")
    def _check(self) -> Spec:
        judge = self.judge
        if isinstance(judge, RewardModelJudge) and judge.model.is_tiny and self.model is None:
            raise ValueError("the tiny reward model exists only once it is trained: give the reward stage as `model`")
        if isinstance(judge, ImplicitJudge) and (self.model is None or self.reference is None):
            raise ValueError("an implicit reward is that of a policy against its start: give both as `model` and `reference`")
        if isinstance(judge, LLMJudge) and self.execution.endpoint is None:
            raise ValueError("an llm judge is a server: name it in execution.judge.endpoint")
        return self


class Facts(BaseFacts):
    """How an LLM's comparisons and the requests for them went; empty for other judges."""

    comparisons: int = Field(0, description="Pairs of responses that were compared.")
    unparsable: int = Field(0, description="Answers without a verdict.")
    position_disagreement: float | None = Field(None, description="Share of pairs whose two verdicts differ, which makes them ties.")
    tie_share: float | None = Field(None, description="Share of pairs that are ties, those included.")
    requests: int = Field(0, description="Sent in this attempt, retries included.")
    retries: int = 0
    reused: int = Field(0, description="Answers of earlier attempts.")
    answers_per_second: float | None = Field(None, description="Null where no request was sent.")


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = judged_rows(spec, context)
    if isinstance(spec.judge, GoldJudge):
        scores, facts = gold_scores(spec.judge, rows), Facts()
    elif isinstance(spec.judge, LLMJudge):
        from tasks.judges.llm import llm_scores

        scores, found = llm_scores(spec, context, rows)
        facts = Facts(**found)
    else:
        from tasks.judges.models import model_scores

        scores, facts = model_scores(spec, context, rows), Facts()
    scores = np.where(np.isfinite(scores), scores, np.nan)  # a model that overflows has no opinion either
    table = rows.select(["record_id", "sample"]).append_column("score", pa.array(scores, pa.float64(), from_pandas=True))
    pq.write_table(table, context.path / SCORES_FILE, compression="zstd")
    low, high = pc.min_max(table["score"]).as_py().values()
    mean = pc.mean(table["score"]).as_py()
    metrics = {} if mean is None else {"mean_score": mean, "min_score": low, "max_score": high}
    return StageOutput(rows=len(table), metrics=metrics | {"unscored": float(table["score"].null_count)}, facts=facts)


def judged_rows(spec: Spec, context: StageContext) -> pa.Table:
    """One row per response: record_id, prompt (messages), prompt_hash, sample (int32), response; those of a prompt are neighbours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = context.fetch(spec.records) / RECORDS_FILE
    if spec.samples is None:
        columns = ["record_id", "prompt", "prompt_hash", "responses"]
        rows = responses_of(pq.read_table(file, columns=columns, filters=[("split", "=", spec.split)]))
        return rows.rename_columns({"response_index": "sample"})
    samples = pq.read_table(context.fetch(spec.samples) / SAMPLES_FILE, columns=["record_id", "prompt_hash", "sample", "response"])
    records = pq.read_table(file, columns=["record_id", "prompt"])
    place_of = {record: place for place, record in enumerate(records["record_id"].to_pylist())}
    places = pa.array([place_of[record] for record in samples["record_id"].to_pylist()])
    return samples.append_column("prompt", records["prompt"].take(places))


def gold_scores(judge: GoldJudge, rows: pa.Table) -> np.ndarray:
    """The testbed's gold rewards, shape (N,).

    Raises:
        DataError: prompts of other data than the testbed's.
    """
    import numpy as np

    from dora_core.data.encoding import plain_prompt
    from dora_core.testbed.mixture import Testbed

    prompts = [plain_prompt(messages) for messages in rows["prompt"].to_pylist()]
    testbed = Testbed(judge.testbed)
    testbed.require_prompts(prompts)
    return np.array([testbed.gold_reward(p, r) for p, r in zip(prompts, rows["response"].to_pylist(), strict=True)])


STAGE = Stage(Spec, run, Facts)
