"""Names and schemas of the files that one stage writes and another reads.

Schemas of records, golden rows and quarantine are in ``dora_core/data/records.py``. Functions import pyarrow when they are called, so that
planning does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS_FILE = "records.parquet"
"""``ingest``, ``mix``, ``replay``, ``prompts``: one row per record, its responses as a list."""
GOLDEN_FILE = "golden.parquet"
"""``ingest``, ``mix``, ``replay``: extra golden rows, one response each."""
TRAINING_DATA_FILE = "training_data.arrow"
"""Tokenised records (``dora_core/training/alignment_data.py``): ``training_data`` writes it, training workers map it."""
QUARANTINE_FILE = "quarantine.parquet"
"""``ingest``: bad rows with file, row, field and reason."""
CALIBRATION_FILE = "calibration.parquet"
"""``calibrate``, ``truth``: the calibration factor of every training response."""
TRUST_FILE = "label_trust.parquet"
"""``value``: record_id, label_source, and the probability that the record's label is right, of every train record."""
PROXY_FILE = "proxy.npz"
"""``value``, for ``race``: labels, proxy pairs and trust (``tasks/stages/_value_proxy.py``)."""
FINALISTS = "finalists"
"""``race``: folder with tables of its own for each of the finalists that short trainings compare."""
SUGGESTIONS_FILE = "suggestions.parquet"
"""``suggest``: pairs for people to label, best first, without texts."""
TRUTH_FILE = "truth.parquet"
"""``truth``: exact densities and gold rewards of every response of the known mixture."""
LOGPS_FILE = "logps.parquet"
"""``reference``: :func:`logps_schema`."""
SAMPLES_FILE = "samples.parquet"
"""``generate``, and ``prompts`` for a file of responses: one row per sampled response."""
SCORES_FILE = "scores.parquet"
"""``judge``: record_id, sample, score."""
VOTES_FILE = "votes.parquet"
"""``judge`` with an LLM: both verdicts on every pair."""
LINEAGE_FILE = "lineage.parquet"
"""``mix``: :func:`lineage_schema`."""
COMPARISON_FILE = "comparison.parquet"
"""``compare``: outcomes per record and opponent."""
BENCHMARKS_FILE = "benchmarks.parquet"
"""``benchmarks``: mark of every example of every task."""
EVALUATION_FILE = "evaluation.parquet"
"""``evaluate``: margins of every held-out pair."""
RESPONSES_FILE = "responses.parquet"
"""``evaluate``: log-probabilities of every held-out response."""
CLASSIFIER_FOLDER = "classifier"
"""``classify``: fitted heads by fold, tokenizer, ``meta.json``, and :data:`FITTED_KEYS_FILE`."""
FITTED_KEYS_FILE = "rows.parquet"
"""Within :data:`CLASSIFIER_FOLDER`: keys of the rows there were at the fit."""
GOLDEN_PROMPT = "golden_prompt"
"""Column of scores and of ``calibrate``: log-ratio of the prompt, golden pool against golden responses of the mixture."""
UNLABELLED = "unlabelled"
"""Pseudo-source of responses without a source: a head of ``classify``, columns of ``calibrate``."""


def logps_schema() -> pa.Schema:
    """``logp`` of the reference in nats; ``tokens`` and ``prompt_tokens`` after truncation."""
    import pyarrow as pa

    numbers = [(name, pa.int32()) for name in ("tokens", "prompt_tokens", "truncated")]
    return pa.schema([("record_id", pa.string()), ("response_index", pa.int32()), ("logp", pa.float64()), *numbers])


def lineage_schema() -> pa.Schema:
    """Origin of every sampled response of a mixture; ``policy`` (null: an endpoint's), ``samples`` and ``judge`` are stage digests."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("policy", "samples", "judge")]
    numbers = [("prompt_hash", pa.uint64()), ("sample", pa.int32()), ("score", pa.float64())]
    return pa.schema([("record_id", pa.string()), ("response_index", pa.int32()), ("round", pa.int32()), *texts, *numbers])


def given_samples_schema() -> pa.Schema:
    """Responses of a user's file as samples; ``row`` is the place in the file."""
    import pyarrow as pa

    numbers = [("prompt_hash", pa.uint64()), ("sample", pa.int32())]
    return pa.schema([("row", pa.int64()), ("record_id", pa.string()), *numbers, ("response", pa.string())])
