"""Model folders in the form of earlier releases of transformers: keys by hand, equal numbers, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.method import LoraConfig
from dora_core.errors import ConfigError, ModelError
from dora_core.models.adapters import add_lora
from dora_core.models.loading import save_model
from dora_core.models.portable import export_model, make_portable

IDS = torch.tensor([[5, 6, 7, 8]])


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}),
        (
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        ),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        (
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 1e4},
        ),
    ],
)
def test_rotary_embeddings_have_the_keys_of_release_4(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16", "rope_parameters": given}))
    assert make_portable(tmp_path) == []
    found = config_of(tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert found["rope_parameters"] == given and found["torch_dtype"] == "bfloat16"


def test_what_release_4_cannot_express_is_noted(tmp_path: Path) -> None:
    rope = {kind: {"rope_theta": 1e4} for kind in ("compress", "main")}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"rope_parameters": rope}}))
    assert make_portable(tmp_path) == ["rotary embeddings by kind of layer (compress, main): transformers 5 or later is needed"]


def test_a_saved_model_computes_the_same_and_has_a_tokenizer_of_release_4(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    policy.config.rope_parameters = {"rope_type": "default", "rope_theta": 2e5}
    policy = type(policy)(policy.config)  # its rotary buffers are of the new base
    save_model(policy, tokenizer, tmp_path / "saved")
    assert export_model(tmp_path / "saved", tmp_path / "out") == []
    assert config_of(tmp_path / "out")["rope_theta"] == 2e5
    written = config_of(tmp_path / "out", "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and not {"is_local", "local_files_only"} & written.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded(IDS).logits, policy.eval()(IDS).logits)


def test_an_adapter_is_merged_on_request(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(policy, tokenizer, tmp_path / "base")
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(rank=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    export_model(tmp_path / "adapter", tmp_path / "as it is")
    assert (tmp_path / "as it is" / "adapter_config.json").is_file()
    export_model(tmp_path / "adapter", tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = adapted.eval()(IDS).logits
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (merged(IDS).logits - policy.eval()(IDS).logits).abs().max() > 1e-3, "the adapter counts"


def test_nothing_is_overwritten_or_left_half_written(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(policy, tokenizer, tmp_path / "saved")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_model(tmp_path / "saved", tmp_path / "full")
    with pytest.raises(ModelError, match=r"no config\.json"):
        export_model(tmp_path / "full", tmp_path / "out")
    (tmp_path / "saved" / "config.json").write_text("{ torn")
    with pytest.raises(json.JSONDecodeError):
        export_model(tmp_path / "saved", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "saved"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
