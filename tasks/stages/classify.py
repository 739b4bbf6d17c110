"""Stage ``classify``: fit the source classifiers, or keep earlier ones if the ``drift`` stage decided so.

Input: the records and extra golden rows of ``ingest``. Output: ``classifier/`` (a folder per fold, tokenizer, ``meta.json``, the
keys of fitted rows), all safetensors, JSON and Parquet; facts alone if an earlier classifier is kept.
``facts.classifier`` names the stage output to score with in either case. Guarantee: fold k's model never saw a prompt of
fold k, and no model saw an evaluation prompt. Cost: K fits, in parallel as Ray tasks; a finished fold is not fitted again after a crash.
Memory: about 50 bytes per training response to choose the rows to fit on; texts of the chosen ones only, at most
``max_responses_per_source`` of each source.

The golden side Q_0 is the pool of all golden sources' training responses and the rows of ``golden.parquet``: h needs one trusted
distribution. Golden sources get no head, their ratio is 1 by definition.

Responses without a source are one more pseudo-source, :data:`UNLABELLED` (rows that name a source of just this name join them). Its head
separates golden from unlabelled, which is positive-unlabelled learning with the golden pool as positives; the golden share a among the
unlabelled is estimated from the out-of-fold logits (``dora_core/classifier/golden_share.py``) and is ``facts.unlabelled``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from dora_core.config.execution import Execution
from dora_core.config.method import ClassifierConfig
from infra.store.store import StageFolder, Store, sha256_file
from tasks.runtime.descriptor import RowCache, Stage, StageResult
from tasks.runtime.spec import NotInDigest, StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.runtime.workers import ModelWorker, WorkerArguments, use_threads
from tasks.stages import _drift_facts
from tasks.stages._classify_facts import CurvePoint, HeadFacts
from tasks.stages._classify_facts import Facts as Facts
from tasks.stages._classify_rows import at_most, head_names, labelled_rows, to_examples
from tasks.tables.artifacts import CLASSIFIER_FOLDER, FITTED_KEYS_FILE, GOLDEN_PROMPT, UNLABELLED

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from dora_core.classifier.fit import FoldFit
    from dora_core.classifier.model import Examples
    from dora_core.classifier.scoring import Meta

FOLDER, KEYS, LOGITS = CLASSIFIER_FOLDER, FITTED_KEYS_FILE, "out_of_fold.safetensors"


class Spec(StageSpec):
    """See the module docstring. Without ``drift`` the classifiers are fitted."""

    stage: ClassVar[str] = "classify"
    version: ClassVar[int] = 5  # the encoder is tried from a number of rows on

    records: StageRef
    classifier: ClassifierConfig
    golden_sources: list[str]
    drift: Annotated[StageRef | None, NotInDigest] = None


# -------------------------------------------------------------------------------------------------------------- scoring


class LogitArguments(WorkerArguments):
    """Arguments of :class:`LogitScorer`: the stage that fitted the classifiers."""

    classifier: StageRef


class LogitScorer(ModelWorker[LogitArguments]):
    """Scores rows (prompt, response, fold, key) with fitted classifiers: (key, logit_<source>…, prompt_<source>…, golden_prompt, tokens,
    padded). A logit is that of prompt and response; without the prompt's log-ratio, that of the response given the prompt."""

    def load(self) -> None:
        from dora_core.classifier.scoring import FittedClassifiers

        classifier = self.arguments.classifier
        folder = Store(self.arguments.store_uri).fetch(classifier.stage, classifier.digest) / FOLDER
        self._fitted = FittedClassifiers(folder, batch_tokens=self.arguments.execution.batch_tokens, device=self.device)
        self.budget = self._fitted.budget

    def __call__(self, rows: pa.Table) -> pa.Table:
        import pyarrow as pa

        scored = self._fitted.score(rows["prompt"].to_pylist(), rows["response"].to_pylist(), rows["fold"].to_numpy())
        columns: dict[str, Any] = {"key": rows["key"]}
        for i, name in enumerate(self._fitted.meta.sources):
            columns |= {f"logit_{name}": pa.array(scored.logits_NS[:, i]), f"prompt_{name}": pa.array(scored.prompt_NC[:, i + 1])}
        columns[GOLDEN_PROMPT] = pa.array(scored.prompt_NC[:, 0])
        return pa.table(columns | {"tokens": pa.array(scored.tokens_N), "padded": pa.array(scored.padded_N)})


# ------------------------------------------------------------------------------------------------------------------ fit


