"""Stage ``truth``: exact densities of every response of the known mixture, and the calibration factor that follows from them.

Input: records written by ``dora_core/testbed/mixture.py``, and its configuration. Output: ``truth.parquet`` (record_id, response_index,
split, source, ratio, gold, log_q_<source>…, log_prompt_<source>…) of both splits: the exact p_golden/P, the gold reward, the exact
log-densities of the response and log-ratios p_golden(x)/q_source(x) of the prompt, in nats;
and ``calibration.parquet`` (record_id, response_index, source, h) of the train split, with the factor of perfect classifiers; every reader
of a ``calibrate`` stage's table reads it too.
Guarantee: no classifier and no sampling is involved; other data is refused. Cost: about 0.2 ms per response.
"""

from __future__ import annotations

from typing import Any, ClassVar

from dora_core.config.method import CalibrationConfig, TestbedConfig
from dora_core.errors import DataError
from tasks.runtime.descriptor import Stage
from tasks.runtime.spec import StageRef, StageSpec
from tasks.runtime.stage import StageContext, StageOutput
from tasks.stages._exact_densities_facts import Facts
from tasks.tables.artifacts import CALIBRATION_FILE, RECORDS_FILE, TRUTH_FILE


class Spec(StageSpec):
    """See the module docstring. ``calibration`` gives the treatment of raw factors; its form is not used: the form is the exact ratio."""

    stage: ClassVar[str] = "truth"
    version: ClassVar[int] = 2  # log-ratios of prompts

    records: StageRef
    testbed: TestbedConfig
    calibration: CalibrationConfig


def run(spec: Spec, context: StageContext) -> StageOutput:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dora_core.calibration import calibrate
    from dora_core.data.encoding import plain_prompt
    from dora_core.testbed.mixture import GOLDEN, Testbed

    columns = ["record_id", "prompt", "responses", "sources", "split"]
    records = pq.read_table(context.fetch(spec.records) / RECORDS_FILE, columns=columns).to_pylist()
    testbed = Testbed(spec.testbed)
    prompts = [plain_prompt(record["prompt"]) for record in records]
    testbed.require_prompts(prompts)
    rows: list[dict[str, Any]] = []
    for record, prompt in zip(records, prompts, strict=True):
        for index, (response, source) in enumerate(zip(record["responses"], record["sources"], strict=True)):
            row = {"record_id": record["record_id"], "response_index": index, "split": record["split"], "source": source}
            row |= {"ratio": testbed.true_ratio(prompt, response), "gold": testbed.gold_reward(prompt, response)}
            row |= {f"log_q_{s}": log_q for s, log_q in testbed.log_densities(prompt, response).items()}
            rows.append(row | {f"log_prompt_{s}": testbed.log_prompt_ratio(s, prompt) for s in testbed.sources})
    schema = pa.schema(
        [("record_id", pa.string()), ("response_index", pa.int32()), ("split", pa.string()), ("source", pa.string())]
        + [
            (name, pa.float64())
            for name in ("ratio", "gold", *(f"{kind}_{s}" for kind in ("log_q", "log_prompt") for s in testbed.sources))
        ]
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    ratio = table["ratio"].to_numpy()
    foreign = int(np.isnan(ratio).sum())
    if foreign:
        raise DataError(
            f"{foreign} of {len(ratio)} responses are not of the known mixture's language, so they have no true ratio",
            hint="the records must have been written with this testbed configuration (max_sentences, topics)",
        )
    train = table.filter(pa.array(table["split"].to_numpy() == "train"))
    factors = calibrate(train["ratio"].to_numpy(), spec.calibration)
    factor_table = train.select(["record_id", "response_index", "source"]).append_column("h", pa.array(factors.h))
    pq.write_table(table, context.path / TRUTH_FILE, compression="zstd")
    pq.write_table(factor_table, context.path / CALIBRATION_FILE, compression="zstd")
    metrics = {
        "mean_ratio": ratio.mean(),
        "mean_gold": table["gold"].to_numpy().mean(),
        "mean_log_q_golden": table[f"log_q_{GOLDEN}"].to_numpy().mean(),
        "ess": factors.ess,
        "tau": factors.tau,
        "capped_fraction": factors.capped_fraction,
    }
    return StageOutput(rows=len(table), metrics=metrics, facts=Facts(sources=list(testbed.sources), shares=testbed.shares))


STAGE = Stage(Spec, run, Facts)
