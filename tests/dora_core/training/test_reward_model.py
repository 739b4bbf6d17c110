"""The Bradley-Terry gradient against plain arithmetic, in every layout; and the position of a row that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig, TextConfig
from dora_core.data.encoding import EncodedResponse, Encoder
from dora_core.errors import ModelError
from dora_core.models.loading import build_encoder, grow_reward_model, load_reward_model, save_model, train_tokenizer
from dora_core.training.distributed import Worker, scale_gradients, wrap
from dora_core.training.loop import FolderHooks, fit
from dora_core.training.reward_model import RewardModel, RewardRecord, RewardTask, preference_records, score
from tests.ranks import run_ranks

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "very", "old", "dog", "run", "home"]
RECORDS = 8
MicroBatches = list[list[int]]  # of one rank
ONE_PROCESS: dict[str, MicroBatches] = {
    "1×8": [[*range(RECORDS)]],
    "8×1": [[i] for i in range(RECORDS)],
    "3+3+2": [[0, 1, 2], [3, 4, 5], [6, 7]],
}
TWO_PROCESSES: dict[str, tuple[list[MicroBatches], str]] = {
    "2×4": ([[[0, 2, 4, 6]], [[1, 3, 5, 7]]], "ddp"),
    "2×(3+1)": ([[[0, 1, 2], [3]], [[4], [5, 6, 7]]], "ddp"),
    "a rank without records": ([[[0, 1, 2, 3], [4, 5, 6, 7]], [[], []]], "ddp"),
    "2×(3+1), sharded": ([[[0, 1, 2], [3]], [[4], [5, 6, 7]]], "fsdp"),
}
CPU = torch.device("cpu")
SMALL = ModelConfig(hidden_size=32, layers=2, heads=2)


def ragged_records(tokenizer: PreTrainedTokenizerBase) -> list[RewardRecord]:
    """Lists of 2 to 5 responses of 1 to 9 words, with ties and unmeasured rewards."""
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(rng.choice(WORDS, size=n))

    prompts = [[{"role": "user", "content": text(1 + i % 4)}] for i in range(RECORDS)]
    responses = [[text(int(rng.integers(1, 10))) for _ in range(2 + i % 4)] for i in range(RECORDS)]
    rewards = [[0.0, 1.0, 1.0, None, 3.0][: 2 + i % 4] for i in range(RECORDS)]
    return preference_records(prompts, responses, rewards, Encoder(tokenizer, TextConfig()))


def exact_task(worker: Worker) -> RewardTask:
    """The same weights and records in every process, in float64 (the Llama of transformers normalises in float32 for any dtype)."""
    tokenizer = train_tokenizer(WORDS, 300)
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**size, **no_dropout, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = transformers.GPT2ForSequenceClassification(config).double()
    layers = list(model.transformer.h)
    return RewardTask(RewardModel(model), layers, ragged_records(tokenizer), worker, tokenizer.pad_token_id)


def flat_gradient(module: torch.nn.Module) -> Tensor:
    gradients = [p.grad for p in module.parameters()]
    return torch.cat([(g.full_tensor() if hasattr(g, "full_tensor") else g).flatten() for g in gradients])


def step_gradient(worker: Worker, micro_batches: MicroBatches, strategy: str = "ddp") -> tuple[Tensor, dict[str, float]]:
    task = exact_task(worker)
    module = wrap(task.module, strategy, worker, task.layers)
    scale, metrics = task.backward(module, micro_batches, 0)
    scale_gradients(module, scale)
    return flat_gradient(module), metrics


def plain_gradient() -> tuple[Tensor, dict[str, float]]:
    """mean over records of mean over pairs of log(1 + e^(r_l − r_w)), each response alone in its row and so without any padding."""
    task = exact_task(Worker())
    losses, accuracies, margins = [], [], []
    for record in task._records:
        rewards = [task.module.model(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).logits[0, 0] for r in record.responses]
        gaps = torch.stack([rewards[better] - rewards[worse] for better, worse in zip(record.winner_P, record.loser_P, strict=True)])
        losses.append(torch.log1p(torch.exp(-gaps)).mean())
        accuracies.append((gaps > 0).double().mean().item())
        margins.append(gaps.mean().item())
    loss = sum(losses) / RECORDS
    loss.backward()
    means = {"loss": loss.item(), "accuracy": np.mean(accuracies), "margin": np.mean(margins), "tokens": float(sum(task.tokens))}
    return flat_gradient(task.module), means


def _rank_main(worker: Worker, folder: str) -> None:
    found = {name: step_gradient(worker, ranks[worker.rank], strategy) for name, (ranks, strategy) in TWO_PROCESSES.items()}
    torch.save(found, Path(folder) / f"rank{worker.rank}.pt")


@pytest.mark.component
def test_every_layout_gives_the_gradient_of_plain_arithmetic(tmp_path: Path) -> None:
    expected, means = plain_gradient()
    run_ranks(_rank_main, str(tmp_path))
    layouts = {name: step_gradient(Worker(), micro_batches) for name, micro_batches in ONE_PROCESS.items()}
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        layouts |= {f"{name}, rank {rank}": result for name, result in found.items()}
    assert expected.norm() > 1e-3
    for layout, (gradient, metrics) in layouts.items():
        assert ((gradient - expected).norm() / expected.norm()).item() < 1e-10, layout
        assert metrics == pytest.approx(means, rel=1e-10), layout


def test_pairs_are_strict_and_only_their_responses_are_kept(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = [{"role": "user", "content": "the cat"}]
    encoder = Encoder(tokenizer, TextConfig())
    records = preference_records(
        [prompt] * 3, [["sat", "ran", "home", "on"], ["sat", "on"], ["a", "mat"]], [[1.0, None, 3.0, 1.0], [2.0, 2.0], [None, 1.0]], encoder
    )
    assert len(records) == 1, "a tie and a single measured response say nothing"
    assert [tokenizer.decode(r.response_ids) for r in records[0].responses] == ["sat<eos>", "home<eos>", "on<eos>"]
    assert list(zip(records[0].winner_P, records[0].loser_P, strict=True)) == [(1, 0), (1, 2)]


def test_pairs_of_equal_tokens_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """The first two responses differ beyond the cut alone; both differ from the third within it."""
    start = "the cat sat on a mat and saw one"
    encoder, prompt = Encoder(tokenizer, TextConfig(max_response_tokens=4)), [{"role": "user", "content": "the cat"}]
    texts = [f"{start} dog", f"{start} run", "home"]
    [record] = preference_records([prompt], [texts], [[3.0, 2.0, 1.0]], encoder)
    assert list(zip(record.winner_P, record.loser_P, strict=True)) == [(0, 2), (1, 2)]
    assert preference_records([prompt], [texts[:2]], [[3.0, 2.0]], encoder) == []


# ------------------------------------------------------------------------------------------------------------ the models


@pytest.fixture(params=["decoder", "encoder", "decoder without a padding token"])
def reward_model(
    request: pytest.FixtureRequest, tmp_path: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Trained folders as they are found in the wild: a tokenizer of BERT has [CLS] and [SEP], one of Llama 3 nothing to pad with."""
    torch.manual_seed(1)
    if request.param == "encoder":
        names = {"cls_token": "<cls>", "sep_token": "<sep>", "pad_token": "<pad>"}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names)
        save_model(build_encoder(SMALL, tokenizer, 64), tokenizer, tmp_path)
    else:
        if "without" in request.param:
            tokenizer.pad_token = None
            policy.config.pad_token_id = None
        save_model(policy, tokenizer, tmp_path)
    model, tokenizer = grow_reward_model(tmp_path)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # new ones say nearly the same of every row
    save_model(model, tokenizer, tmp_path / "trained")
    return load_reward_model(tmp_path / "trained")


