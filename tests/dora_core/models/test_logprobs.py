"""Log-probabilities without logits equal those of a plain forward, values and gradients."""

from __future__ import annotations

import pytest
import torch
import transformers

from dora_core.config.method import LoraConfig
from dora_core.data.encoding import EncodedResponse
from dora_core.errors import ModelError
from dora_core.models import linear_logps
from dora_core.models.loading import add_lora
from dora_core.models.logprobs import ResponseLogps, collate, score_responses

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


def test_a_model_that_caps_its_logits_is_refused() -> None:
    config = transformers.Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=0.01,
    )
    with pytest.raises(ModelError, match="soft-capping"):
        ResponseLogps(transformers.Gemma2ForCausalLM(config))
