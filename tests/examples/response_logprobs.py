"""Compute log-probabilities of responses with any Hugging Face causal language model.

The responses of one record share their prompt: it is computed once. A record is packed as [prompt | y_1 | … | y_N], and each response
attends to the prompt and itself. The values equal those of one forward pass per response.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from dora_core.config.method import ModelConfig, TextConfig
from dora_core.data.encoding import EncodedResponse, Encoder
from dora_core.models.loading import build_policy, train_tokenizer
from dora_core.models.logprobs import ResponseLogps, score_responses

PROMPT = [{"role": "user", "content": "Why is the sky blue?"}]
RESPONSES = ["Because of Rayleigh scattering.", "Magic."]


def plain_logp(model: PreTrainedModel, row: EncodedResponse) -> float:
    """One forward pass over prompt and response: the definition."""
    ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
    with torch.no_grad():
        logp_TV = model(ids).logits[0].log_softmax(dim=-1)
    first = len(row.prompt_ids)
    return sum(logp_TV[first + i - 1, token].item() for i, token in enumerate(row.response_ids))


def main() -> tuple[list[float], list[float]]:
    """Return Σ log π of both responses: packed, and by one forward pass each."""
    tokenizer = train_tokenizer([PROMPT[0]["content"], *RESPONSES], vocab_size=300)
    torch.manual_seed(0)
    model = build_policy(ModelConfig(hidden_size=32, layers=2, heads=2), tokenizer, max_positions=128).eval()
    encoder = Encoder(tokenizer, TextConfig())
    rows = [encoder.encode(PROMPT, response) for response in RESPONSES]
    packed = score_responses(ResponseLogps(model), rows, tokenizer.pad_token_id, budget=4096, device=torch.device("cpu"))
    plain = [plain_logp(model, row) for row in rows]
    print(f"packed {[round(x, 3) for x in packed]}, one pass each {[round(x, 3) for x in plain]}")
    return packed, plain


if __name__ == "__main__":
    main()
