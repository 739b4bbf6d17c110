"""Descriptor of a judge, at the end of its file, and the spec that it reads.

**A new judge** is its settings in ``dora_core/config/judging.py`` and a file here, named after its kind, that ends with its descriptor
``JUDGE``. The registry (``tasks/judges/registry.py``) finds it by that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dora_core.config.judging import Judge, JudgeConfig
from dora_core.config.method import ModelConfig, TextConfig
from tasks.runtime.facts import Facts
from tasks.runtime.stage import StageContext, StageRef, StageSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class JudgeSpec(StageSpec):
    """Fields of the stage ``judge``.

    Attributes:
        samples: None judges the records' own responses of ``split``.
        model: the ``reward`` stage; for ``implicit`` the policy, as the stage that trained it or by name.
        reference: for ``implicit``: the model that the policy started from, likewise.
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


class JudgeFacts(Facts):
    """How an LLM's comparisons and the requests for them went; empty for other judges."""

    comparisons: int = Field(0, description="Pairs of responses that were compared.")
    unparsable: int = Field(0, description="Answers without a verdict.")
    position_disagreement: float | None = Field(None, description="Share of pairs whose two verdicts differ, which makes them ties.")
    tie_share: float | None = Field(None, description="Share of pairs that are ties, those included.")
    requests: int = Field(0, description="Sent in this attempt, retries included.")
    retries: int = 0
    reused: int = Field(0, description="Answers of earlier attempts.")
    answers_per_second: float | None = Field(None, description="Null where no request was sent.")


@dataclass(frozen=True)
class Scored:
    """Scores of N responses, shape (N,), larger is better, not finite where there is no verdict; ``facts`` of the stage."""

    scores: np.ndarray
    facts: JudgeFacts = field(default_factory=JudgeFacts)


@dataclass(frozen=True)
class JudgeKind:
    """A judge's descriptor.

    Attributes:
        config: its settings; ``config.asks_server`` says whether it needs ``execution.endpoint``.
        score: scores rows (record_id, prompt, prompt_hash, sample, response; responses of one prompt are neighbours) by the settings
        ``spec.judge``. lacks: error message for a spec that is incomplete for this judge; None if it is complete.
    """

    config: type[JudgeConfig]
    score: Callable[[JudgeSpec, StageContext, pa.Table], Scored]
    lacks: Callable[[JudgeSpec], str | None] = lambda spec: None

    @property
    def kind(self) -> str:
        return str(self.config.model_fields["kind"].default)
