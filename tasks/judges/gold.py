"""Judge ``gold``: the known mixture's own gold reward.

Cost: microseconds per response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dora_core.config.judging import GoldJudge
from tasks.judges.base import JudgeKind, JudgeSpec, Scored
from tasks.runtime.stage import StageContext

if TYPE_CHECKING:
    import pyarrow as pa


def score(spec: JudgeSpec, context: StageContext, rows: pa.Table) -> Scored:
    """
    Raises:
        DataError: prompts of other data than the testbed's.
    """
    import numpy as np

    from dora_core.data.encoding import plain_prompt
    from dora_core.testbed.mixture import Testbed

    assert isinstance(spec.judge, GoldJudge)
    prompts = [plain_prompt(messages) for messages in rows["prompt"].to_pylist()]
    testbed = Testbed(spec.judge.testbed)
    testbed.require_prompts(prompts)
    return Scored(np.array([testbed.gold_reward(p, r) for p, r in zip(prompts, rows["response"].to_pylist(), strict=True)]))


JUDGE = JudgeKind(GoldJudge, score)
