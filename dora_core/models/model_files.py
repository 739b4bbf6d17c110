"""Files that describe a model without its weights: configuration, generation configuration, tokenizer.

What can be known of a model before anything heavy runs is read from these. Loading weights is ``loading.py``.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from dora_core.config.method import ModelConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase


class ModelFiles:
    """The describing files of one model by name; each is read once, at its first use.

    Raises:
        ModelError: on reading an attribute: the file is missing, damaged, or of an unknown architecture.
    """

    def __init__(self, model: ModelConfig):
        self.model = model

    @property
    def name(self) -> str:
        return self.model.source

    @cached_property
    def config(self) -> PretrainedConfig:
        from dora_core.models.loading import load_settings

        return load_settings(self.model)

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """As transformers would load it with the weights: made from :attr:`config` where the file is missing."""
        from dora_core.models.loading import load_generation_settings

        return load_generation_settings(self.model, self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from dora_core.models.loading import load_tokenizer

        return load_tokenizer(self.model)


@lru_cache(maxsize=4)
def model_files(model: ModelConfig) -> ModelFiles:
    """The files of a pinned model, read once in this process: its digest or commit is part of the key."""
    return ModelFiles(model)
