"""Packed records give the log-probabilities and gradients of one response at a time, on every architecture that claims it."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

from dora_core.config.method import LoraConfig
from dora_core.data.encoding import EncodedResponse
from dora_core.models.loading import add_lora
from dora_core.models.logprobs import ResponseLogps, ResponseRows, score_responses
from dora_core.models.packed_attention import FLEX_BLOCK, FlexAttention, SegmentedAttention, packed_attention_forward
from dora_core.models.packing import PackedRows, Segment, by_prompt, pack, packed_tokens

SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "llama with grouped queries": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL, num_key_value_heads=2)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    ),
}


def record(prompt: int, *responses: int, seed: int = 0) -> list[EncodedResponse]:
    """One record of random tokens with these lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(3, 64, (n,), generator=generator).tolist()

    ids = draw(prompt)
    return [EncodedResponse(ids, draw(n), 0) for n in responses]


RECORDS = [
    record(5, 3, 3, seed=1),  # equal lengths
    record(3, 4, 1, 7, seed=2),  # ragged, one response of a single token
    record(6, 5, seed=3),  # a list of one
    record(1, 1, 1, seed=4),  # nothing but single tokens
]


def in_float64(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """All of it: transformers' RMSNorm computes in float32 whatever its input, which alone moves gradients by 1e-7."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                setattr(parent, name, torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon))
    return model.double()


def one_at_a_time(model: torch.nn.Module, records: list[list[EncodedResponse]]) -> torch.Tensor:
    sums = []
    for response in (r for rows in records for r in rows):
        ids = torch.tensor([response.prompt_ids + response.response_ids])
        logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
        start = len(response.prompt_ids) - 1
        sums.append(sum(logps[start + t, token] for t, token in enumerate(response.response_ids)))
    return torch.stack(sums)


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


def test_nothing_is_padded_and_a_prompt_is_there_once() -> None:
    rows = pack(RECORDS)
    # 5+2+2, 3+3+0+6, 6+4, 1+0+0: the last token of a response predicts nothing
    assert len(rows.ids_S) == 9 + 12 + 10 + 1 == sum(map(len, rows.segments))
    assert rows.positions_S.tolist() == [*range(5), 5, 6, 5, 6, *range(3), 3, 4, 5, 3, 4, 5, 6, 7, 8, *range(6), 6, 7, 8, 9, 0]
    assert rows.targets_T.tolist() == [t for rows in RECORDS for r in rows for t in r.response_ids]
    assert [packed_tokens(r) for r in RECORDS] == [11, 15, 11, 3]


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


@pytest.mark.parametrize(
    "model, reason",
    [
        (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, attention_dropout=0.1)), "attention dropout 0.1"),
        (
            lambda: transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)),
            "BloomForCausalLM",
        ),
        (
            lambda: transformers.MambaForCausalLM(
                transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
            ),
            "MambaForCausalLM",
        ),
    ],
    ids=["dropout", "alibi", "no attention"],
)
def test_a_model_that_cannot_be_packed_is_padded_and_says_so(model, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    built = model().eval()
    expected = one_at_a_time(built, RECORDS).detach()
    with caplog.at_level(logging.WARNING, "dora.logprobs"):
        logps = ResponseLogps(built)
    assert reason in logps.unpacked_because and reason in caplog.text
    rows = logps.collate(RECORDS, 0)
    assert isinstance(rows, ResponseRows)
    torch.testing.assert_close(logps(rows).double(), expected, rtol=1e-4, atol=1e-4)
    assert logps.tokens(RECORDS[0]) == 2 * 8  # the prompt counts once per response


def test_longer_than_a_sliding_window_is_padded() -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8)
    model = transformers.MistralForCausalLM(config).double()
    expected = one_at_a_time(model, RECORDS)
    logps = ResponseLogps(model)
    assert isinstance(logps.collate(RECORDS[:1], 0), PackedRows)
    rows = logps.collate(RECORDS, 0)  # 6 + 5 and 3 + 7 tokens
    assert isinstance(rows, ResponseRows)
    assert (logps(rows) - expected).abs().max() <= 1e-9


def test_scoring_groups_neighbours_with_one_prompt() -> None:
    torch.manual_seed(0)
    model = MODELS["qwen2"]().eval()
    responses = [r for rows in RECORDS for r in rows]
    assert by_prompt(responses) == RECORDS
    expected = one_at_a_time(model, RECORDS).tolist()
    for budget in (1, 20, 10_000):
        assert score_responses(ResponseLogps(model), responses, 0, budget, torch.device("cpu")) == pytest.approx(expected, abs=1e-4)


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
