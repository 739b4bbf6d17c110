"""Worker that scores responses with the weights of a trial, which has no result yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.store.store import Store
from tasks.runtime.spec import ModelSource, StageRef
from tasks.stages.reference import LogpScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TrialScorer(LogpScorer):
    """Scores with the weights that the trial has now."""

    def load_policy(self, source: ModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from dora_core.models.loading import load_policy
        from tasks.training.job import trained_folder

        assert isinstance(source, StageRef)
        folder = trained_folder(Store(self.arguments.store_uri), source.stage, source.digest)
        model, tokenizer = load_policy(folder, self.dtype)
        return model.eval().to(self.device), tokenizer
