"""Packed records give the log-probabilities and gradients of one response at a time, on every architecture that claims it."""

from __future__ import annotations

import pytest
import torch

from dora_core.config.method import LoraConfig
from dora_core.models.adapters import add_lora
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packed_attention import FLEX_BLOCK, FlexAttention, NotPackable, Scores, SegmentedAttention, packed_attention_forward
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


def visible(segments: tuple[Segment, ...], window: int | None) -> torch.Tensor:
    """(S, S): whether a packed token attends to another; a window counts positions, which restart after the prompt."""
    part = torch.tensor([p for s in segments for p, n in enumerate((s.prompt, *s.responses)) for _ in range(n)])
    record = torch.tensor([r for r, s in enumerate(segments) for _ in range(len(s))])
    starts = [(0 if p == 0 else s.prompt, n) for s in segments for p, n in enumerate((s.prompt, *s.responses))]
    position = torch.tensor([start + i for start, n in starts for i in range(n)])
    sees = (record[:, None] == record) & ((part == 0) | (part[:, None] == part)) & torch.ones(len(part), len(part)).bool().tril()
    return sees if window is None else sees & (position[:, None] - position < window)


@pytest.mark.parametrize("window", [None, 40, 300])
def test_the_block_mask_keeps_all_that_is_visible_and_skips_most_of_the_rest(window: int | None) -> None:
    segments = (Segment(300, (150, 260, 140)), Segment(3, (0, 9, 4)), Segment(520, (130, 128)), Segment(200, (90,)))
    sees = visible(segments, window)
    padding = -len(sees) % FLEX_BLOCK
    blocks = torch.nn.functional.pad(sees, (0, padding, 0, padding)).view(-1, FLEX_BLOCK, (len(sees) + padding) // FLEX_BLOCK, FLEX_BLOCK)
    mask = FlexAttention(segments, torch.device("cpu")).mask(window)
    kept = mask.to_dense()[0, 0].bool()
    assert (kept | ~blocks.any(dim=3).any(dim=1)).all(), "a visible pair is in a skipped block"
    slack = 1.25 if window is None else 1.6  # a block with several parts has positions far apart
    assert kept.sum() <= slack * blocks.any(dim=3).any(dim=1).sum() + 1  # + 1: padding sees itself
    full = {(q, int(k)) for q in range(len(kept)) for k in mask.full_kv_indices[0, 0, q, : mask.full_kv_num_blocks[0, 0, q]]}
    assert (full or window == 40) and all(blocks[q, :, k].all() for q, k in full)


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


SCORES = {
    "plain": Scores(0.3),
    "window": Scores(0.3, window=3),
    "soft cap": Scores(0.3, softcap=0.7),
    "sinks": Scores(0.3, sinks_A=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "all": Scores(0.3, window=3, softcap=0.7, sinks_A=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


@pytest.mark.parametrize("name", SCORES)
def test_flex_attention_computes_what_segmented_attention_computes(name: str) -> None:
    """Forward only: on a CPU FlexAttention has no backward pass."""
    segments = (Segment(70, (40, 25)), Segment(3, (0, 9, 4)), Segment(30, (21,)))
    tokens = sum(map(len, segments))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, 16, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    outputs = [way(segments, torch.device("cpu"))(q, k, v, SCORES[name]) for way in (SegmentedAttention, FlexAttention)]
    assert outputs[0].shape == (1, tokens, 4, 16)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_segmented_attention_is_attention_under_the_dense_mask(name: str) -> None:
    """Values and gradients of one softmax over all pairs, those that are not visible masked; cap and sinks by their formulas."""
    segments = (Segment(3, (2, 4)), Segment(2, (0, 0)), Segment(4, (3,)), Segment(1, (2, 2, 2)), Segment(6, (5, 1)))
    given = SCORES[name]
    sees = visible(segments, given.window)
    found = []
    for segmented in (True, False):
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, 4, len(sees), 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
        sinks = None if given.sinks_A is None else given.sinks_A.double().requires_grad_()
        if segmented:
            out = SegmentedAttention(segments, torch.device("cpu"))(q, k, v, Scores(0.3, 0.0, given.window, given.softcap, sinks))
        else:
            score = 0.3 * q @ k.mT
            score = score if given.softcap is None else given.softcap * torch.tanh(score / given.softcap)
            score = score.masked_fill(~sees, -torch.inf).exp()
            total = score.sum(-1, keepdim=True) + (0.0 if sinks is None else sinks.exp()[None, :, None, None])
            out = (score / total @ v).transpose(1, 2)
        out.square().sum().backward()
        found.append([out.detach(), q.grad, k.grad, v.grad, *([] if sinks is None else [sinks.grad])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [{"indices": torch.zeros(1)}, {"position_bias": torch.zeros(1)}, {"is_causal": False}, {"mask": True}])
def test_what_a_layer_asks_for_and_would_not_get_is_refused(given: dict) -> None:
    segments = (Segment(3, (2, 4)),)
    q = torch.randn(1, 2, 9, 8)
    mask = torch.zeros(1, 1, 9, 9) if given.pop("mask", False) else torch.zeros(1, 1, 1, 1)
    packed = SegmentedAttention(segments, torch.device("cpu"))
    with pytest.raises(NotPackable):
        packed_attention_forward(torch.nn.Module(), q, q, q, mask, packed=packed, scaling=0.3, **given)
