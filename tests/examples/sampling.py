"""Sample responses in batches over a key-value cache.

A sample depends on (seed, prompt key, sample number) only: not on the batch, its order, or the number of workers.
"""

from __future__ import annotations

import torch

from dora_core.config.method import GenerateConfig, ModelConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.data.records import hash_prompt
from dora_core.models.generation import sample
from dora_core.models.loading import build_policy, train_tokenizer

PROMPTS = [[{"role": "user", "content": text}] for text in ("Name a colour.", "Name a prime number below ten.")]


def main() -> tuple[list[list[str]], list[list[str]]]:
    """Return two samples of each prompt, from one batch and with every prompt alone."""
    tokenizer = train_tokenizer([prompt[0]["content"] for prompt in PROMPTS], vocab_size=300)
    torch.manual_seed(0)
    model = build_policy(ModelConfig(hidden_size=32, layers=1, heads=2), tokenizer, max_positions=128).eval()
    encoder, config = Encoder(tokenizer, TextConfig()), GenerateConfig(samples=2, temperature=0.8, max_new_tokens=12)

    def texts(prompts: list[list[dict[str, str]]]) -> list[list[str]]:
        ids = [encoder.prompt(prompt)[0] for prompt in prompts]
        special = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
        drawn = sample(model, ids, [hash_prompt(prompt) for prompt in prompts], config, batch_tokens=1024, **special)
        return [[tokenizer.decode(one.ids) for one in of_prompt] for of_prompt in drawn]

    together, alone = texts(PROMPTS), [texts([prompt])[0] for prompt in PROMPTS]
    print(f"{together[0][0]!r} … the same alone: {together == alone}")
    return together, alone


if __name__ == "__main__":
    main()
