"""The data plane: is its memory flat, its cost per row constant, and does a second realignment compute only the new rows?

(a) N responses (four a record, four sources, about 300 characters each, generated on the fly) go through the stages' own code,
``calibrate`` → ``reference`` → the join of ``align`` → the trainer's loader (every record once, shuffled), with scorers of negligible
cost: the rest is reading, hashing, sharding, row caches, tokenising and writing. Every size runs in its own process;
its peak is that of the kernel (VmHWM), mapped files included. Seconds are wall clock; processor seconds are beside them because
tokenising uses all cores.

(b) The known mixture, a tiny classifier and a tiny policy, really computed: the seconds of ``calibrate`` and ``reference`` on 95 % of the
rows, then on all of them.

    python -m tests.benchmarks.bench_data [--responses 100000 1000000] [--prompts 1000] [--save FILE]
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}  # before transformers is imported

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dora_core.config.alignment import AlignConfig
from dora_core.config.data import DataConfig, DataSource
from dora_core.config.execution import Execution
from dora_core.config.method import CalibrationConfig, ClassifierConfig, ModelConfig, TestbedConfig, TextConfig
from dora_core.config.rounds import DriftConfig
from infra.store.store import Store
from tasks.runtime.stage import StageContext, StageOutput, StageSpec, execute
from tasks.runtime.workers import Worker, WorkerArguments
from tasks.stages import align, calibrate, classify, drift, ingest, reference, training_data
from tasks.tables.artifacts import TRAINING_DATA_FILE
from tests.benchmarks.harness import Row, argument_parser, report
from tests.tasks.facts import classifier

SOURCES = ["human", "alpha-lm", "beta-lm", "gamma-lm"]
N_LIST, WORDS, LETTERS, VOCABULARY = 4, 36, 7, 2000  # responses a record, words a response (287 characters), letters a word, words
GIB = 2**30
PEAK_GIB, RATIO, SECOND = 1.5, 1.2, 0.15
HERE = Execution(workers=0)


# ------------------------------------------------------------------------------------------- (a) synthetic inputs


class Records(StageSpec):
    stage: ClassVar[str] = "ingest"

    responses: int


class Classifier(StageSpec):
    stage: ClassVar[str] = "classify"


def vocabulary() -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(letters) for letters in rng.choice(list("etaoinshrdlu"), (VOCABULARY, LETTERS))]


def write_records(spec: Records, context: StageContext) -> StageOutput:
    """Canonical records, all of the train split."""
    from dora_core.data.records import RECORDS_SCHEMA

    rng, words = np.random.default_rng(1), np.array(vocabulary(), dtype=object)
    records = spec.responses // N_LIST
    with pq.ParquetWriter(context.path / "records.parquet", RECORDS_SCHEMA, compression="zstd") as file:
        for start in range(0, records, ingest.GROUP_ROWS):
            n = min(ingest.GROUP_ROWS, records - start)
            texts = [" ".join(row) for row in words[rng.integers(0, VOCABULARY, (n * N_LIST, WORDS))]]
            offsets = np.arange(0, n * N_LIST + 1, N_LIST, dtype=np.int32)
            message = pa.StructArray.from_arrays(
                [pa.array(["user"] * n), pa.array([f"Question {start + i}?" for i in range(n)])], ["role", "content"]
            )

            def lists(values: Any, offsets: Any = offsets) -> pa.ListArray:
                return pa.ListArray.from_arrays(offsets, pa.array(values))

            columns = {
                "record_id": [f"record-{start + i}" for i in range(n)],
                "prompt": pa.ListArray.from_arrays(np.arange(n + 1, dtype=np.int32), message),
                "responses": lists(texts),
                "rewards": lists(rng.random(n * N_LIST)),
                "sources": lists(SOURCES * n),
                "reward_kind": ["reward"] * n,
                "split": ["train"] * n,
                "prompt_hash": rng.integers(0, 2**64, n, dtype=np.uint64),
                "schema_version": np.ones(n, np.int32),
            }
            file.write_table(pa.table([pa.array(columns[f.name], f.type) for f in RECORDS_SCHEMA], schema=RECORDS_SCHEMA))
    return StageOutput(rows=records)


def write_classifier(spec: Classifier, context: StageContext) -> StageOutput:
    """The files that ``calibrate`` reads of a fitted classifier besides its scores."""
    from dora_core.classifier.scaling import Scaling
    from dora_core.classifier.scoring import Meta, save_meta
    from dora_core.models.loading import train_tokenizer

    heads = SOURCES[1:]
    folder = context.path / classify.FOLDER
    folder.mkdir()
    save_meta(folder, train_tokenizer(["a"], 300), Meta(heads, SOURCES[:1], [1.0] * 3, [Scaling()] * 3, 3, {}))
    return StageOutput(rows=0, facts=classify.Facts.model_validate(classifier(spec.ref(), heads)))


class InstantLogits(Worker):
    """Stands in for ``LogitScorer``: three logits from the bits of the key."""

    def __init__(self, _: WorkerArguments):
        pass

    def __call__(self, rows: pa.Table) -> pa.Table:
        keys = rows["key"].to_numpy()
        bits = (keys[:, None] >> np.array([0, 16, 32], dtype=np.uint64)) & np.uint64(0xFFFF)
        logits = bits.astype(np.float32) / 2**15 - 1.0
        ones = np.ones(len(keys), np.int64)
        return pa.table(
            {"key": keys} | {f"logit_{name}": logits[:, i] for i, name in enumerate(SOURCES[1:])} | {"tokens": ones, "padded": ones}
        )


class InstantLogps(Worker):
    """Stands in for ``LogpScorer``: minus the characters of the response."""

    def __init__(self, _: WorkerArguments):
        pass

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        length = pc.utf8_length(rows["response"]).cast(pa.int32())
        columns = {"key": rows["key"], "logp_reference": pc.negate(length.cast(pa.float64()))}
        return pa.table(columns | {"tokens": length, "prompt_tokens": length, "truncated": pa.array(np.zeros(len(rows), np.int32))})


# ------------------------------------------------------------------------------------------------ (a) one size, alone


@dataclass
class Clock:
    """Wall and processor seconds by stage."""

    wall: dict[str, float]
    cpu: dict[str, float]
    peak: dict[str, float]

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        os.sync()  # else the first fsync of a stage would wait for the writes of the stage before it
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[stage], self.cpu[stage] = time.perf_counter() - wall, time.process_time() - cpu
        self.peak[stage] = peak_bytes() / GIB


def peak_bytes() -> int:
    """The largest resident set so far (VmHWM); unlike ``ru_maxrss`` it forgets the parent at exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def one_size(responses: int, folder: Path) -> dict[str, Any]:
    """Run all stages, in its own process, after a warm-up that imports everything."""
    from dora_core.models.loading import train_tokenizer
    from dora_core.training.alignment_data import AlignmentData

    store, clock = Store(str(folder / "store")), Clock({}, {}, {})
    calibrate.LogitScorer, reference.LogpScorer = InstantLogits, InstantLogps  # type: ignore[misc,assignment]
    words = vocabulary()
    tokenizer = train_tokenizer([" ".join(words[i:] + words[:i]) for i in range(0, VOCABULARY, 100)], 4096)
    tokenizer.save_pretrained(folder / "model")
    model, text = ModelConfig(source=str(folder / "model")), TextConfig()
    records, fit = Records(responses=responses), Classifier()
    factors = calibrate.Spec(
        records=records.ref(), classifier=fit.ref(), calibration=CalibrationConfig(), golden_sources=SOURCES[:1], execution=HERE
    )
    logps = reference.Spec(records=records.ref(), start=None, model=model, text=text, execution=HERE)
    training = align.Spec(
        records=records.ref(),
        calibration=factors.ref(),
        reference=logps.ref(),
        start=None,
        model=model,
        text=text,
        align=AlignConfig(loss={"name": "dpo_pl"}),
        execution=HERE,
    )
    loaded: list[int] = []

    def load(spec: align.Spec, context: StageContext) -> StageOutput:
        ref = spec.predecessors()["data"]
        with clock.of("loader"):
            data = AlignmentData(context.fetch(ref) / TRAINING_DATA_FILE)
            for i in np.random.default_rng(2).permutation(len(data)):
                loaded.append(len(data[i].responses))
        assert len(loaded) == responses // N_LIST and sum(loaded) == responses
        return StageOutput(rows=len(data))

    execute(fit, write_classifier, store)
    stages: list[tuple[str, StageSpec, Callable[..., StageOutput]]] = [
        ("generate", records, write_records),
        ("calibrate", factors, calibrate.run),
        ("reference", logps, reference.run),
        ("join", training.preparation()["data"], training_data.run),
    ]
    for stage, spec, run in stages:
        with clock.of(stage):
            execute(spec, run, store)
    execute(training, load, store)
    return {"wall": clock.wall, "cpu": clock.cpu, "peak": clock.peak}


