"""A model's head called as a module."""

from __future__ import annotations

import torch

from dora_core.data.encoding import EncodedResponse
from dora_core.models.linear_logps import LogitTransform
from dora_core.models.response_forward import forward_logps
from dora_core.models.response_rows import collate
from tests.dora_core.models.architectures import build

ROWS = collate([EncodedResponse([5, 6], [7, 8, 9], 0), EncodedResponse([4], [3], 0)], 0)


def test_a_wrapped_head_gives_what_the_plain_one_gives() -> None:
    model = build("gemma2")
    transform = LogitTransform(cap=3.0)
    plain = forward_logps(model, ROWS, transform, collisions=True)
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings()))
    torch.testing.assert_close(forward_logps(model, ROWS, transform, collisions=True), plain, rtol=1e-12, atol=1e-12)
