"""The training step: against TRL's DPOTrainer, against this project's unshared and padded paths, and against this machine's matmul.

Every contestant trains the same randomly initialised Llama on the same records (prompt:response 2:1 by default) and runs its
whole step: data, forward, backward, clipping, AdamW. Reference log-probabilities are computed beforehand on all sides; ours has the exact
``dora`` objective with automatic λ. Tokens per second count prompt and response of every response, however often a side computes a prompt.

    python -m tests.benchmarks.bench_training [--threads 2] [--only trl lists …] [--save FILE]

TRL is not a dependency: without it (``pip install --no-deps trl==1.16.0``) its line is empty with the reason. The limit: with ρ = P/R
and N responses, unshared ÷ shared tokens are N(ρ + 1)/(ρ + N).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.metadata
import importlib.util
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from dora_core.config.alignment import AlignConfig
from dora_core.config.execution import Execution
from dora_core.config.method import ModelConfig, OptimizationConfig
from dora_core.data.encoding import EncodedResponse
from dora_core.models.host_memory import release_freed_memory
from dora_core.models.linear_logps import linear_logps
from dora_core.models.loading import build_policy
from dora_core.models.logprobs import ResponseLogps, score_responses
from dora_core.objectives.global_batch import GlobalBatch
from dora_core.objectives.lambda_control import LambdaControl
from dora_core.training.alignment import AlignmentTask
from dora_core.training.alignment_data import AlignmentRecord
from dora_core.training.distributed import Worker
from dora_core.training.loop import FolderHooks, fit
from tests.benchmarks.harness import Row, argument_parser, best_of, report

VOCAB = 2048
PROMPT, RESPONSE = 192, 96
STEPS = 2  # measured, after an unmeasured one


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word, so that TRL, which takes text, trains on these lengths."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


class Records:
    """Random records of equal lengths, as the trainer reads them."""

    sources = ("human", "model")

    def __init__(self, count: int, responses: int, prompt: int = PROMPT, response: int = RESPONSE):
        generator = torch.Generator().manual_seed(0)

        def draw(n: int) -> list[int]:
            return torch.randint(3, VOCAB, (n,), generator=generator).tolist()

        self.encoded = []
        for _ in range(count):
            ids = draw(prompt)
            self.encoded.append([EncodedResponse(ids, [*draw(response - 1), 2], 0) for _ in range(responses)])
        self.factors = torch.rand(count, generator=generator).mul(2).tolist()
        self.reference: list[list[float]] = []
        self.tokens, self.unshared_tokens = [prompt + responses * response] * count, [responses * (prompt + response)] * count
        self.all_tokens = count * responses * (prompt + response)

    def score(self, model: transformers.PreTrainedModel, device: str = "cpu") -> None:
        logps = ResponseLogps(copy.deepcopy(model).to(device))
        self.reference = [score_responses(logps, rows, 0, 4096, torch.device(device)) for rows in self.encoded]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, i: int) -> AlignmentRecord:
        rows = self.encoded[i]
        rewards = [float(len(rows) - n) for n in range(len(rows))]
        return AlignmentRecord(i, rows, rewards, self.reference[i], self.factors[i], [n % 2 for n in range(len(rows))])


class Clock(FolderHooks):
    """The fastest step between two logs."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.stamps = [time.perf_counter()]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.stamps.append(time.perf_counter())

    @property
    def fastest(self) -> float:
        return min(b - a for a, b in itertools.pairwise(self.stamps[1:]))