def in_fresh_process(responses: int) -> dict[str, Any]:
    root = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.bench_data", "--child", folder, "--responses", str(responses)]
        done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def flatness(sizes: list[int]) -> list[Row]:
    found = {n: in_fresh_process(n) for n in sizes}
    small, large = sizes[0], sizes[-1]
    stages = ["calibrate", "reference", "join", "loader"]
    rows = []
    for n, one in found.items():
        peak = max(one["peak"].values())
        by_stage = ", ".join(f"{s} {one['peak'][s]:.2f}" for s in stages)
        rows.append(
            Row(f"peak memory, {n:,} responses", f"{peak:.2f} GiB", f"≤ {PEAK_GIB} GiB", peak <= PEAK_GIB, f"so far after: {by_stage}")
        )
    for stage in [*stages, "all"]:
        wall, cpu = (
            {n: _per_row(one[kind], stages if stage == "all" else [stage], n) for n, one in found.items()} for kind in ("wall", "cpu")
        )
        ratio = wall[large] / wall[small]
        rows.append(
            Row(
                f"{stage}, µs a response",
                f"{wall[small]:.1f} → {wall[large]:.1f}: {ratio:.2f} ×",
                f"≤ {RATIO} ×" if stage == "all" else "",
                ratio <= RATIO if stage == "all" else None,
                f"processor µs {cpu[small]:.1f} → {cpu[large]:.1f}: {cpu[large] / cpu[small]:.2f} ×",
            )
        )
    return rows


