"""Reading one rank's rows: together they are the plain model's weights, in every architecture; what cannot be read so is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dora_core.config.method import ModelConfig
from dora_core.models.sharded_loading import (
    CannotShard,
    ShardedModel,
    Share,
    Stored,
    load_sharded,
    model_class,
    read_config,
    stored_dtypes,
    weight_files,
)
from tests.dora_core.models.small_models import NAMES, saved

CPU = torch.device("cpu")


def read(folder: Path, share: Share, dtype: torch.dtype = torch.float32) -> ShardedModel:
    config = ModelConfig(source=str(folder))
    settled = read_config(config)
    return load_sharded(model_class(transformers.AutoModelForCausalLM, settled), settled, config, share, dtype, CPU)


def test_rows_are_those_of_torch_chunk() -> None:
    rows = torch.arange(7)
    for ranks in (1, 2, 3, 4, 8):
        chunks = [*torch.chunk(rows, ranks)]
        chunks += [rows[:0]] * (ranks - len(chunks))
        for rank, chunk in enumerate(chunks):
            assert torch.equal(Share(rank, ranks).of(rows), chunk)


def test_a_stored_tensor_is_read_by_rows(tmp_path: Path) -> None:
    save_file({"w": torch.arange(12.0).reshape(4, 3)}, tmp_path / "one.safetensors")
    stored = Stored(tmp_path / "one.safetensors", "w", (slice(1, 3), slice(0, 3)))
    assert stored.get_shape() == [2, 3] and stored[...].tolist() == [[3, 4, 5], [6, 7, 8]]
    assert Stored(tmp_path / "one.safetensors", "w").get_shape() == [4, 3]
    assert stored[1:].tolist() == [[6, 7, 8]]


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_all_ranks_are_the_plain_weights(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path)
    assert len(weight_files(ModelConfig(source=str(folder)))) > 3
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shares = [read(folder, Share(rank, 3)) for rank in range(3)]
    expected = dict(plain.named_parameters())
    assert dict(shares[0].model.named_parameters()).keys() == expected.keys(), "tied weights are one parameter"
    for parameter_name, weight in expected.items():
        parts = [share.rows[share.model.get_parameter(parameter_name)] for share in shares]
        assert torch.equal(torch.cat(parts), weight), parameter_name
        assert len(parts[0]) < len(weight)
    buffers = dict(plain.named_buffers())
    assert buffers.keys() == dict(shares[2].model.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[at]) for at, buffer in shares[2].model.named_buffers()), "rotary frequencies are computed"
    assert shares[1].model.generation_config.to_dict() == plain.generation_config.to_dict()


def test_placeholders_have_shape_and_no_storage(tmp_path: Path) -> None:
    share = read(saved("llama", tmp_path), Share(0, 2))
    embedding = share.model.get_input_embeddings().weight
    assert embedding.shape == (101, 32) and embedding.untyped_storage().nbytes() == 4 and embedding.isnan().all()
    assert share.rows[embedding].shape == (51, 32)


def test_the_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    folder = saved("tied", tmp_path, torch.bfloat16)
    assert stored_dtypes(ModelConfig(source=str(folder))) == {"BF16"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float32):
        share = read(folder, Share(0, 1), dtype)
        assert {rows.dtype for rows in share.rows.values()} == {dtype}
        for name, weight in plain.named_parameters():
            assert torch.equal(share.rows[share.model.get_parameter(name)].float(), weight), "bfloat16 values are exact in float32"


def test_a_head_that_is_in_no_file_is_the_one_that_a_plain_load_draws(tmp_path: Path) -> None:
    folder, config = saved("tied", tmp_path), ModelConfig(source=str(tmp_path))
    torch.manual_seed(3)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5, dtype=torch.float32)
    settled = read_config(config, num_labels=5)
    kind = model_class(transformers.AutoModelForSequenceClassification, settled)
    parts = []
    for rank in range(2):
        torch.manual_seed(3)
        share = load_sharded(kind, settled, config, Share(rank, 2), torch.float32, CPU)
        parts.append(share.rows[share.model.score.weight])
    assert torch.equal(torch.cat(parts), plain.score.weight) and len(parts[0]) == 3


def refused(folder: Path) -> str:
    with pytest.raises(CannotShard) as error:
        read(folder, Share(0, 2))
    return error.value.message


def test_what_cannot_be_read_by_rows_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = saved("tied", tmp_path / "tied")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    settings = json.loads((folder / "config.json").read_text())

    (folder / "config.json").write_text(json.dumps(settings | {"hidden_size": 64, "head_dim": 8}))
    assert "has shape" in refused(folder)
    (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "fp8"}}))
    assert refused(folder) == "its weights are quantised"
    (folder / "config.json").write_text(json.dumps(settings))

    file = folder / index["weight_map"]["model.embed_tokens.weight"]
    tensors = load_file(file)
    index["weight_map"]["lm_head.weight"] = file.name
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lm_head.weight and model.embed_tokens.weight, which are one weight" in refused(folder)

    (folder / "model.safetensors.index.json").unlink()
    assert refused(folder) == "it has neither model.safetensors nor model.safetensors.index.json"
    assert "config.json cannot be read" in refused(tmp_path / "nothing")
    with pytest.raises(CannotShard, match="trust_remote_code"):
        read_config(ModelConfig(source="a/b", revision="a" * 40, trust_remote_code=True))