def our_step(
    model: transformers.PreTrainedModel, data: Records, loss: str, way: str, micro: int, device: str = "cpu", precision: str = "float32"
) -> float:
    """Seconds of the fastest whole step. ``way``: shared, unshared (packed, a prompt per response) or padded."""
    optimization = OptimizationConfig(
        batch_size=len(data), epochs=STEPS + 1, learning_rate=1e-6, schedule="constant", warmup_fraction=0.0, precision=precision
    )
    worker = Worker(device=torch.device(device))
    logps = ResponseLogps(copy.deepcopy(model), share_prefix=way == "shared")
    if way == "padded":
        logps.unpacked_because = "asked for by this benchmark"
    config = AlignConfig(loss={"name": loss}, optimization=optimization)
    execution = Execution(micro_batch_size=micro, micro_batch_tokens=10**9, checkpoint_every=10**6)
    task = AlignmentTask(logps, [], data, config, execution, worker, 0)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(Path(folder))
        fit(task, optimization, execution, worker, clock)
    return clock.fastest


def trl_step(model: transformers.PreTrainedModel, data: Records, micro: int, gpu: bool = False) -> Callable[[], float]:
    """The same step by TRL, built once: its fastest of a few steps at every call."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    tokenizer = word_tokenizer()
    names = ("prompt", "chosen", "rejected")
    rows = [{name: tokenizer.decode(ids) + " " for name, ids in zip(names, _pair(r), strict=True)} for r in data.encoded]
    folder = tempfile.mkdtemp()
    arguments = DPOConfig(
        output_dir=folder, max_steps=STEPS + 1, per_device_train_batch_size=micro, gradient_accumulation_steps=len(data) // micro,
        gradient_checkpointing=False, bf16=gpu, use_cpu=not gpu, precompute_ref_log_probs=True, max_length=None, report_to=[],
        save_strategy="no", logging_steps=1, disable_tqdm=True, lr_scheduler_type="constant", learning_rate=1e-6, max_grad_norm=1.0,
    )  # fmt: skip
    stamps: list[float] = []

    class Stamps(transformers.TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            stamps.append(time.perf_counter())

    trainer = DPOTrainer(
        copy.deepcopy(model),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Stamps()],
    )
    seen = {len(r["prompt_ids"]) + len(r["chosen_ids"]) for r in trainer.train_dataset}
    assert seen == {len(data.encoded[0][0])}, f"TRL sees sequences of {seen} tokens"

    def turn() -> float:
        stamps.clear()
        with contextlib.redirect_stdout(None):
            trainer.train()
        return min(b - a for a, b in itertools.pairwise(stamps))

    return turn


def _pair(responses: list[EncodedResponse]) -> list[list[int]]:
    best, worst = responses
    return [best.prompt_ids, best.response_ids[:-1], worst.response_ids[:-1]]  # TRL adds the end of sequence


def fastest(contestants: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """Like ``best_of`` for contestants that time themselves."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(repetitions):
        for name, turn in contestants.items():
            best[name] = min(best[name], turn())
    return best


# ------------------------------------------------------------------------------------------------------------- sections


def against_trl(model: transformers.PreTrainedModel, repetitions: int) -> Iterator[Row]:
    data = Records(8, 2)
    data.score(model)
    contestants = {way: functools.partial(our_step, model, data, "dpo", way, 8) for way in ("shared", "padded")}
    if importlib.util.find_spec("trl"):
        contestants["TRL"] = trl_step(model, data, 8)
    best = fastest(contestants, repetitions)
    rates = {name: data.all_tokens / seconds for name, seconds in best.items()}
    limit = f"counting tokens: {2 * 3 / 4:.2f} ×"
    if "TRL" in best:
        ratio = best["TRL"] / best["shared"]
        yield Row(
            f"pairs {PROMPT}:{RESPONSE}, step of 8: tokens/s against TRL {importlib.metadata.version('trl')} DPOTrainer",
            f"{rates['shared']:,.0f} / {rates['TRL']:,.0f} = {ratio:.2f} ×",
            "≥ 1.4 ×",
            ratio >= 1.4,
            limit + ", the rest is work TRL does besides",
        )
    else:
        yield Row("pairs against TRL", "TRL is not installed", "≥ 1.4 ×")
    yield Row("pairs against our padded path", f"{best['padded'] / best['shared']:.2f} ×", "", None, limit)


