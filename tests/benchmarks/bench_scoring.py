"""The scoring pass: against a Hugging Face pipeline, one shared trunk against four classifiers, one actor against two.

All sides run the same randomly initialised encoder of MiniLM-L6's shape (6 layers × 384, 10.6 M weights in its layers) on the same
responses of the real mixture (``../shared/data`` beside the checkout; without it the known mixture), in float32 with the same number of
threads. The classifier keeps the last 64 tokens of a prompt and the first 192 of a response; the pipeline's texts are cut there
beforehand. Its batches are 32 rows in the order of the data.

    python -m tests.benchmarks.bench_scoring [--rows 480] [--threads 1] [--skip-actors] [--save FILE]
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from dora_core.classifier.model import SourceClassifier, build_classifier
from dora_core.classifier.scaling import Scaling
from dora_core.classifier.scoring import FittedClassifiers, Meta, save_fold, save_meta
from dora_core.classifier.text_statistics import SurfaceBasis, surface_statistics
from dora_core.classifier.wide import WideModel
from dora_core.config.execution import Execution
from dora_core.config.method import ClassifierConfig, ModelConfig
from dora_core.models.loading import train_tokenizer
from dora_core.testbed.mixture import Testbed, TestbedConfig
from infra.store.journal import JournalWriter
from infra.store.store import Store
from tasks.runtime.shards import run_shards
from tasks.runtime.stage import StageContext, StageRef
from tasks.stages.classify import FOLDER, LogitArguments, LogitScorer
from tests.benchmarks.harness import Row, argument_parser, best_of, report

MIXTURE = Path(__file__).parents[3] / "shared" / "data" / "mixture.parquet"
CONFIG = ClassifierConfig(encoder=ModelConfig(hidden_size=384, layers=6, heads=12, vocab_size=30_522), folds=2)
BATCH_TOKENS = Execution().batch_tokens
SOURCES = ["a", "b", "c", "d"]


@dataclass(frozen=True)
class Rows:
    """(prompt, response) rows in the order of the data; a prompt's fold."""

    prompts: list[str]
    responses: list[str]
    folds: np.ndarray

    @classmethod
    def of(cls, count: int) -> Rows:
        """About ``count`` responses: all those of every k-th record."""
        records = pq.read_table(MIXTURE).to_pylist() if MIXTURE.exists() else Testbed(TestbedConfig()).generate()
        step = max(1, sum(len(r["responses"]) for r in records) // count)
        chosen = list(enumerate(records[::step]))
        pairs = [(r["prompt"], y, i % CONFIG.folds) for i, r in chosen for y in r["responses"]]
        prompts, responses, folds = zip(*pairs, strict=True)
        return cls(list(prompts), list(responses), np.array(folds))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.prompts[part], self.responses[part], self.folds[part])


def make_classifier(folder: Path, rows: Rows, tokenizer: Any, sources: Sequence[str], *, deep: bool = True) -> SourceClassifier:
    """A classifier with random weights, saved as by a fit; without ``deep`` as one whose deep part was not kept."""
    generator = torch.Generator().manual_seed(0)
    wide = WideModel(len(sources), SurfaceBasis.fit(surface_statistics(rows.prompts, rows.responses)))
    wide.ngram_weight.normal_(generator=generator)
    wide.surface_weight.normal_(generator=generator)
    torch.manual_seed(0)
    model = build_classifier(CONFIG, tokenizer, wide)
    if deep:
        torch.nn.init.normal_(model.head.weight)
    for fold in range(CONFIG.folds):
        save_fold(model, folder / f"fold-{fold}")
    scaling = [Scaling(temperature=1.0) for _ in sources]
    save_meta(
        folder, tokenizer, Meta(list(sources), ["human"], [1.0] * len(sources), scaling, CONFIG.folds, CONFIG.model_dump(mode="json"))
    )
    return model


