"""Log-probabilities of responses equal those of a plain forward, packed or padded, in batches of any size."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import transformers

from dora_core.config.method import LoraConfig
from dora_core.data.encoding import EncodedResponse
from dora_core.models import linear_logps
from dora_core.models.adapters import add_lora
from dora_core.models.batching import TokenBudget
from dora_core.models.logprobs import ResponseLogps, represent_responses, score_responses
from dora_core.models.packing import PackedRows, by_prompt
from dora_core.models.response_rows import ResponseRows, collate
from tests.dora_core.models.limited_memory import Device
from tests.dora_core.models.packed_records import MODELS, RECORDS, SMALL, in_float64, one_at_a_time

RESPONSES = [
    EncodedResponse([1, 5, 6, 7], [8, 9, 2], 0),
    EncodedResponse([1, 5], [10, 2], 0),
    EncodedResponse([1, 9, 9], [11, 12, 13, 14, 2], 0),
]


def plain_logps(model: torch.nn.Module) -> torch.Tensor:
    """One response at a time, no padding, all logits: the obvious way."""
    sums = []
    for r in RESPONSES:
        ids = torch.tensor([r.prompt_ids + r.response_ids])
        logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        sums.append(sum(logp[len(r.prompt_ids) - 1 + t, token] for t, token in enumerate(r.response_ids)))
    return torch.stack(sums)


@pytest.mark.parametrize("block", [100, 2**24])
def test_values_and_gradients_equal_a_plain_forward(policy, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linear_logps.BLOCK_LOGITS, "cpu", block)  # 100: blocks of 128 of the 300 tokens, recomputed in the backward pass
    weights = torch.tensor([1.0, -2.0, 0.5])
    expected = plain_logps(policy)
    (expected * weights).sum().backward()
    gradients = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    got = ResponseLogps(policy)(collate(RESPONSES, 0))
    (got * weights).sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    for p, g in zip(policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_representations_are_the_mean_hidden_states_that_predict_the_response(policy, share_prefix: bool) -> None:
    """One response at a time: its n tokens are predicted at the last prompt position and at all of its own but the last."""
    expected = []
    with torch.no_grad():
        for r in RESPONSES:
            hidden = policy.eval().model(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).last_hidden_state[0]
            expected.append(hidden[len(r.prompt_ids) - 1 : -1].mean(dim=0))
    logps = ResponseLogps(policy.eval(), share_prefix=share_prefix)
    for budget in (1, 10_000):
        found = represent_responses(logps, RESPONSES, 0, budget, torch.device("cpu"))
        assert found[:, 0] == pytest.approx(plain_logps(policy).tolist(), abs=1e-4)
        np.testing.assert_allclose(found[:, 1:], torch.stack(expected), atol=1e-5)


def test_scoring_keeps_the_order_whatever_the_batches(policy) -> None:
    logps = ResponseLogps(policy.eval())
    one_each = score_responses(logps, RESPONSES, 0, budget=1, device=torch.device("cpu"))
    together = score_responses(logps, RESPONSES, 0, budget=10_000, device=torch.device("cpu"))
    assert one_each == pytest.approx(together, abs=1e-4)
    assert together == pytest.approx(plain_logps(policy).tolist(), abs=1e-4)


def test_fresh_adapters_leave_the_policy_where_it_was(policy) -> None:
    expected = plain_logps(policy).detach()
    adapted = ResponseLogps(add_lora(policy, LoraConfig(rank=2, alpha=4)))
    torch.testing.assert_close(adapted(collate(RESPONSES, 0)).double(), expected, rtol=1e-5, atol=1e-5)


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


def test_scoring_groups_neighbours_with_one_prompt() -> None:
    torch.manual_seed(0)
    model = MODELS["qwen2"]().eval()
    responses = [r for rows in RECORDS for r in rows]
    assert by_prompt(responses) == RECORDS
    expected = one_at_a_time(model, RECORDS).tolist()
    for budget in (1, 20, 10_000):
        assert score_responses(ResponseLogps(model), responses, 0, budget, torch.device("cpu")) == pytest.approx(expected, abs=1e-4)


@pytest.mark.fault(3)
def test_log_probabilities_are_the_same_to_rounding(policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    responses = [EncodedResponse([1, 3 + i], rng.integers(3, 90, 2 + i % 7).tolist(), 0) for i in range(40)]
    logps, device = ResponseLogps(policy.eval()), Device(40)
    expected = score_responses(logps, responses, 0, 10_000, torch.device("cpu"))
    forward = ResponseLogps.forward

    def limited(self: ResponseLogps, rows: PackedRows) -> torch.Tensor:
        device.check(rows.ids_S.numel())
        return forward(self, rows)

    monkeypatch.setattr(ResponseLogps, "forward", limited)
    budget = TokenBudget(10_000)
    assert score_responses(logps, responses, 0, budget, torch.device("cpu")) == pytest.approx(expected, abs=1e-4)
    assert 0 < device.failures < 10 and budget.lowered is not None
    failures = device.failures
    score_responses(logps, responses, 0, budget, torch.device("cpu"))
    assert device.failures == failures, "a budget that is kept does not fail again"


@pytest.mark.parametrize("head", ["linear", "wrapped"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_collisions_equal_those_of_all_logits(policy, head: str, layout: str) -> None:
    """Σ_t log Σ_v π_v² beside the same log-probabilities, packed or padded, through the blocks or a module; without gradient."""
    policy.eval()
    expected = []
    for r in RESPONSES:
        logits = policy(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).logits[0].double()
        chances = logits[len(r.prompt_ids) - 1 : -1].softmax(-1)
        expected.append(chances.square().sum(-1).log().sum().item())
    logps = ResponseLogps(policy)
    if head == "wrapped":
        policy.set_output_embeddings(torch.nn.Sequential(policy.get_output_embeddings()))
    rows = logps.collate([[r] for r in RESPONSES], 0) if layout == "packed" else collate(RESPONSES, 0)
    assert isinstance(rows, PackedRows) == (layout == "packed")
    plain, (both, collisions) = logps(rows), logps(rows, collisions=True)
    assert collisions.tolist() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(both, plain)
    gradients = [torch.autograd.grad(x.sum(), next(policy.parameters()), retain_graph=True)[0] for x in (plain, both)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("packed", [True, False])
def test_of_several_turns_only_those_of_the_assistant_are_summed(packed: bool) -> None:
    """float64 against one unpadded sequence with whole logits, values and gradients; turns of others are conditioned on."""
    torch.manual_seed(0)
    model = in_float64(MODELS["llama"]())
    [first, second] = RECORDS[0]
    long = EncodedResponse(first.prompt_ids, [*first.response_ids, 40, 41, 42, *second.response_ids, 50, 9], 0, ((3, 6), (9, 10)))
    rows = [[long, second], RECORDS[1]]
    encoded = [r for record in rows for r in record]
    expected = []
    for r in encoded:
        logps = model(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).logits[0].log_softmax(-1)
        skipped = {3, 4, 5, 9} if r is long else set()
        at = len(r.prompt_ids) - 1
        expected.append(sum(logps[at + t, token] for t, token in enumerate(r.response_ids) if t not in skipped))
    weights = torch.arange(1.0, len(encoded) + 1, dtype=torch.float64)
    (torch.stack(expected) * weights).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logps = ResponseLogps(model)
    batch = logps.collate(rows, 0) if packed else collate(encoded, 0)
    assert isinstance(batch, PackedRows if packed else ResponseRows)
    got = logps(batch)
    (got * weights).sum().backward()
    torch.testing.assert_close(got, torch.stack(expected).detach(), rtol=1e-9, atol=1e-9)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-9)
    assert long.learned == 3 + 3 + 1
