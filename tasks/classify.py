"""Stage ``classify``: fit the source classifiers, or keep the previous ones while they still fit.

Input: the records and extra golden rows of ``ingest``. Output: ``classifier/`` (a folder per fold, tokenizer, ``meta.json``, the
keys of fitted rows), all safetensors, JSON and Parquet; nothing but facts if the previous classifier is kept.
``facts["classifier"]`` names the stage output to score with, whichever it is. Guarantee: fold k's model never saw a prompt of
fold k, none saw an evaluation prompt, and the decision to keep or refit states its evidence. Cost: K fits, in
parallel as Ray tasks; a finished fold is not fitted again after a crash. Memory: about 50 bytes per training response to choose the rows
to fit on; texts of the chosen ones only, at most ``max_responses_per_source`` of each source.

The golden side Q_0 is the pool of all golden sources' training responses and the rows of ``golden.parquet``: h needs one trusted
distribution. Golden sources get no head, their ratio is 1 by definition.

Responses that do not name their source are one more pseudo-source, :data:`UNLABELLED` (rows that name a source of just this name join
them). Its head tells golden from unlabelled, which is positive-unlabelled learning with the golden pool as positives; the golden share a
among the unlabelled is estimated from the out-of-fold logits (``dora_core/classifier_unlabelled.py``) and is in ``facts["unlabelled"]``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from dora_core.config import ClassifierConfig, Execution
from dora_core.errors import DataError
from infra.store import StageFolder, Store, sha256_file
from tasks.rows import GOLDEN_FILE, RECORDS_FILE, read_index, texts_at
from tasks.stage import NotInDigest, StageContext, StageOutput, StageRef, StageSpec, main

if TYPE_CHECKING:
    import pyarrow as pa

    from dora_core.classifier import Examples
    from dora_core.classifier_fit import FoldFit

FOLDER, KEYS, LOGITS = "classifier", "rows.parquet", "out_of_fold.safetensors"
UNLABELLED = "unlabelled"
JUDGEABLE = 50  # new rows of each class before an AUC on them says anything
JUDGED_AT_MOST = 2000  # new rows of a source, and of golden, that are scored to judge it


class Spec(StageSpec):
    """See the module docstring. ``previous`` is the classify stage of the project's last run."""

    stage: ClassVar[str] = "classify"
    version: ClassVar[int] = 2

    records: StageRef
    classifier: ClassifierConfig
    golden_sources: list[str]
    previous: Annotated[StageRef | None, NotInDigest] = None


# ---------------------------------------------------------------------------------------------------------------- rows


def labelled_rows(records: Path, golden_sources: list[str]) -> pa.Table:
    """Rows to fit on, in order of key, as numbers: source (:data:`UNLABELLED` where the data names none, null for extra golden rows),
    prompt_hash, key, golden (bool), and position: i ≥ 0 is training row i of ``records.parquet``, −1 − i that of ``golden.parquet``.

    Raises:
        DataError: no golden response, or nothing but golden responses.
    """
    import numpy as np
    import pyarrow as pa

    from dora_core.records import is_golden_source

    train, extra = read_index(records / RECORDS_FILE, "train"), read_index(records / GOLDEN_FILE, "train")
    names = [*train.names, UNLABELLED]  # the last for −1, no source
    is_golden = np.array([is_golden_source(name, golden_sources) for name in names])
    codes = pa.array(train.source_N % len(names), pa.int32())
    rows = pa.table(
        {
            "source": pa.DictionaryArray.from_arrays(pa.concat_arrays([codes, pa.nulls(len(extra), pa.int32())]), names),
            "prompt_hash": np.concatenate([train.prompt_hash_N, extra.prompt_hash_N]),
            "key": np.concatenate([train.key_N, extra.key_N]),
            "golden": np.concatenate([is_golden[train.source_N], np.ones(len(extra), bool)]),
            "position": np.concatenate([np.arange(len(train)), -1 - np.arange(len(extra))]),
        }
    )
    golden = int(rows["golden"].to_numpy().sum())
    if golden == 0:
        known = ", ".join(sorted(set(train.names) - {UNLABELLED})) or "(no row names its source)"
        raise DataError(
            f"no training response comes from a golden source ({', '.join(golden_sources)})",
            hint=f"set data.golden_sources to trusted ones among: {known}; or give data.golden",
        )
    if golden == len(rows):
        raise DataError(
            "every training response is golden: there is nothing to tell apart",
            hint="use objective erm, or name only the trusted sources in data.golden_sources",
        )
    return rows.sort_by("key")


