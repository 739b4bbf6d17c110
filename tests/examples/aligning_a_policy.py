"""Align a tiny policy with DPO under the DoRA objective, in one process without Ray.

Reference log-probabilities are those of the policy before training; the first optimisation step checks that. The loop handles data
order, micro-batches by a token budget, clipping, checkpoints and resuming.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import torch

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.models.loading import build_policy, train_tokenizer
from dora_core.models.logprobs import ResponseLogps, score_responses
from dora_core.training.alignment import AlignmentTask
from dora_core.training.alignment_data import AlignmentData, write_alignment_data
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit

PREFERENCES = [  # prompt, preferred, other, calibration factor h of the record
    ("Name a colour.", "green", "seven", 1.4),
    ("Name a prime.", "seven", "green", 0.8),
    ("Name an animal.", "a dog", "a prime", 1.0),
]


def main() -> tuple[float, float]:
    """Return the fall of the objective and the final accuracy on the training records."""
    texts = [text for prompt, better, worse, _ in PREFERENCES for text in (prompt, better, worse)]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    torch.manual_seed(0)
    policy = build_policy(ModelConfig(hidden_size=32, layers=2, heads=2), tokenizer, max_positions=64)
    encoder, logps = Encoder(tokenizer, TextConfig()), ResponseLogps(policy)

    rows = []
    for row, (prompt, better, worse, h) in enumerate(PREFERENCES):
        messages = [{"role": "user", "content": prompt}]
        encoded = [encoder.encode(messages, response) for response in (better, worse)]
        reference = score_responses(logps, encoded, tokenizer.pad_token_id, budget=1024, device=torch.device("cpu"))
        rows.append(
            {
                "row": row,
                "prompt": messages,
                "responses": [better, worse],
                "rewards": [1.0, 0.0],
                "sources": ["human", "some-lm"],
                "reward_kind": "preference",
            }
            | {"logps": reference, "factor": h}
        )

    config = AlignConfig.model_validate(
        {
            "loss": {"name": "dpo", "beta": 0.2},
            "objective": {"name": "dora", "lambda": 1.0},
            "optimization": OptimizationConfig(epochs=15, batch_size=3, learning_rate=3e-3),
        }
    )
    execution, worker = Execution(micro_batch_tokens=64), Worker()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "alignment.arrow"
        write_alignment_data(path, [pa.Table.from_pylist(rows)], encoder, 2, sources=["human", "some-lm"], records=len(rows))
        task = AlignmentTask(logps, list(policy.model.layers), AlignmentData(path), config, execution, worker, tokenizer.pad_token_id)
        report = fit(task, config.optimization, execution, worker, FolderHooks(Path(folder) / "checkpoints"))
    accuracy, objective = report.curve["accuracy"], report.curve["objective"]
    print(f"{report.steps} steps: accuracy {accuracy[0]:.2f} → {accuracy[-1]:.2f}, objective {objective[0]:.3f} → {objective[-1]:.3f}")
    return objective[0] - objective[-1], accuracy[-1]


if __name__ == "__main__":
    main()
