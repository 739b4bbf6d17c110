"""Every architecture's records are read in a way that gives the numbers of one unpadded sequence per response and whole logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from dora_core.config.method import LoraConfig
from dora_core.data.encoding import EncodedResponse
from dora_core.errors import ModelError
from dora_core.models import row_layout as row_layout_module
from dora_core.models.adapters import add_lora
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packed_attention import NAME
from dora_core.models.packing import PackedRows
from dora_core.models.response_rows import ResponseRows
from dora_core.models.row_layout import Way, row_layout
from tests.dora_core.models.architectures import ARCHITECTURES, WINDOW, build
from tests.dora_core.models.packed_records import one_at_a_time, record

CPU = torch.device("cpu")
SHORT = [record(5, 3, 3, seed=1), record(3, 4, 1, 7, seed=2), record(6, 4, seed=3), record(1, 1, 1, seed=4)]
LONG = [record(14, 6, 11, seed=5), record(2, 20, 3, seed=6), record(9, 1, seed=7)]
ROUNDING = 2e-6
"""Norms, routers and softmax of transformers compute in float32 in a float64 model."""
FEW = ("llama", "gemma2", "gpt_oss", "mixtral", "gpt2", "granite")
"""Architectures that differ in what adapters and bfloat16 could meet."""


def values_and_gradients(model: torch.nn.Module, logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.linspace(-1.0, 2.0, len(logps), dtype=logps.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((logps * weights).sum(), parameters, allow_unused=True)
    return logps.detach(), torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ways_values_and_gradients(name: str) -> None:
    about, model = ARCHITECTURES[name], build(name)
    layout = row_layout(model, CPU)
    assert (layout.short, layout.long) == (about.short, about.long), layout.reasons
    assert layout.threshold == (float("inf") if about.short is about.long else WINDOW)
    for records, way in ((SHORT, about.short), (LONG, about.long)):
        if way is Way.REFUSED:
            with pytest.raises(ModelError, match=r"positions|tokens"):
                ResponseLogps(model).collate(records, 0)
            continue
        fresh = build(name)  # its own attention, and no state of earlier passes
        expected = values_and_gradients(fresh, one_at_a_time(fresh, records))
        logps = ResponseLogps(model)
        rows = logps.collate(records, 0)
        assert isinstance(rows, PackedRows) == (way is Way.PACKED)
        if isinstance(rows, ResponseRows):
            assert rows.by_length == (way is Way.BY_LENGTH)
        got = values_and_gradients(model, logps(rows))
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() <= ROUNDING * (1.0 + b.abs().max())


@pytest.mark.parametrize("name", FEW)
def test_adapters_are_read_like_the_model(name: str) -> None:
    """Values and gradients of adapters; dropout of the base is none of the adapters' business."""
    found = []
    for packed in (True, False):
        model = add_lora(build(name), LoraConfig(rank=2))
        torch.manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.2)
        records = SHORT + LONG
        logps = ResponseLogps(model) if packed else None
        sums = logps(logps.collate(records, 0)) if logps else one_at_a_time(model, records)
        found.append(values_and_gradients(model, sums))
    for a, b in zip(*found, strict=True):  # Gemma 2's large adapters: 3.4e-6; 1e-14 where its norms and softmax are float64 too
        assert (a - b).abs().max() <= 4 * ROUNDING * (1.0 + b.abs().max())


@pytest.mark.parametrize("name", FEW)
def test_in_bfloat16_the_error_is_that_of_the_plain_path(name: str) -> None:
    """Against float64: the packed values may be off by twice what one sequence at a time is."""
    records = SHORT + LONG
    exact = one_at_a_time(build(name), records).detach()
    plain = one_at_a_time(build(name).to(torch.bfloat16), records).detach()
    model = build(name).to(torch.bfloat16)
    logps = ResponseLogps(model)
    got = logps(logps.collate(records, 0)).detach().double()
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + 0.02
    assert (got - exact).pow(2).mean().sqrt() <= 1.5 * (plain - exact).pow(2).mean().sqrt() + 0.01


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mistral"])
def test_a_packed_model_still_answers_ordinary_calls(name: str) -> None:
    """Left padding and a cache, as in generation: the soft cap, the sinks and the window hold there too."""
    ids = torch.tensor([[0, 0, 0, 5, 6, 7, 8, 9, 4, 3, 9, 8, 7, 6], [8, 9, 10, 11, 12, 13, 3, 4, 5, 6, 7, 8, 9, 10]])
    mask = (ids > 0).long()
    position = (mask.cumsum(1) - 1).clamp(min=0)
    found = []
    for packs in (False, True):
        model = build(name).float()  # in float64, transformers' own mask of a padded row is NaN in its float32 softmax
        if packs:
            ResponseLogps(model)
            assert model.config._attn_implementation == NAME
        with torch.no_grad():
            whole = model(input_ids=ids, attention_mask=mask, position_ids=position).logits
            first = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=position[:, :-1], use_cache=True)
            last = model(
                input_ids=ids[:, -1:], attention_mask=mask, position_ids=position[:, -1:], past_key_values=first.past_key_values
            ).logits
        torch.testing.assert_close(last, whole[:, -1:], rtol=1e-4, atol=1e-4)
        found.append(whole[mask.bool()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_values_do_not_depend_on_the_batch() -> None:
    """A long row beside a short one changes the RoPE of longrope in transformers; here rows of different length do not meet."""
    model = build("phi3, longrope")
    logps = ResponseLogps(model)
    alone = [logps(logps.collate([one], 0)) for one in SHORT + LONG]
    together = logps(logps.collate(SHORT + LONG, 0))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)


def test_the_verdict_does_not_depend_on_dtype() -> None:
    for name in ("lfm2", "minimax", "deepseek_v3.2"):
        model = build(name).to(torch.bfloat16)
        layout = row_layout(model, CPU)
        assert (layout.short, layout.long) == (ARCHITECTURES[name].short, ARCHITECTURES[name].long)
        assert ResponseLogps(model).unpacked_because


def test_logits_that_are_not_understood_are_refused() -> None:
    class Doubled(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits**3
            return out

    config = transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match="transforms its logits"):
        ResponseLogps(Doubled(config))


def test_rows_beyond_the_positions_are_refused_by_name() -> None:
    logps = ResponseLogps(build("gpt2"))
    with pytest.raises(ModelError, match="70 tokens of prompt and response do not fit into the 64 positions") as error:
        logps.collate([[EncodedResponse([3] * 60, [4] * 10, 0)]], 0)
    assert "text.max_prompt_tokens" in error.value.hint


def test_the_readme_has_every_architecture_with_its_ways() -> None:
    readme = (Path(__file__).parents[3] / "dora_core" / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Architectures")[1].split("\n## ")[0]
    found = {}
    for line in table.splitlines():
        names, short, long, *_ = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else ("", "", "")
        for name in [names] if names in ARCHITECTURES else names.split(", "):
            found[name] = (short, long)
    assert {name: (about.short.value, about.long.value) for name, about in ARCHITECTURES.items()}.items() <= found.items()


def test_a_device_that_is_full_is_no_property_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised, and the next decision is made anew."""

    def runs_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(row_layout_module, "_known", {})
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
    )
    model = transformers.LlamaForCausalLM(config)
    with monkeypatch.context() as full, pytest.raises(torch.OutOfMemoryError):
        full.setattr(row_layout_module, "forward_logps", runs_out)
        ResponseLogps(model)
    assert ResponseLogps(model).unpacked_because == ""