def lists(model: transformers.PreTrainedModel, repetitions: int) -> Iterator[Row]:
    for n, target in ((4, 1.9), (6, 2.1)):
        data = Records(4, n)
        data.score(model)
        ways = {way: functools.partial(our_step, model, data, "dpo_pl", way, 4) for way in ("shared", "unshared", "padded")}
        best = fastest(ways, repetitions)
        ratio, tokens = best["unshared"] / best["shared"], n * 3 / (2 + n)
        flops = step_flops(model, data, shared=False) / step_flops(model, data)
        yield Row(
            f"lists of {n}, {PROMPT}:{RESPONSE}: shared against a prompt per response",
            f"{ratio:.2f} × (padded {best['padded'] / best['shared']:.2f} ×)",
            f"≥ {target} ×",
            ratio >= target,
            f"counting tokens {tokens:.2f} ×; counting FLOPs (attention, vocabulary) {flops:.2f} ×, {ratio / flops:.0%} of it",
        )


def arithmetic(model: transformers.PreTrainedModel, repetitions: int) -> Iterator[Row]:
    data = Records(8, 4)
    data.score(model)
    square = torch.randn(2048, 2048)
    best = best_of({"matmul": lambda: square @ square}, 5)
    peak = 2 * 2048**3 / best["matmul"]
    parameters = sum(p.numel() for p in model.parameters())
    flops = step_flops(model, data)
    seconds = min(our_step(model, data, "dpo_pl", "shared", 4) for _ in range(repetitions))
    share = flops / seconds / peak
    yield Row(
        f"FLOP/s of the step, {parameters / 1e6:.0f} M parameters, lists of 4, float32",
        f"{flops / seconds / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s = {share:.0%}",
        "≥ 60 %",
        share >= 0.6,
        f"{flops / 1e12:.2f} TFLOP counted: 6 a parameter and token it meets, attention, no recomputation",
    )


def step_flops(model: transformers.PreTrainedModel, data: Records, *, shared: bool = True) -> float:
    """Multiply-adds × 2 of forward and backward, each prompt once or once per response; the vocabulary only for response tokens."""
    config = model.config
    body = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n)
    total = 0.0
    for rows in data.encoded:
        p, r, n = len(rows[0].prompt_ids), len(rows[0].response_ids), len(rows)
        prompts = 1 if shared else n
        attention = 2 * 2 * config.hidden_size * config.num_hidden_layers * (prompts * p * p / 2 + n * (r * p + r * r / 2))
        total += 3 * (2 * body * (prompts * p + n * r) + attention + 2 * config.vocab_size * config.hidden_size * n * r)
    return total


