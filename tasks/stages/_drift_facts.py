"""Facts of the ``drift`` stage. Not in ``drift.py``, because that imports ``classify``, which reads these facts."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from dora_core.strict_model import StrictModel
from tasks.runtime.facts import Facts as BaseFacts
from tasks.runtime.facts import Quantiles
from tasks.runtime.spec import StageRef


class Previous(StrictModel):
    """Stages of the project's last run; ``calibrate`` None: h is not compared."""

    records: StageRef
    classify: StageRef
    calibrate: StageRef | None


class Rule(StrictModel):
    """A measure of drift against its thresholds. Thresholds apply to :attr:`excess`, the part that chance does not explain."""

    name: str
    source: str | None = Field(description="Null: of all sources together.")
    value: float | None = Field(description="Null where it was not judged.")
    chance: float | None
    refit_at: float | None
    refuse_at: float | None
    verdict: Literal["ok", "refit", "refuse", "not judged"]
    message: str

    @property
    def excess(self) -> float:
        """``value − chance``; −∞ where it was not judged."""
        return -math.inf if self.value is None or self.chance is None else self.value - self.chance


class Counts(StrictModel):
    """Responses of a source: of the last run, of this one, and new in this one."""

    before: int
    now: int
    new: int


class Shares(StrictModel):
    """Share of a source in the mixture."""

    before: float
    now: float


class Shift(StrictModel):
    """Distribution of a number over a source's earlier and new responses, and its Kolmogorov-Smirnov distance (null: too few)."""

    before: Quantiles | None
    new: Quantiles | None
    ks: float | None


class AucChange(StrictModel):
    """AUC of a head at its fit and on rows new since; null: too few rows."""

    fit: float | None
    new: float | None


class SourceDrift(StrictModel):
    """Changes of one source; a part is absent where it was not compared."""

    responses: Counts | None = None
    share: Shares | None = None
    length: Shift | None = None
    auc: AucChange | None = None
    h: Shift | None = None


class Facts(BaseFacts):
    """Facts of the ``drift`` stage; see ``drift.py``."""

    decision: Literal["fit", "reuse", "refit", "refuse"]
    reason: str
    keep: StageRef | None = Field(description="The classify stage whose classifiers are kept.")
    previous: Previous | None = Field(description="Of the spec; the digest does not cover it, so it is stated here.")
    sources: dict[str, SourceDrift]
    rules: list[Rule]