def pair_tokenizer(rows: Rows) -> transformers.PreTrainedTokenizerFast:
    """The tiny tokenizer, which also joins pairs as the classifier does: for the pipeline."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer([*dict.fromkeys(rows.prompts), *rows.responses], CONFIG.encoder.vocab_size)
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<cls>", "<sep>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $A <sep> $B <sep>", special_tokens=special
    )
    return tokenizer


def hugging_face_pipeline(encoder: Any, tokenizer: Any, device: str) -> Any:
    model = transformers.BertForSequenceClassification(transformers.BertConfig.from_dict(encoder.config.to_dict() | {"num_labels": 4}))
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    options = {"top_k": None, "function_to_apply": "none", "batch_size": 32}
    return transformers.pipeline("text-classification", model=model.eval(), tokenizer=tokenizer, device=device, **options)


def cut_texts(rows: Rows, tokenizer: Any) -> list[dict[str, str]]:
    """The part of each row that the classifier reads, as text."""

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    prompts = [tokenizer.decode(i[-CONFIG.max_prompt_tokens :]) for i in ids(rows.prompts)]
    responses = [tokenizer.decode(i[: CONFIG.max_response_tokens]) for i in ids(rows.responses)]
    return [{"text": x, "text_pair": y} for x, y in zip(prompts, responses, strict=True)]


# -------------------------------------------------------------------------------------------------------------- limits


def matmul_peak(device: str) -> float:
    """FLOP/s of a large float32 matrix product (bfloat16 on a GPU), best of five."""
    dtype, size = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    a, b = torch.randn(2, size, size, dtype=dtype, device=device)

    def product() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / best_of({"product": product}, 5)["product"]


def encoder_flops(encoder: Any, lengths: np.ndarray) -> float:
    """Multiplications and additions of the plain encoder's matrix products for rows of these lengths, without any padding. (The
    classifier leaves prompts out of the last layer's second half: about 6 % of it on this data.)"""
    weights = sum(p.numel() for p in encoder.encoder.parameters() if p.ndim == 2)
    config = encoder.config
    return float(2 * weights * lengths.sum() + 4 * config.num_hidden_layers * config.hidden_size * (lengths.astype(float) ** 2).sum())


def share_of_peak(encoder: Any, lengths: np.ndarray, seconds: float, peak: float) -> str:
    reached = encoder_flops(encoder, lengths) / seconds
    return f"{reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of the {peak / 1e9:.0f} of a matmul"


# -------------------------------------------------------------------------------------------------------- comparisons


def against_pipeline(rows: Rows, folder: Path, model: SourceClassifier, tokenizer: Any, arguments: Any, peak: float) -> list[Row]:
    pipe, texts = hugging_face_pipeline(model.encoder, tokenizer, arguments.device), cut_texts(rows, tokenizer)
    ours = FittedClassifiers(folder, batch_tokens=BATCH_TOKENS, device=torch.device(arguments.device))
    scored = ours.score(rows.prompts, rows.responses, rows.folds)
    longest = CONFIG.max_prompt_tokens + CONFIG.max_response_tokens + 3
    theirs = np.array([len(i) for i in tokenizer([t["text"] for t in texts], [t["text_pair"] for t in texts])["input_ids"]])
    in_order = [theirs[i : i + 32] for i in range(0, len(theirs), 32)]
    waste = 1 - theirs.sum() / sum(len(batch) * batch.max() for batch in in_order)
    seconds = best_of(
        {
            "pipeline": lambda: pipe(texts, truncation=True, max_length=longest),
            "ours": lambda: ours.score(rows.prompts, rows.responses, rows.folds),
        },
        arguments.repetitions,
    )
    ratio = seconds["pipeline"] / seconds["ours"]
    limit = encoder_flops(model.encoder, scored.tokens_N) / peak
    return [
        Row(
            f"pipeline, batches of 32: rows/s of {len(rows)}",
            f"{len(rows) / seconds['pipeline']:.1f}",
            limit=f"padding {waste:.1%}; {share_of_peak(model.encoder, theirs, seconds['pipeline'], peak)}, padding not counted",
        ),
        Row(
            "ours, with the wide part: rows/s",
            f"{len(rows) / seconds['ours']:.1f}",
            limit=f"padding {scored.padding_waste:.1%}; {share_of_peak(model.encoder, scored.tokens_N, seconds['ours'], peak)}",
        ),
        Row(
            "ours ÷ pipeline",
            f"{ratio:.2f}",
            "≥ 2",
            ratio >= 2,
            f"{seconds['pipeline'] / limit:.2f} if the encoder ran at the matmul's speed",
        ),
    ]


def without_encoder(rows: Rows, work: Path, tokenizer: Any, arguments: Any) -> Row:
    """Host work alone."""
    make_classifier(work / "wide", rows, tokenizer, SOURCES, deep=False)
    wide = FittedClassifiers(work / "wide", batch_tokens=BATCH_TOKENS)
    seconds = best_of({"wide": lambda: wide.score(rows.prompts, rows.responses, rows.folds)}, arguments.repetitions)["wide"]
    return Row(
        f"ours, wide part alone: rows/s of {len(rows)}",
        f"{len(rows) / seconds:.0f}",
        limit=f"{seconds / len(rows) * 1e6:.0f} µs a row: tokenizer, statistics, n-grams",
    )


