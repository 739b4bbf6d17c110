"""Descriptor of a judge, at the end of its file, and the spec that it reads.

**A new judge** is its settings in ``dora_core/config/judging.py`` and a file here, named after its kind, that ends with its descriptor
``JUDGE``. The registry (``tasks/judges/registry.py``) finds it by that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from dora_core.config.judging import Judge, JudgeConfig
from dora_core.config.method import TextConfig
from tasks.runtime.facts import Facts
from tasks.runtime.spec import ModelSource, StageRef, StageSpec

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tasks.runtime.stage import StageContext


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
    model: ModelSource | None = None
    reference: ModelSource | None = None
    text: TextConfig = TextConfig()


@dataclass(frozen=True)
class Scored:
    """Scores of N responses, shape (N,), larger is better, not finite without a verdict; and the judge's facts."""

    scores: np.ndarray
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class JudgeKind:
    """A judge's descriptor.

    Attributes:
        config: its settings; ``config.asks_server``: whether it needs ``execution.endpoint``.
        score: scores rows (record_id, prompt, prompt_hash, sample, response; responses of one prompt are neighbours) by ``spec.judge``.
        lacks: error message for a spec that is incomplete for this judge; None if it is complete.
        facts: model of its facts; every field has a default.
    """

    config: type[JudgeConfig]
    score: Callable[[JudgeSpec, StageContext, pa.Table], Scored]
    lacks: Callable[[JudgeSpec], str | None] = lambda spec: None
    facts: type[Facts] = Facts

    @property
    def kind(self) -> str:
        return str(self.config.model_fields["kind"].default)
