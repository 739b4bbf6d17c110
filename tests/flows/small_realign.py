"""A realignment with every kind of stage, of which each computes for a second."""

from __future__ import annotations

from pathlib import Path

from flows.config.loading import load_config
from flows.planning.plan import build_plan
from flows.planning.planned_stage import Plan
from infra.store.store import Store

CONFIG = """
project: small
data: {{train: [{{path: {data}}}]}}
text: {{max_prompt_tokens: 32, max_response_tokens: 64}}
policy: {{hidden_size: 32, heads: 2, layers: 1, vocab_size: 320}}
classifier: {{encoder: {{hidden_size: 32, layers: 1, heads: 2, vocab_size: 400}}, epochs: 1, folds: 2}}
sft: {{optimization: {{epochs: {epochs}, batch_size: 8}}}}
align: {{optimization: {{max_steps: 3, batch_size: 8}}}}
evaluate: {{kl_prompts: 2, kl_max_new_tokens: 8, bootstrap_samples: 100, twins: [erm]}}
compare: null
promotion: {{mode: never}}
execution: {{{execution}}}
"""
JOBS = ["classify", "calibrate", "sft", "reference", "training_data", "align", "training_data (erm twin)", "align (erm twin)", "evaluate"]
"""Labels of the stages that run as jobs, of all twelve; they share one, as far as none has workers."""
STAGES = len(JOBS) + 3
FOREVER, SHORT = 1000, 1


def small_realign(data: Path, epochs: int = SHORT, on_ray_train: str | None = None) -> str:
    """Return its configuration.

    Args:
        epochs: of ``sft``; with FOREVER, it does not end while a test waits.
        on_ray_train: a stage that trains in a worker of Ray Train.
    """
    execution = "default: {workers: 0}" + (f", {on_ray_train}: {{workers: 1}}" if on_ray_train else "")
    return CONFIG.format(data=data, epochs=epochs, execution=execution)


def plan_of(folder: Path, config: str, *overrides: str) -> Plan:
    """Plan it with an empty store in ``folder``."""
    (folder / "c.yaml").write_text(config)
    return build_plan(load_config(folder / "c.yaml", overrides), Store(str(folder / "store")))
