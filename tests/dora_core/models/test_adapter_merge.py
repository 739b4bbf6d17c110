"""Names without adapters, and blocks without one. (Merging against peft: test_sharded_saving.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dora_core.models.adapter_merge import merge_block, plain_name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("layers.0.q_proj.weight", "layers.0.q_proj.weight"),
        ("layers.0.q_proj.base_layer.weight", "layers.0.q_proj.weight"),
        ("lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("lm_head.original_module.weight", "lm_head.weight"),
    ],
)
def test_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_the_trained_copy_of_a_head_counts() -> None:
    model = nn.ModuleDict({"head": nn.ModuleDict({"original_module": nn.Linear(2, 1), "modules_to_save": nn.ModuleDict()})})
    model["head"]["modules_to_save"]["default"] = nn.Linear(2, 1)
    tensors = {"head.original_module.weight": torch.zeros(1, 2), "head.modules_to_save.default.weight": torch.ones(1, 2)}
    assert merge_block(model, tensors)["head.weight"].tolist() == [[1.0, 1.0]] and not tensors
