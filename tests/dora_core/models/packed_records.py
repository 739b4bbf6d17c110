"""Small models and records of every shape, and their log-probabilities one response at a time."""

from __future__ import annotations

import torch
import transformers

from dora_core.data.encoding import EncodedResponse

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
    """All layers in float64: RMSNorm of transformers computes in float32 for any input, which alone moves gradients by 1e-7."""
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
