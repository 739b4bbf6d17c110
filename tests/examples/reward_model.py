"""Train a Bradley-Terry reward model on preferences and score responses with it.

Any Hugging Face sequence classifier with one output works; here it is a tiny Llama from scratch. Rewards are comparable among the
responses of one prompt only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers

from dora_core.config.execution import Execution
from dora_core.config.method import OptimizationConfig, TextConfig
from dora_core.data.encoding import Encoder
from dora_core.models.loading import train_tokenizer
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.reward_model import RewardModel, RewardTask, preference_records, score

PROMPTS = [[{"role": "user", "content": text}] for text in ("Name a colour.", "Name a prime.", "Name an animal.")]
RESPONSES = [["Green, please.", "No."], ["Seven, please.", "No."], ["A dog, please.", "No."]]
REWARDS: list[list[float | None]] = [[1.0, 0.0]] * 3


def main() -> tuple[float, float]:
    """Return the rewards of a preferred and of a rejected kind of response to a new prompt."""
    tokenizer = train_tokenizer([text for of_prompt in RESPONSES for text in of_prompt], vocab_size=300)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    llama = transformers.LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **sizes)
    model = transformers.LlamaForSequenceClassification(llama)

    encoder, worker, execution = Encoder(tokenizer, TextConfig()), Worker(), Execution()
    records = preference_records(PROMPTS, RESPONSES, REWARDS, encoder)
    task = RewardTask(RewardModel(model), list(model.model.layers), records, worker, tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:
        fit(task, OptimizationConfig(epochs=20, batch_size=3, learning_rate=3e-3), execution, worker, FolderHooks(Path(folder)))

    new = [{"role": "user", "content": "Name a city."}]
    rows = [encoder.encode(new, response) for response in ("Rome, please.", "No.")]
    better, worse = score(RewardModel(model.eval()), rows, tokenizer.pad_token_id, budget=1024, device=torch.device("cpu"))
    print(f"reward {better:.2f} against {worse:.2f}")
    return better, worse


if __name__ == "__main__":
    main()