@dataclass(frozen=True)
class FoldJob:
    """Input of one fold's fit, as plain data; see ``dora_core.classifier.fit.fit_fold``."""

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

    from dora_core.classifier.fit import FoldFit, fit_fold
    from infra.store.journal import JournalWriter

    store = Store(job.store_uri)
    folder, relative, marker = store.folder(job.stage, job.digest), f"{FOLDER}/fold-{fold}", f"scratch/fold-{fold}.json"
    done = store.read_json(f"{job.stage}/{job.digest}/{marker}")
    if done is not None and all(_is_whole(store, folder, f"{relative}/{name}", sha256) for name, sha256 in done["files"].items()):
        held = load_file(folder.path / relative / LOGITS)
        return FoldFit(fold, held["logits"].numpy(), held["prompt"].numpy(), done["curve"], done["deep"])
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
    held = {"logits": torch.from_numpy(fit.logits_NS), "prompt": torch.from_numpy(fit.prompt_NC)}
    save_file(held, folder.path / relative / LOGITS)
    files = sorted((folder.path / relative).iterdir())
    for file in files:
        folder.commit(f"{relative}/{file.name}")
    folder.write_json(marker, {"files": {file.name: sha256_file(file) for file in files}, "curve": fit.curve, "deep": fit.deep})
    journal.flush()
    return fit


def _is_whole(store: Store, folder: StageFolder, relative: str, sha256: str) -> bool:
    path = folder.path / relative
    if not path.exists() and store.has(f"{folder.stage}/{folder.digest}/{relative}"):
        store.download(f"{folder.stage}/{folder.digest}/{relative}")
    return path.exists() and sha256_file(path) == sha256


def _fit_on_ray(job: FoldJob) -> list[FoldFit]:
    import ray
    from ray.exceptions import RayTaskError

    from tasks.runtime.cluster import check_fits, ray_session

    def with_threads(job: FoldJob, fold: int) -> FoldFit:
        use_threads(job.execution)
        return fit_one_fold(job, fold)

    with ray_session():
        check_fits(job.execution)
        # max_retries applies to worker failures; an exception is not retried.
        remote = ray.remote(with_threads).options(
            num_cpus=job.execution.cpus_per_worker, num_gpus=job.execution.gpus_per_worker, max_retries=job.execution.max_failures
        )
        shared = ray.put(job)
        try:
            fits: list[FoldFit] = ray.get([remote.remote(shared, fold) for fold in range(job.config.folds)])
            return fits
        except RayTaskError as error:
            raise error.cause from error


def to_keep(spec: Spec, context: StageContext) -> tuple[StageRef | None, str]:
    """The stage whose classifiers the drift stage keeps (None: fit), and the reason."""
    if spec.drift is None:
        return None, "fitted for this data"
    facts = context.facts(spec.drift, _drift_facts.Facts)
    keep = facts.keep
    if keep is None:
        return None, facts.reason
    if not context.store.is_done(keep.stage, keep.digest):
        return None, f"the classifier to keep, {keep.digest[:12]}, is no longer in the store"
    return keep, facts.reason


def run(spec: Spec, context: StageContext) -> StageOutput:
    keep, reason = to_keep(spec, context)
    context.log.info("%s: %s", "fit" if keep is None else "keep", reason)
    if keep is None:
        return _fit(spec, context, reason)
    kept = StageResult.parse(context.result(keep), Facts)
    facts = kept.facts.evolve(reused=True, reason=reason, seconds_fit=0.0)
    return StageOutput(rows=kept.rows, metrics=kept.metrics | {"reused": 1.0, "seconds_fit": 0.0}, facts=facts)