def head_names(rows: pa.Table) -> list[str]:
    """Synthetic sources and UNLABELLED, sorted: the order of heads."""
    import pyarrow.compute as pc

    return sorted(pc.unique(rows.filter(pc.invert(rows["golden"]))["source"].cast("string")).to_pylist())


def to_examples(rows: pa.Table, sources: list[str], folds: int, limit: int | None, records: Path) -> Examples:
    """Examples of golden rows and ``sources``; at most ``limit`` of each, the smallest keys (they are hashes: a fair sample). Only their
    texts are read."""
    import numpy as np

    from dora_core.classifier import GOLDEN, Examples
    from dora_core.records import fold_of

    source = rows["source"].combine_chunks()
    heads = {name: i for i, name in enumerate(sources)}
    head_of = np.array([*(heads.get(name, GOLDEN - 1) for name in source.dictionary.to_pylist()), GOLDEN], dtype=np.int64)
    head = np.where(rows["golden"].to_numpy(), GOLDEN, head_of[source.indices.fill_null(-1).to_numpy()])
    groups = [np.flatnonzero(head == h)[:limit] for h in (GOLDEN, *heads.values())]
    chosen = np.sort(np.concatenate(groups))
    hashes, position = rows["prompt_hash"].to_numpy()[chosen], rows["position"].to_numpy()[chosen]
    train = np.flatnonzero(position >= 0)
    extra = np.flatnonzero(position < 0)
    texts = np.empty((2, len(chosen)), dtype=object)  # prompts, responses
    texts[:, train] = texts_at(records / RECORDS_FILE, position[train], "train")
    texts[:, extra] = texts_at(records / GOLDEN_FILE, -1 - position[extra], "train")
    prompts, responses = texts.tolist()
    return Examples(prompts, responses, head[chosen], hashes, fold_of(hashes, folds))


class LogitScorer:
    """Worker of a sharded scoring step: rows (prompt, response, fold, key) → (key, logit_<source>…, tokens, padded). It fetches the
    classifier from the store, on whatever machine it runs."""

    def __init__(self, store_uri: str, classifier: StageRef, batch_tokens: int, gpu: bool):
        import torch

        from dora_core.classifier_scoring import FittedClassifiers

        folder = Store(store_uri).fetch(classifier.stage, classifier.digest) / FOLDER
        self._fitted = FittedClassifiers(folder, batch_tokens=batch_tokens, device=torch.device("cuda" if gpu else "cpu"))

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        scored = self._fitted.score(rows["prompt"].to_pylist(), rows["response"].to_pylist(), rows["fold"].to_numpy())
        columns: dict[str, Any] = {"key": rows["key"]}
        columns |= {f"logit_{name}": pa.array(scored.logits_NS[:, i]) for i, name in enumerate(self._fitted.meta.sources)}
        return pa.table(columns | {"tokens": pa.array(scored.tokens_N), "padded": pa.array(scored.padded_N)})


def score_arguments(store_uri: str, classifier: StageRef, execution: Execution) -> dict[str, Any]:
    return {"store_uri": store_uri, "classifier": classifier, "batch_tokens": execution.batch_tokens, "gpu": execution.gpus_per_worker > 0}


# --------------------------------------------------------------------------------------------------------- keep or refit


@dataclass(frozen=True)
class Decision:
    """``keep`` names the stage output to go on with, or is None: fit anew."""

    keep: StageRef | None
    reason: str


