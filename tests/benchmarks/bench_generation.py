"""Sampling from a policy: against a loop of ``model.generate`` over the prompts, and against ``model.generate`` on all at once.

64 prompts of 8 to 96 tokens, at most 64 new ones, a random Llama of 4 layers × 256 whose texts end at many lengths (its row of the
end-of-sequence token is scaled so), float32. Greedy texts must be equal, token for token; with 4 sampled responses a prompt the two
sides draw different numbers, so tokens a second are compared.

    python -m tests.benchmarks.bench_generation [--threads 1 2] [--save FILE]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ |= {"TRANSFORMERS_VERBOSITY": "error"}

import numpy as np
import torch
import transformers

from dora_core.config.method import GenerateConfig
from dora_core.models.generation import sample
from tests.benchmarks.bench_scoring import matmul_peak
from tests.benchmarks.harness import Row, argument_parser, best_of, report

VOCAB, EOS, PAD = 2048, 2, 0
GREEDY = GenerateConfig(temperature=0, max_new_tokens=64)
SAMPLED = GenerateConfig(samples=4, temperature=0.25, max_new_tokens=64)
BATCH_TOKENS = 16_384
TARGET = 3.0

Texts = list[list[int]]


def make_policy() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None}
    config = transformers.LlamaConfig(vocab_size=VOCAB, **shape, **special, max_position_embeddings=512, initializer_range=0.1)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 1.9
    return model


def make_prompts(count: int) -> Texts:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, rng.integers(8, 97)).tolist() for _ in range(count)]


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


class Contest:
    """One model and its prompts, sampled from in several ways; every way returns the texts, prompt by prompt."""

    def __init__(self, device: str):
        self.model, self.prompts = make_policy().to(device), make_prompts(64)

    def ours(self, config: GenerateConfig) -> Texts:
        keys = range(len(self.prompts))
        rows = sample(self.model, self.prompts, keys, config, eos_id=EOS, pad_id=PAD, batch_tokens=BATCH_TOKENS)
        return [s.ids for row in rows for s in row]

    def loop(self, config: GenerateConfig) -> Texts:
        return [text for prompt in self.prompts for text in self._generate([prompt], config)]

    def padded(self, config: GenerateConfig) -> Texts:
        return self._generate(self.prompts, config)

    @torch.inference_mode()
    def _generate(self, prompts: Texts, config: GenerateConfig) -> Texts:
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts], device=self.model.device)
        options: dict[str, Any] = {"do_sample": False}
        if config.temperature:
            options = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0}
        options |= {"num_return_sequences": config.samples, "max_new_tokens": config.max_new_tokens}
        return [until_end(row) for row in self.model.generate(ids, attention_mask=(ids != PAD).long(), **options)[:, width:].tolist()]

    def flops(self, texts: Texts) -> float:
        """Multiplications and additions of the products with weights, every prompt read once and nothing padded."""
        body = 2 * sum(p.numel() for p in self.model.model.layers.parameters() if p.ndim == 2)
        head, generated = 2 * self.model.lm_head.weight.numel(), sum(map(len, texts))
        return body * (sum(map(len, self.prompts)) + generated - len(texts)) + head * generated


def contest(device: str, threads: int, repetitions: int) -> list[Row]:
    torch.set_num_threads(threads)
    self, peak, rows = Contest(device), matmul_peak(device), []
    assert self.ours(GREEDY) == self.loop(GREEDY) == self.padded(GREEDY), "greedy texts differ"
    for name, config in {"greedy": GREEDY, "4 samples": SAMPLED}.items():
        texts: dict[str, Texts] = {}

        def way(which: str, run: Callable[[GenerateConfig], Texts], config: GenerateConfig = config, texts: dict[str, Texts] = texts):
            return lambda: texts.__setitem__(which, run(config))

        ways = {which: way(which, getattr(self, which)) for which in ("ours", "loop", "padded")}
        best = best_of(ways, repetitions)
        speed = {which: sum(map(len, texts[which])) / best[which] for which in ways}
        ratio, target = speed["ours"] / speed["loop"], TARGET if config is GREEDY else None
        lengths = sorted(map(len, texts["ours"]))
        tenths = " · ".join(str(lengths[len(lengths) * i // 10]) for i in (1, 5, 9))
        least = self.flops(texts["ours"]) / peak
        rows.append(
            Row(
                f"{threads} threads: {name} (lengths {tenths} at 10, 50, 90 %)",
                f"{ratio:.2f} × the loop, {speed['ours'] / speed['padded']:.2f} × one padded batch; {speed['ours']:,.0f} tokens/s",
                "≥ 3 ×" if target else "",
                ratio >= target if target else None,
                f"products alone at the speed of a large matmul: {least:.2f} of {best['ours']:.2f} s",
            )
        )
    return rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = [row for threads in arguments.threads for row in contest(arguments.device, threads, arguments.repetitions)]
    report("Generation", rows, arguments.save)


if __name__ == "__main__":
    main()
