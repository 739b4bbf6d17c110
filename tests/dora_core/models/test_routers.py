"""The load of experts and the gradient of its balance, in float64 against transformers' loss and against autograd."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from dora_core.errors import ModelError
from dora_core.models.logprobs import ResponseLogps
from dora_core.models.packing import PackedRows
from dora_core.models.response_rows import collate
from dora_core.models.routers import FAMILIES, Load, Routers
from tests.dora_core.models.packed_records import RECORDS, in_float64, record

SIZES = dict(vocab_size=64, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
EXPERTS = dict(
    num_experts_per_tok=2,
    intermediate_size=16,
    moe_intermediate_size=16,
    num_experts=4,
    num_local_experts=4,
    shared_expert_intermediate_size=16,
)


def mixture(kind: str, layers: int = 1) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **SIZES, **EXPERTS, num_hidden_layers=layers)
    model = in_float64(transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")).eval()
    for name, weight in model.named_parameters():
        if "router" in name or ".gate." in name:  # some begin with zeros: all experts alike
            torch.nn.init.normal_(weight, std=0.5)
    return model


def balance(logits_LTE: list[torch.Tensor], k: int = 2) -> torch.Tensor:
    """The mean over layers of E Σ_e f_e P_e."""
    found = []
    for logits_TE in logits_LTE:
        p_TE = logits_TE.softmax(-1)
        f_E = torch.nn.functional.one_hot(p_TE.topk(k).indices, p_TE.shape[1]).double().sum(1).mean(0)
        found.append(p_TE.shape[1] * (f_E * p_TE.mean(0)).sum())
    return torch.stack(found).mean()


def plain_logits(model: torch.nn.Module, records: list) -> list[torch.Tensor]:
    """Router logits of each layer at the positions that predict a response token, one unpadded sequence per response."""
    by_layer: list[list[torch.Tensor]] = []
    for r in (r for rows in records for r in rows):
        ids = torch.tensor([r.prompt_ids + r.response_ids])
        logits = model(input_ids=ids, output_router_logits=True).router_logits
        by_layer.append([layer[len(r.prompt_ids) - 1 : -1] for layer in logits])
    return [torch.cat(layer) for layer in zip(*by_layer, strict=True)]


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_the_loss_of_one_layer_is_that_of_transformers(kind: str) -> None:
    model = mixture(kind)
    logits = [layer.detach() for layer in plain_logits(model, RECORDS)]
    expected = load_balancing_loss_func(tuple(logits), 4, 2)
    logps = ResponseLogps(model)
    with torch.no_grad(), Routers(model).measuring() as measure:
        for rows in ([RECORDS[0], RECORDS[1]], [RECORDS[2]], [RECORDS[3]]):
            measure.select(batch := logps.collate(rows, 0))
            logps(batch)
        measure.select(batch, use=False)
        logps(batch)
    load = measure.load(measure.sums())
    assert load.tokens == sum(len(r.response_ids) for rows in RECORDS for r in rows)
    assert load.loss() == pytest.approx(float(expected), rel=1e-6)
    assert load.chosen_LE.sum().item() == 2 * load.tokens


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_is_that_of_the_loss_with_given_shares(packed: bool, checkpointing: bool) -> None:
    """Two layers, so that the gradient of the second also flows through the first."""
    model = mixture("mixtral", layers=2)
    (balance(plain_logits(model, RECORDS)) * 0.3).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    model.zero_grad()
    logps = ResponseLogps(model)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = logps.collate(RECORDS, 0) if packed else collate([r for rows in RECORDS for r in rows], 0)
    assert isinstance(batch, PackedRows) == packed
    routers = Routers(model)
    hooks = [len(module._forward_hooks) for module in routers.modules]  # of transformers, which recorded the logits above
    with torch.no_grad(), routers.measuring() as measure:
        measure.select(batch)
        logps(batch)
    load = measure.load(measure.sums())
    with routers.pulled(load.coefficients() * 0.3) as pull:
        pull.select(batch)
        (logps(batch) * 0.0).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert found.keys() == expected.keys() and any("layers.0.self_attn" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10)
    assert [len(module._forward_hooks) for module in routers.modules] == hooks, "nothing stays on the model"


def test_an_even_load_has_the_smallest_loss() -> None:
    """4 experts, 2 per token: E Σ f P = 4 · 4 · (1/2 · 1/4) = 2; all on two of them: 4 · 2 · (1 · 1/2) = 4."""
    even, skewed = torch.full((1, 4), 1.0), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert Load(even * 50, even * 25, 100.0).loss() == pytest.approx(2.0)
    assert Load(skewed * 100, skewed * 50, 100.0).loss() == pytest.approx(4.0)


def test_models_without_such_routers_are_refused() -> None:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=16, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM .* is not a mixture of experts") as refused:
        Routers(transformers.LlamaForCausalLM(config))
    assert "DeepSeek-V3" in refused.value.hint


def test_rows_read_a_length_at_a_time_are_refused() -> None:
    rows = collate([*record(3, 4), *record(3, 6)], 0, by_length=True)
    with Routers(mixture("mixtral")).measuring() as measure, pytest.raises(ModelError, match="a length at a time"):
        measure.select(rows)
