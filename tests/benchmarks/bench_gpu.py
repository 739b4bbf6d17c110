"""The training step on an accelerator: a random model of about 1 B parameters, bfloat16, lists of 4, prompt and response of 256 tokens.

Share of this device's own bfloat16 matmul, with and without prefix sharing, and records a second against TRL on pairs, if TRL is
installed. Without a CUDA device it prints that and measures nothing.

    python -m tests.benchmarks.bench_gpu [--records 32] [--save FILE]
"""

from __future__ import annotations

import importlib.util

import torch

from dora_core.config.method import ModelConfig
from dora_core.models.loading import build_policy
from tests.benchmarks.bench_training import Records, fastest, our_step, step_flops, trl_step, word_tokenizer
from tests.benchmarks.harness import Row, argument_parser, best_of, report

PROMPT = RESPONSE = 256


def matmul_peak() -> float:
    """FLOP/s of an 8192³ product in bfloat16."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def run() -> None:
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()

    return 10 * 2 * 8192**3 / best_of({"matmul": run}, 5)["matmul"]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--records", type=int, default=32)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return
    torch.manual_seed(0)
    shape = ModelConfig(hidden_size=2048, layers=24, heads=16)
    model = build_policy(shape, word_tokenizer(), PROMPT + RESPONSE)
    parameters, peak = sum(p.numel() for p in model.parameters()), matmul_peak()
    rows = []
    for n in (4, 2):
        data = Records(arguments.records, n, PROMPT, RESPONSE)
        data.score(model, "cuda")
        contestants = {
            way: lambda way=way, data=data: our_step(model, data, "dpo_pl", way, 8, "cuda", "bfloat16") for way in ("shared", "unshared")
        }
        if n == 2 and importlib.util.find_spec("trl"):
            contestants["TRL"] = trl_step(model, data, 8, gpu=True)
        best, flops = fastest(contestants, arguments.repetitions), step_flops(model, data)
        share, ratio = flops / best["shared"] / peak, best["unshared"] / best["shared"]
        what = f"{parameters / 1e9:.2f} B parameters, lists of {n}, {PROMPT}:{RESPONSE}, bfloat16"
        limit = f"{peak / 1e12:.0f} TFLOP/s measured; counting tokens {2 * n / (1 + n):.2f} ×"
        figure = f"{share:.0%} of peak, {len(data) / best['shared']:.1f} records/s"
        rows.append(Row(f"{what}: shared path", figure, "≥ 40 %" if n == 4 else "", share >= 0.4 if n == 4 else None, limit))
        rows.append(Row(f"{what}: shared against a prompt per response", f"{ratio:.2f} ×", "", None, limit))
        if "TRL" in best:
            against = best["TRL"] / best["shared"]
            rows.append(Row(f"{what}: records/s against TRL", f"{against:.2f} ×", "≥ 1.8 × (lists of 4)", None, limit))
    report("training step on an accelerator", rows, arguments.save)


if __name__ == "__main__":
    main()
