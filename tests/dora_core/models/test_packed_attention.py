"""Packed records give the log-probabilities and gradients of one response at a time, on every architecture that claims it."""

from __future__ import annotations

import pytest
import torch

from dora_core.config.method import LoraConfig
from dora_core.models.loading import add_lora
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packed_attention import FLEX_BLOCK, FlexAttention, SegmentedAttention, packed_attention_forward
from dora_core.models.packing import PackedRows, Segment
from tests.dora_core.models.packed_records import MODELS, RECORDS, in_float64, one_at_a_time


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_in_float64(name: str, share_prefix: bool) -> None:
    torch.manual_seed(0)
    model = in_float64(MODELS[name]())
    weights = torch.linspace(-1.0, 2.0, sum(map(len, RECORDS)), dtype=torch.float64)
    expected = one_at_a_time(model, RECORDS)
    (expected * weights).sum().backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad()
    logps = ResponseLogps(model, share_prefix=share_prefix)
    rows = logps.collate(RECORDS, 0)
    assert isinstance(rows, PackedRows) and logps.unpacked_because == ""
    got = logps(rows)
    (got * weights).sum().backward()
    assert (got - expected).abs().max() <= 1e-9
    for key, parameter in model.named_parameters():
        assert (parameter.grad - gradients[key]).abs().max() <= 1e-9, key


def test_a_recomputing_model_with_adapters_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = add_lora(MODELS["llama"](), LoraConfig(rank=2, alpha=4)).double()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logps = ResponseLogps(model)
        model.train()
        (logps(logps.collate(RECORDS, 0)) ** 2).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_as_close_packed_as_padded() -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]()
    expected = one_at_a_time(model, RECORDS)
    logps = ResponseLogps(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = logps(logps.collate(RECORDS, 0))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.05)


def test_the_model_still_answers_ordinary_calls() -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]().double()
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    expected = model(input_ids=ids, attention_mask=mask).logits
    ResponseLogps(model)
    got = model(input_ids=ids, attention_mask=mask).logits
    assert (got - expected)[mask.bool()].abs().max() <= 1e-12


def test_the_block_mask_keeps_all_that_is_visible_and_skips_most_of_the_rest() -> None:
    segments = (Segment(300, (150, 260, 140)), Segment(3, (0, 9, 4)), Segment(520, (130, 128)), Segment(200, (90,)))
    part = torch.tensor([p for s in segments for p, n in enumerate((s.prompt, *s.responses)) for _ in range(n)])
    record = torch.tensor([r for r, s in enumerate(segments) for _ in range(len(s))])
    sees = (record[:, None] == record) & ((part == 0) | (part[:, None] == part))
    sees &= torch.ones_like(sees).tril()
    padding = -len(part) % FLEX_BLOCK
    blocks = torch.nn.functional.pad(sees, (0, padding, 0, padding)).view(-1, FLEX_BLOCK, (len(part) + padding) // FLEX_BLOCK, FLEX_BLOCK)
    mask = FlexAttention(segments, torch.device("cpu")).mask
    kept = mask.to_dense()[0, 0].bool()
    assert (kept | ~blocks.any(dim=3).any(dim=1)).all(), "a visible pair is in a skipped block"
    assert kept.sum() <= 1.25 * blocks.any(dim=3).any(dim=1).sum() + 1  # + 1: padding sees itself
    full = {(q, int(k)) for q in range(len(kept)) for k in mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]]}
    assert full and all(blocks[q, :, k].all() for q, k in full)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: FlexAttention has no backward pass on a CPU")
def test_values_and_gradients_on_a_gpu() -> None:
    torch.manual_seed(0)
    model = MODELS["llama with grouped queries"]()
    found = {}
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        logps = ResponseLogps(model)
        got = logps(logps.collate(RECORDS, 0).to(torch.device(device)))
        got.square().sum().backward()
        found[device] = [got.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
    for expected, got in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_flex_attention_sees_what_segmented_attention_sees() -> None:
    """Forward only: on a CPU FlexAttention has no backward pass."""
    segments = (Segment(70, (40, 25)), Segment(3, (0, 9, 4)), Segment(30, (21,)))
    tokens = sum(map(len, segments))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, 16, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    module, device = torch.nn.Module(), torch.device("cpu")
    outputs = [
        packed_attention_forward(module, q, k, v, None, packed=way(segments, device), scaling=0.3)[0]
        for way in (SegmentedAttention, FlexAttention)
    ]
    assert outputs[0].shape == (1, tokens, 4, 16)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)


def test_segmented_attention_is_attention_under_the_dense_mask() -> None:
    """Values and gradients of one softmax over all pairs, those that are not visible masked."""
    segments = (Segment(3, (2, 4)), Segment(2, (0, 0)), Segment(4, (3,)), Segment(1, (2, 2, 2)))
    record = torch.tensor([r for r, s in enumerate(segments) for _ in range(len(s))])
    part = torch.tensor([p for s in segments for p, n in enumerate((s.prompt, *s.responses)) for _ in range(n)])
    sees = (record[:, None] == record) & ((part == 0) | (part[:, None] == part)) & torch.ones(len(part), len(part)).bool().tril()
    generator = torch.Generator().manual_seed(0)
    found = []
    for segmented in (True, False):
        generator.manual_seed(0)
        q, k, v = (torch.randn(1, 2, len(part), 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
        if segmented:
            out = SegmentedAttention(segments, torch.device("cpu"))(q, k, v, 0.5, 0.0)
        else:
            out = ((0.5 * q @ k.mT).masked_fill(~sees, -torch.inf).softmax(-1) @ v).transpose(1, 2)
        out.square().sum().backward()
        found.append([out.detach(), q.grad, k.grad, v.grad])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
