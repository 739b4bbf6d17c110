"""Spec of the stage ``align``; the stage ``trial`` extends it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dora_core.config.alignment import AlignConfig
from dora_core.config.method import ModelConfig, TextConfig
from dora_core.strict_model import is_empty
from tasks.runtime.spec import StageRef, StageSpec
from tasks.tables.join_settings import Aggregate, TrustUse
from tasks.tables.record_selection import HeldOutPrompts, RecordSelection


class Spec(StageSpec):
    """Spec of the stage ``align``, see there.

    Attributes:
        selection: part of the records; None: all.
        held_out: prompts whose records are not trained on.
        equal_steps: with a selection, do as many steps as training on all records would, with more passes over the selected ones.
    """

    stage: ClassVar[str] = "align"
    version: ClassVar[int] = 2  # no dropout, no adapted routers, weights in their stored type

    records: StageRef
    calibration: StageRef | None
    reference: StageRef
    start: StageRef | None
    model: ModelConfig
    text: TextConfig
    align: AlignConfig
    aggregate: Aggregate = "mean"
    trust: StageRef | None = None
    """Probabilities of the labels, used as ``trust_use`` says."""
    trust_use: TrustUse = "soft_label"
    recipe: str | None = Field(None, exclude_if=is_empty)
    """Finalist of the race to train; None: its choice."""
    race: StageRef | None = None
    """Stage that chooses objective, weights and label probabilities: then also :attr:`calibration` and :attr:`trust`."""
    selection: RecordSelection | None = Field(None, exclude_if=is_empty)
    held_out: HeldOutPrompts | None = Field(None, exclude_if=is_empty)
    equal_steps: bool = Field(False, exclude_if=is_empty)
    plugins: list[str] = Field(default_factory=list)
    """sha256 of the files that define a loss or objective of the user's (:func:`plugin_digests`): edited code is another run."""

    def preparation(self) -> dict[str, StageSpec]:
        """The training data, tokenised in one process."""
        from tasks.stages import training_data

        data = training_data.Spec(
            records=self.records,
            calibration=self.calibration,
            reference=self.reference,
            start=self.start,
            model=self.model,
            text=self.text,
            aggregate=self.aggregate,
            trust=self.trust,
            trust_use=self.trust_use,
            max_responses=2 if self.align.loss.reads_pairs_only else self.align.max_responses,
            selection=self.selection,
            held_out=self.held_out,
            recipe=self.recipe,
            loss=self.align.loss,
            execution=self.execution.model_copy(update={"workers": 0, "gpus_per_worker": 0.0}),
        )
        return {"data": data}