def some_responses(tokenizer: PreTrainedTokenizerBase) -> list[EncodedResponse]:
    encoder = Encoder(tokenizer, TextConfig(max_response_tokens=12))
    texts = ["sat", "on a very old mat and saw one dog run home", "home", "and one old cat sat on a mat"]
    prompts = [[{"role": "user", "content": content}] for content in ("the cat", "a very old dog and one cat")]
    return [encoder.encode(prompt, text) for prompt in prompts for text in texts]


def test_a_score_does_not_depend_on_its_neighbours(reward_model) -> None:
    model, tokenizer = reward_model
    scorer, responses = RewardModel(model).eval(), some_responses(tokenizer)
    assert len({len(r) for r in responses}) > 3, "without padding this shows nothing"
    alone = [model(input_ids=torch.tensor([r.prompt_ids + r.response_ids])).logits.item() for r in responses]
    for budget in (1, 40, 10_000):
        assert score(scorer, responses, tokenizer.pad_token_id, budget, CPU) == pytest.approx(alone, abs=1e-5)
    assert np.ptp(alone) > 0.01


def test_a_decoder_reads_the_last_token_and_an_encoder_the_first(reward_model) -> None:
    model, tokenizer = reward_model
    responses = some_responses(tokenizer)
    [row] = RewardModel(model).collate(responses[:1], tokenizer.pad_token_id).ids_RS.tolist()
    hidden_SH = model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0]
    if hasattr(model, "score"):
        place = -1 if tokenizer.pad_token_id != tokenizer.eos_token_id else -2  # <eos> counts as padding where nothing else does
        expected = model.score(hidden_SH[place]).item()
    else:
        assert (row[0], row[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        expected = model.classifier(model.base_model.pooler(hidden_SH[None])).item()
    assert score(RewardModel(model).eval(), responses, tokenizer.pad_token_id, 10_000, CPU)[0] == pytest.approx(expected, abs=1e-5)


def test_the_head_follows_from_the_seed_and_nothing_drops_out(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    save_model(build_encoder(SMALL, tokenizer, 64), tokenizer, tmp_path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model, tokenizer = grow_reward_model(tmp_path)
        heads.append(model.classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    rows, trained = some_responses(tokenizer), RewardModel(model).train()
    assert score(trained, rows, 0, 10_000, CPU) == score(trained, rows, 0, 10_000, CPU)


def test_training_learns_the_order(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(policy, tokenizer, tmp_path / "trunk")
    model, tokenizer = grow_reward_model(tmp_path / "trunk")
    task = RewardTask(RewardModel(model), list(model.model.layers), ragged_records(tokenizer), Worker(), tokenizer.pad_token_id)
    report = fit(task, OptimizationConfig(epochs=30, batch_size=8, learning_rate=3e-3), Execution(), Worker(), FolderHooks(tmp_path))
    assert report.curve["loss"][0] == pytest.approx(np.log(2), abs=0.1), "a new head says almost the same of every response"
    assert report.curve["accuracy"][-1] == pytest.approx(1.0) and report.curve["loss"][-1] < 0.3


def test_a_row_longer_than_the_positions_is_refused(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_model(policy, tokenizer, tmp_path)
    model, _ = grow_reward_model(tmp_path)
    with pytest.raises(ModelError, match="66 tokens of prompt and response do not fit into the 64 positions") as error:
        score(RewardModel(model), [EncodedResponse([1] * 6, [2] * 60, 0)], tokenizer.pad_token_id, 100, CPU)
    assert "text.max_response_tokens" in error.value.hint