def _per_row(seconds: dict[str, float], stages: list[str], n: int) -> float:
    return sum(seconds[stage] for stage in stages) / n * 1e6


# ------------------------------------------------------------------------------------------------ (b) what is new


def second_realignment(prompts: int, folder: Path) -> list[Row]:
    """5 % more prompts; the classifier still fits, the policy is a folder that did not change."""
    import torch

    from dora_core.data.inputs import fingerprint_sources
    from dora_core.models.loading import build_policy, save_model, train_tokenizer
    from dora_core.testbed.mixture import GOLDEN, Testbed

    store, rows = Store(str(folder / "store")), Testbed(TestbedConfig(prompts=prompts)).generate()
    tokenizer = train_tokenizer((y for row in rows for y in row["responses"]), 1024)
    torch.manual_seed(0)
    policy = ModelConfig(hidden_size=192, layers=4, heads=4)
    save_model(build_policy(policy, tokenizer, 512), tokenizer, folder / "model")
    model, text = ModelConfig(source=str(folder / "model")), TextConfig(max_prompt_tokens=48, max_response_tokens=96)
    settings = ClassifierConfig(encoder=ModelConfig(hidden_size=32, layers=1, heads=2, vocab_size=1024), folds=2, epochs=0.5)

    def realign(count: int, previous: drift.Previous | None) -> tuple[drift.Previous, dict[str, dict[str, Any]]]:
        path = folder / f"{count}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[:count]), path)
        data = DataConfig(train=[DataSource(path=str(path))], golden_sources=[GOLDEN])
        ingested = ingest.Spec(data=data, fingerprints=fingerprint_sources(data))
        execute(ingested, ingest.run, store)
        drifted = drift.Spec(
            records=ingested.ref(),
            classifier=settings,
            calibration=CalibrationConfig(),
            golden_sources=[GOLDEN],
            drift=DriftConfig(),
            previous=previous,
            execution=HERE,
        )
        execute(drifted, drift.run, store)
        fit = classify.Spec(records=ingested.ref(), classifier=settings, golden_sources=[GOLDEN], drift=drifted.ref(), execution=HERE)
        execute(fit, classify.run, store)
        factors = calibrate.Spec(
            records=ingested.ref(), classifier=fit.ref(), calibration=CalibrationConfig(), golden_sources=[GOLDEN], execution=HERE
        )
        logps = reference.Spec(records=ingested.ref(), start=None, model=model, text=text, execution=HERE)
        results = {"calibrate": execute(factors, calibrate.run, store), "reference": execute(logps, reference.run, store)}
        return drift.Previous(records=ingested.ref(), classify=fit.ref(), calibrate=factors.ref()), results

    before, first = realign(round(prompts * 0.95), None)
    _, second = realign(prompts, before)
    report_rows = []
    for stage in ("calibrate", "reference", "both"):
        stages = ["calibrate", "reference"] if stage == "both" else [stage]
        seconds = [sum(results[s]["seconds"] for s in stages) for results in (first, second)]
        scored = [sum(results[s]["facts"]["scored_rows"] for s in stages) for results in (first, second)]
        share = seconds[1] / seconds[0]
        report_rows.append(
            Row(
                f"second realignment, 5 % new rows: {stage}",
                f"{seconds[0]:.2f} s → {seconds[1]:.2f} s: {share:.1%}",
                f"≤ {SECOND:.0%}" if stage == "both" else "",
                share <= SECOND if stage == "both" else None,
                f"rows scored {scored[0]:,} → {scored[1]:,}: {scored[1] / scored[0]:.1%} would be the least",
            )
        )
    return report_rows


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--responses", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--prompts", type=int, default=1000, help="records of the known mixture for (b), four responses each")
    parser.add_argument("--child", type=Path, help="run one size in this folder and print JSON; used by the benchmark itself")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.child:
        one_size(40 * N_LIST, arguments.child / "warm-up")
        print(json.dumps(one_size(arguments.responses[0], arguments.child / "measured")))
        return
    rows = flatness(sorted(arguments.responses))
    with tempfile.TemporaryDirectory() as folder:
        rows += second_realignment(arguments.prompts, Path(folder))
    report("Data plane", rows, arguments.save)


if __name__ == "__main__":
    main()