def _fit(spec: Spec, context: StageContext, reason: str) -> StageOutput:
    import numpy as np

    from dora_core.classifier.diagnostics import diagnose
    from dora_core.classifier.golden_share import golden_share
    from dora_core.classifier.model import GOLDEN, build_tokenizer
    from dora_core.classifier.prompt import PromptCounts
    from dora_core.classifier.scaling import fit_scaling, overlap_weights
    from dora_core.classifier.scoring import Meta

    started, config, records = time.monotonic(), spec.classifier, context.fetch(spec.records)
    rows = labelled_rows(records, spec.golden_sources)
    sources = head_names(rows)
    examples = to_examples(at_most(config.max_responses_per_source, rows, sources), sources, config.folds, records)
    tokenizer = build_tokenizer(examples, config)
    job = FoldJob(examples, len(sources), tokenizer, config, spec.execution, context.store.uri, spec.stage, spec.digest())
    in_process = spec.execution.workers == 0
    fits = [fit_one_fold(job, fold) for fold in range(config.folds)] if in_process else _fit_on_ray(job)

    logits, prompt = np.zeros((len(examples), len(sources))), np.zeros((len(examples), 1 + len(sources)))
    for fit in fits:
        logits[examples.fold_N == fit.fold], prompt[examples.fold_N == fit.fold] = fit.logits_NS, fit.prompt_NC
    counts = PromptCounts.of(examples.prompts, *examples.prompt_targets(len(sources)), np.zeros(len(examples), np.int64))
    slopes = counts.slopes_of_rows(prompt)
    golden, shrunk = examples.head_N == GOLDEN, prompt * slopes
    scaling = [
        fit_scaling(config.scaling, logits[own, i], golden[own], overlap_weights(shrunk[own, i + 1], golden[own]))
        for i in range(len(sources))
        for own in [golden | (examples.head_N == i)]
    ]
    table, warnings = diagnose(examples, sources, logits, scaling, prompt, slopes)
    unlabelled = None
    if UNLABELLED in sources:
        head = sources.index(UNLABELLED)
        own = golden | (examples.head_N == head)
        unlabelled = golden_share((logits[:, head] + shrunk[:, head + 1])[own], golden[own], examples.prompt_hash_N[own])
    for warning in warnings:
        context.log.warning("%s", warning)

    heads = {name: HeadFacts.model_validate(table[name]) for name in sources}
    gamma = [head.gamma for head in heads.values()]
    meta = Meta(sources, spec.golden_sources, gamma, scaling, config.folds, config.model_dump(mode="json"), slopes.tolist())
    _save(context, tokenizer, meta, rows)

    seconds = time.monotonic() - started
    known = {name: head.auc for name, head in heads.items() if head.auc is not None}
    metrics = {"responses": len(examples), "reused": 0.0, "seconds_fit": seconds, "warnings": len(warnings)}
    metrics |= {f"auc_{name}": auc for name, auc in known.items()}
    if known:
        metrics |= {f"{key}_mean": float(np.mean([getattr(heads[name], key) for name in known])) for key in ("auc", "log_loss", "ece")}
    facts = Facts(
        classifier=spec.ref(),
        reused=False,
        reason=reason,
        seconds_fit=seconds,
        sources=heads,
        unlabelled=unlabelled,
        deep_folds=sum(fit.deep for fit in fits),
        encoder=_encoder_in_words(config, fits, len(examples)),
        warnings=warnings,
        curve=[CurvePoint.model_validate(point) for fit in fits for point in fit.curve],
    )
    return StageOutput(rows=len(examples), metrics=metrics, facts=facts)


def _encoder_in_words(config: ClassifierConfig, fits: list[FoldFit], rows: int) -> str:
    if any(point["step"] > 0 for fit in fits for point in fit.curve):
        kept = sum(fit.deep for fit in fits)
        return f"the encoder lowers the log-loss of validation prompts in {kept} of {config.folds} folds, and is used there"
    if config.deep == "never":
        return "no encoder, by classifier.deep: never"
    fitting = rows * (config.folds - 1) // config.folds
    if config.tries_encoder(fitting):
        return "the encoder was not tried: too few prompts to check whether it helps"
    return f"the encoder was not tried: a fold is fitted to about {fitting} responses, fewer than classifier.deep_from = {config.deep_from}"


def _save(context: StageContext, tokenizer: PreTrainedTokenizerBase, meta: Meta, rows: pa.Table) -> None:
    """Write what all folds share, and fetch the files of folds that were fitted on another machine: the store has them already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.classifier.scoring import save_meta

    folder, stage = context.path / FOLDER, context.folder
    save_meta(folder, tokenizer, meta)
    pq.write_table(pa.table({"key": rows["key"]}), folder / KEYS, compression="zstd")
    if context.store.remote is None:
        return
    for fold in range(meta.folds):  # fitted on other machines; a listing may lag behind the marker
        marker = context.store.read_json(f"{stage.stage}/{stage.digest}/scratch/fold-{fold}.json")
        assert marker is not None, f"fold {fold} was fitted without its marker"
        for name in marker["files"]:
            context.store.download(f"{stage.stage}/{stage.digest}/{FOLDER}/fold-{fold}/{name}")


def headline(result: StageResult[Facts]) -> str:
    facts = result.facts
    if facts.reused:
        return "previous classifier still fits"
    known = [f"{name} {head.auc:.2f}" for name, head in facts.sources.items() if head.auc is not None]
    return f"AUC {', '.join(known[:4])}{' …' if len(known) > 4 else ''}" if known else "no AUC: too few held-out responses"


STAGE = Stage(
    Spec,
    run,
    Facts,
    headline=headline,
    keeps=("classifier",),
    row_cache=RowCache("scores", lambda spec, digest: digest),
    section="stage",
    unplanned="Not part of this run: the {objective} objective does not use calibration factors.",
)
