"""A device with little memory, for the tests of batches that do not fit."""

from __future__ import annotations

import torch
import transformers

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.02 GiB is free."


class Device:
    """A device that holds ``limit`` tokens at once; the model's own code runs up to there."""

    def __init__(self, limit: int):
        self.limit, self.failures, self.passes = limit, 0, 0

    def check(self, tokens: int) -> None:
        self.passes += 1
        if tokens > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError(MESSAGE)


def hold(model: transformers.PreTrainedModel, limit: int) -> Device:
    """From now on the model's cache is held to ``limit`` tokens (rows × columns)."""
    device = Device(limit)
    model.register_forward_pre_hook(lambda _, __, given: device.check(given["attention_mask"].numel()), with_kwargs=True)
    return device