def shared_trunk(rows: Rows, folder: Path, work: Path, tokenizer: Any, arguments: Any) -> Row:
    device = torch.device(arguments.device)
    together = FittedClassifiers(folder, batch_tokens=BATCH_TOKENS, device=device)
    alone = []
    for source in SOURCES:
        make_classifier(work / source, rows, tokenizer, [source])
        alone.append(FittedClassifiers(work / source, batch_tokens=BATCH_TOKENS, device=device))
    seconds = best_of(
        {
            "one trunk": lambda: together.score(rows.prompts, rows.responses, rows.folds),
            "four": lambda: [one.score(rows.prompts, rows.responses, rows.folds) for one in alone],
        },
        arguments.repetitions,
    )
    ratio = seconds["four"] / seconds["one trunk"]
    return Row("one trunk with 4 heads ÷ 4 classifiers", f"{ratio:.2f}", "≥ 3.5", ratio >= 3.5, "4: the trunk is all but all of the work")


def rows_per_second(rows: Rows, store: Store, classifier: StageRef, workers: int, shard_rows: int) -> float:
    """Wall-clock rate while all actors work: from their second shard each (the model is loaded at the first) until the first of them
    finds no more."""

    class Timed(StageContext):
        def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
            times.append((time.perf_counter(), done))

    times: list[tuple[float, int]] = []
    execution = Execution(workers=workers, shard_rows=shard_rows)
    folder = store.folder("bench", f"{time.time_ns():064x}")
    table = pa.table(
        {
            "key": np.arange(len(rows)).astype(np.uint64),
            "prompt": rows.prompts,
            "response": rows.responses,
            "fold": rows.folds.astype(np.int32),
        }
    )
    run_shards(
        Timed(store, folder, JournalWriter(folder), logging.getLogger("bench")),
        table,
        name="scores",
        worker=partial(LogitScorer, LogitArguments(store_uri=store.uri, execution=execution, classifier=classifier)),
        execution=execution,
        unit="responses",
    )
    warm, end = times[2 * workers], times[-workers]  # the first entry is 0 rows
    return (end[1] - warm[1]) / (end[0] - warm[0])


def one_and_two_actors(
    rows: Rows, store: Store, classifier: StageRef, model: SourceClassifier, tokenizer: Any, arguments: Any
) -> list[Row]:
    """Actors of one thread each; two of them against the pipeline with two threads, each side in its own way to use two cores."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    try:
        rate = {1: 0.0, 2: 0.0}
        for _ in range(arguments.repetitions):
            for workers in rate:
                rate[workers] = max(rate[workers], rows_per_second(rows, store, classifier, workers, len(rows) // 16))
    finally:
        ray.shutdown()
    ratio = rate[2] / rate[1]
    pipe, texts = hugging_face_pipeline(model.encoder, tokenizer, "cpu"), cut_texts(rows, tokenizer)
    longest = CONFIG.max_prompt_tokens + CONFIG.max_response_tokens + 3
    torch.set_num_threads(2)
    seconds = best_of({"pipeline": lambda: pipe(texts, truncation=True, max_length=longest)}, arguments.repetitions)["pipeline"]
    both = rate[2] * seconds / len(rows)
    return [
        Row(
            f"2 actors ÷ 1, once warm: {rate[1]:.1f} → {rate[2]:.1f} rows/s", f"{ratio:.2f}", "≥ 1.7", ratio >= 1.7, "2 on two quiet cores"
        ),
        Row(f"two cores: 2 actors ÷ pipeline with 2 threads ({len(rows) / seconds:.1f} rows/s)", f"{both:.2f}", "≥ 2", both >= 2),
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--threads", type=int, default=1, help="torch and tokenizer threads of every contestant; an actor has 1 by default")
    parser.add_argument("--skip-actors", action="store_true")
    parser.set_defaults(repetitions=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    rows = Rows.of(arguments.rows)
    tokenizer, peak = pair_tokenizer(rows), matmul_peak(arguments.device)
    with tempfile.TemporaryDirectory() as work:
        store, classifier = Store(f"{work}/store"), StageRef(stage="classify", digest="0" * 64)
        stage = store.folder(classifier.stage, classifier.digest)
        model = make_classifier(stage.path / FOLDER, rows, tokenizer, SOURCES)
        store.mark_done(stage, {})
        table = against_pipeline(rows, stage.path / FOLDER, model, tokenizer, arguments, peak)
        table.append(without_encoder(Rows.of(10 * arguments.rows), Path(work), tokenizer, arguments))
        table.append(shared_trunk(rows[: len(rows) // 3], stage.path / FOLDER, Path(work), tokenizer, arguments))
        if not arguments.skip_actors:
            table += one_and_two_actors(rows, store, classifier, model, tokenizer, arguments)
    data = "the real mixture" if MIXTURE.exists() else "the known mixture"
    report(f"Scoring: {data}, {arguments.threads} thread(s), {arguments.device}", table, arguments.save)


if __name__ == "__main__":
    main()