def objective_cost(model: transformers.PreTrainedModel, repetitions: int) -> Iterator[Row]:
    """Time inside the objective's own code, and the whole step against one whose weights are a constant 1/n."""
    data = Records(16, 2)
    data.score(model)
    spent = [0.0]

    def timed(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            spent[0] += time.perf_counter() - started
            return result

        return call

    class PlainMean(GlobalBatch):
        def add(self, losses_B: Tensor, factors_B: Tensor, valid_B: Tensor, *_: object) -> tuple[Tensor, float]:
            return torch.full_like(losses_B, 1.0 / len(data)), 1.0

        def exchange(self) -> float:
            return 1.0

        def gather_records(self) -> tuple[Tensor, Tensor]:
            return torch.ones(2), torch.ones(2)

        def report(self) -> object:
            return mock.MagicMock(heaviest=None, group_weights=(0.0, 0.0))

    def exact() -> float:
        patches = [
            mock.patch.object(GlobalBatch, n, timed(getattr(GlobalBatch, n))) for n in ("add", "exchange", "gather_records", "report")
        ]
        patches.append(mock.patch.object(LambdaControl, "observe", timed(LambdaControl.observe)))
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            spent[0] = 0.0
            seconds = our_step(model, data, "dpo", "shared", 4)
        shares.append(spent[0] / (STEPS + 1) / seconds)
        return seconds

    def plain() -> float:
        with (
            mock.patch("dora_core.training.alignment.GlobalBatch", PlainMean),
            mock.patch.object(LambdaControl, "observe", lambda *_: None),
        ):
            return our_step(model, data, "dpo", "shared", 4)

    shares: list[float] = []
    best = fastest({"exact": exact, "plain": plain}, repetitions)
    share = min(shares)
    yield Row(
        "exact global objective, λ auto, 4 micro-batches: share of the step",
        f"{share:.2%} inside its code; whole step {best['exact'] / best['plain'] - 1:+.1%} against a plain mean",
        "≤ 2 %",
        share <= 0.02,
        "a few dozen operations on B numbers a micro-batch, one exchange a step",
    )


def vocabulary(repetitions: int, width: int = 256) -> Iterator[Row]:
    """One log-prob step over a vocabulary of 128k: a small body, and either all logits, those of response positions, or blocks."""
    vocab, prompt, response, n = 128_000, 128, 64, 4
    torch.manual_seed(0)
    hidden = torch.randn(n * (prompt + response), width, requires_grad=True)
    weight = (torch.randn(vocab, width) * 0.02).requires_grad_()
    predicts = torch.zeros(n, prompt + response, dtype=torch.bool)
    predicts[:, prompt - 1 : -1] = True
    where, targets = predicts.flatten(), torch.randint(vocab, (n * response,))
    upstream = torch.randn(n * response)

    def step(logps_T: Tensor) -> None:
        (logps_T * upstream).sum().backward()
        hidden.grad = weight.grad = None

    def all_logits() -> None:
        logps = F.linear(hidden, weight).log_softmax(dim=-1)[where]
        step(logps.gather(1, targets[:, None]).squeeze(1))

    def response_logits() -> None:
        step(F.linear(hidden[where], weight).log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1))

    def ours() -> None:
        step(linear_logps(hidden[where], weight, None, targets))

    ways = {"all": all_logits, "response": response_logits, "ours": ours}
    best = best_of(ways, repetitions)
    memory = {name: peak_memory(run) for name, run in ways.items()}
    for other, what in (("all", "all logits [B, S, V]"), ("response", "logits of response positions only")):
        used, slower = memory["ours"] / memory[other], best["ours"] / best[other]
        yield Row(
            f"log-probs, vocabulary 128k, width {width}: against {what}",
            f"memory {memory['ours'] / 2**20:.0f} / {memory[other] / 2**20:.0f} MiB = {used:.2f}, time {slower:.2f} ×",
            "≤ 0.25, ≤ 1.1 ×",
            used <= 0.25 and slower <= 1.1,
            f"gradient of the embedding, {vocab * width * 4 / 2**20:.0f} MiB, is in all; recomputing is 4 products instead of 3 (1.33 ×)",
        )


def peak_memory(run: Callable[[], object]) -> int:
    """Largest growth of the process during ``run``, bytes (Linux, glibc)."""
    run()
    release_freed_memory()  # memory that the allocator kept from earlier runs would hide this one's
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", default=["trl", "lists", "arithmetic", "objective", "vocabulary"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    small, large = (
        build_policy(ModelConfig(hidden_size=512, layers=layers, heads=8), word_tokenizer(), PROMPT + RESPONSE) for layers in (3, 8)
    )
    sections = {
        "trl": lambda: against_trl(small, arguments.repetitions),
        "lists": lambda: lists(small, arguments.repetitions),
        "arithmetic": lambda: arithmetic(large, arguments.repetitions),
        "objective": lambda: objective_cost(small, arguments.repetitions),
        "vocabulary": lambda: vocabulary(arguments.repetitions),
    }
    rows = [row for name in arguments.only for row in sections[name]()]
    report(f"training step, {arguments.threads} threads", rows, arguments.save)


if __name__ == "__main__":
    main()