def decide(spec: Spec, context: StageContext, rows: pa.Table) -> Decision:
    """Apply ``classifier.refit``; the reason carries the numbers behind it.

    Raises:
        DataError: ``refit: never`` and the previous classifier cannot serve this data.
    """
    if spec.classifier.refit == "always":
        return Decision(None, "classifier.refit is always")
    previous = None if spec.previous is None else context.store.read_result(spec.previous.stage, spec.previous.digest)
    if previous is None:
        return Decision(None, "no classifier of an earlier run")
    effective = StageRef(**previous["facts"]["classifier"])
    if not context.store.is_done(effective.stage, effective.digest):
        return Decision(None, f"the earlier classifier {effective.digest[:12]} is no longer in the store")
    reason = _cannot_serve(spec, context, effective, rows)
    if spec.classifier.refit == "never":
        if reason:
            raise DataError(f"classifier.refit is never, but {reason}", hint="set classifier.refit to auto or always")
        return Decision(effective, "classifier.refit is never")
    if reason:
        return Decision(None, reason)
    return _judge(spec, context, effective, rows)


def _cannot_serve(spec: Spec, context: StageContext, effective: StageRef, rows: pa.Table) -> str:
    """Why the earlier classifier is no estimate of the same thing; empty if it is."""
    from dora_core.classifier_scoring import read_meta

    if context.result(effective)["spec"]["version"] != spec.version:
        return "the earlier classifier was fitted by another version of this stage"
    meta = read_meta(context.fetch(effective) / FOLDER)
    policy = {"refit", "refit_growth", "refit_auc_drop"}
    now, then = spec.classifier.model_dump(mode="json"), meta.config
    if changed := sorted(name for name in now if name not in policy and now[name] != then.get(name)):
        return f"classifier.{changed[0]} changed from {then.get(changed[0])} to {now[changed[0]]}"
    if meta.golden_sources != spec.golden_sources:
        return f"golden sources changed from {meta.golden_sources} to {spec.golden_sources}"
    if unknown := sorted(set(head_names(rows)) - set(meta.sources)):
        return f"the earlier classifier has no head for {', '.join(unknown)}"
    return ""


def _judge(spec: Spec, context: StageContext, effective: StageRef, rows: pa.Table) -> Decision:
    """Keep unless the data grew too much or an AUC on rows new since the fit fell too far."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.classifier import GOLDEN
    from dora_core.classifier_report import auc
    from tasks.shards import run_shards

    folder, config = context.fetch(effective) / FOLDER, spec.classifier
    fitted = pq.read_table(folder / KEYS)["key"].to_numpy()
    new = rows.filter(~np.isin(rows["key"].to_numpy(), fitted))
    if len(new) == 0:
        return Decision(effective, "no training response is new since the fit")
    growth = len(new) / len(fitted)
    if growth > config.refit_growth:
        return Decision(None, f"training responses grew by {growth:.0%}, more than refit_growth = {config.refit_growth:.0%}")
    facts = context.result(effective)["facts"]["sources"]
    sources = list(facts)
    examples = to_examples(new, sources, config.folds, JUDGED_AT_MOST, context.fetch(spec.records))
    golden, counts = examples.head_N == GOLDEN, [int((examples.head_N == i).sum()) for i in range(len(sources))]
    judged = [i for i, n in enumerate(counts) if n >= JUDGEABLE and golden.sum() >= JUDGEABLE and facts[sources[i]]["auc"] is not None]
    if not judged:
        return Decision(effective, f"{len(new)} new training responses (+{growth:.0%}), too few of any source to judge its AUC")
    scored = run_shards(
        context,
        pa.table({"key": np.arange(len(examples)), "prompt": examples.prompts, "response": examples.responses, "fold": examples.fold_N}),
        name="judge",
        worker=LogitScorer,
        arguments=score_arguments(context.store.uri, effective, spec.execution),
        execution=spec.execution,
        unit="responses",
    )
    drops = {}
    for i in judged:
        own = golden | (examples.head_N == i)
        now = float(auc(scored[f"logit_{sources[i]}"].to_numpy()[own], golden[own])[0])
        drops[sources[i]] = (facts[sources[i]]["auc"] - now, now)
    worst = max(drops, key=lambda name: drops[name][0])
    drop, now = drops[worst]
    evidence = f"on {len(examples)} new responses the AUC of {worst} is {now:.3f}, {facts[worst]['auc']:.3f} at the fit"
    if drop > config.refit_auc_drop:
        return Decision(None, f"{evidence}: it fell by more than refit_auc_drop = {config.refit_auc_drop}")
    return Decision(effective, f"training responses grew by {growth:.0%}; {evidence}, the largest fall of {len(drops)} judged sources")


# ------------------------------------------------------------------------------------------------------------------ fit


@dataclass(frozen=True)
class FoldJob:
    """Everything one fold's fit needs, plain data; see ``dora_core.classifier_fit.fit_fold``."""

    examples: Examples
    heads: int
    tokenizer: Any
    config: ClassifierConfig
    execution: Execution
    store_uri: str
    stage: str
    digest: str


def fit_one_fold(job: FoldJob, fold: int) -> FoldFit:
    """Fit fold ``fold`` into the stage's folder and make its files durable, unless an earlier attempt did. Runs here or as a Ray task.

    A finished fold has a marker in ``scratch/`` with the checksums of its files, written last; its out-of-fold logits are one of them.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from dora_core.classifier_fit import FoldFit, fit_fold
    from infra.journal import JournalWriter

    store = Store(job.store_uri)
    folder, relative, marker = store.folder(job.stage, job.digest), f"{FOLDER}/fold-{fold}", f"scratch/fold-{fold}.json"
    done = store.read_json(f"{job.stage}/{job.digest}/{marker}")
    if done is not None and all(_is_whole(store, folder, f"{relative}/{name}", sha256) for name, sha256 in done["files"].items()):
        return FoldFit(fold, load_file(folder.path / relative / LOGITS)["logits"].numpy(), done["curve"], done["deep"])
    journal = JournalWriter(folder)
    fit = fit_fold(
        job.examples,
        job.heads,
        job.tokenizer,
        job.config,
        fold,
        folder.path / relative,
        device=torch.device("cuda" if job.execution.gpus_per_worker > 0 else "cpu"),
        progress=lambda done, total: journal.progress(done, total, "steps", f"fold {fold + 1} of {job.config.folds}"),
    )
    save_file({"logits": torch.from_numpy(fit.logits_NS)}, folder.path / relative / LOGITS)
    files = sorted((folder.path / relative).iterdir())
    for file in files:
        folder.commit(f"{relative}/{file.name}")
    folder.write_json(marker, {"files": {file.name: sha256_file(file) for file in files}, "curve": fit.curve, "deep": fit.deep})
    journal.flush()
    return fit


def _is_whole(store: Store, folder: StageFolder, relative: str, sha256: str) -> bool:
    path = folder.path / relative
    if not path.exists() and path.name in store.list(f"{folder.stage}/{folder.digest}/{relative}".rsplit("/", 1)[0]):
        store.download(f"{folder.stage}/{folder.digest}/{relative}")
    return path.exists() and sha256_file(path) == sha256


def _fit_on_ray(job: FoldJob) -> list[FoldFit]:
    import ray
    from ray.exceptions import RayTaskError

    from tasks.cluster import check_fits, ray_session

    threads = max(1, int(job.execution.cpus_per_worker))

    def with_threads(job: FoldJob, fold: int) -> FoldFit:
        import torch

        torch.set_num_threads(threads)
        return fit_one_fold(job, fold)

    with ray_session():
        check_fits(job.execution)
        # max_retries is about deaths of the process; an exception is not retried.
        remote = ray.remote(with_threads).options(
            num_cpus=job.execution.cpus_per_worker, num_gpus=job.execution.gpus_per_worker, max_retries=job.execution.max_failures
        )
        shared = ray.put(job)
        try:
            return ray.get([remote.remote(shared, fold) for fold in range(job.config.folds)])
        except RayTaskError as error:
            raise error.cause from error


def run(spec: Spec, context: StageContext) -> StageOutput:
    rows = labelled_rows(context.fetch(spec.records), spec.golden_sources)
    decision = decide(spec, context, rows)
    context.log.info("%s: %s", "fit" if decision.keep is None else "keep", decision.reason)
    if decision.keep is None:
        return _fit(spec, context, rows, decision.reason)
    kept = context.result(decision.keep)
    facts = kept["facts"] | {"reused": True, "reason": decision.reason, "seconds_fit": 0.0}
    return StageOutput(rows=kept["rows"], metrics=kept["metrics"] | {"reused": 1.0, "seconds_fit": 0.0}, facts=facts)


def _fit(spec: Spec, context: StageContext, rows: pa.Table, reason: str) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.classifier import GOLDEN, build_tokenizer
    from dora_core.classifier_report import diagnose, prompt_only_logits
    from dora_core.classifier_scaling import fit_scaling
    from dora_core.classifier_scoring import Meta, save_meta
    from dora_core.classifier_unlabelled import golden_share

    started, config = time.monotonic(), spec.classifier
    sources = head_names(rows)
    examples = to_examples(rows, sources, config.folds, config.max_responses_per_source, context.fetch(spec.records))
    tokenizer = build_tokenizer(examples, config)
    job = FoldJob(examples, len(sources), tokenizer, config, spec.execution, context.store.uri, spec.stage, spec.digest())
    in_process = spec.execution.workers == 0
    fits = [fit_one_fold(job, fold) for fold in range(config.folds)] if in_process else _fit_on_ray(job)

    logits = np.zeros((len(examples), len(sources)))
    for fit in fits:
        logits[examples.fold_N == fit.fold] = fit.logits_NS
    golden = examples.head_N == GOLDEN
    scaling = [
        fit_scaling(config.scaling, logits[own, i], golden[own]) for i in range(len(sources)) for own in [golden | (examples.head_N == i)]
    ]
    prompt_only = prompt_only_logits(examples, len(sources), tokenizer, config.folds)
    table, warnings = diagnose(examples, sources, logits, scaling, prompt_only)
    unlabelled = None
    if UNLABELLED in sources:
        own = golden | (examples.head_N == sources.index(UNLABELLED))
        share = golden_share(logits[own, sources.index(UNLABELLED)], golden[own], examples.prompt_hash_N[own])
        unlabelled = share.model_dump()
    for warning in warnings:
        context.log.warning("%s", warning)

    folder = context.path / FOLDER
    gamma = [table[name]["gamma"] for name in sources]
    save_meta(folder, tokenizer, Meta(sources, spec.golden_sources, gamma, scaling, config.folds, config.model_dump(mode="json")))
    pq.write_table(pa.table({"key": rows["key"]}), folder / KEYS, compression="zstd")
    for fold in range(config.folds):  # fitted on another machine: its files are in the store already
        for name in context.store.list(f"{spec.stage}/{spec.digest()}/{FOLDER}/fold-{fold}"):
            context.store.download(f"{spec.stage}/{spec.digest()}/{FOLDER}/fold-{fold}/{name}")

    seconds = time.monotonic() - started
    known = {name: s for name, s in table.items() if s["auc"] is not None}
    metrics = {"responses": len(examples), "reused": 0.0, "seconds_fit": seconds, "warnings": len(warnings)}
    metrics |= {f"auc_{name}": s["auc"] for name, s in known.items()}
    if known:
        metrics |= {f"{key}_mean": float(np.mean([s[key] for s in known.values()])) for key in ("auc", "log_loss", "ece")}
    facts = {
        "classifier": spec.ref().model_dump(),
        "reused": False,
        "reason": reason,
        "seconds_fit": seconds,
        "sources": table,
        "unlabelled": unlabelled,  # golden share among the unlabelled: value, low, high
        "deep_folds": sum(fit.deep for fit in fits),  # folds whose encoder is used
        "warnings": warnings,
        "curve": [point for fit in fits for point in fit.curve],
    }
    return StageOutput(rows=len(examples), metrics=metrics, facts=facts)


if __name__ == "__main__":
    main(Spec, run)
