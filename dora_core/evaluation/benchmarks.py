"""Benchmarks of ability by lm-eval (Gao et al., github.com/EleutherAI/lm-evaluation-harness), which is an optional dependency.

lm-eval asks and marks; here are its tasks' files, the choice of one score per task, and the *paired* difference of two models, which
answer the same examples: its interval is much narrower than two separate ones. A score is the task's mean of one metric over
examples, in [0, 1] for the preferred ones.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from dora_core.config.benchmarks import BenchmarksConfig, is_file
from dora_core.errors import ConfigError
from dora_core.evaluation.metrics import Interval, cluster_bootstrap
from dora_core.strict_model import StrictModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFERRED = ("acc_norm", "acc", "exact_match", "f1", "mcc", "bleu", "rougeL")
"""Metrics that are a task's score, the first of these that it has; else its first metric of which higher is better."""
SAMPLES, CONFIDENCE = 2000, 0.95

Values = Mapping[str, NDArray[np.float64]]
"""Marks of every example, in the task's order, by task."""


class TaskScore(StrictModel):
    """Score of one task."""

    metric: str
    value: Interval = Field(description="Mean over examples; `n` is their number.")
    others: dict[str, float] = Field(default_factory=dict, description="The task's other metrics.")
    shots: int = Field(description="Examples in the context.")
    version: str = Field("", description="The task's version by its own file.")


def check_installed() -> None:
    """Refuse where lm-eval is not installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "benchmarks needs lm-eval, which is not installed here", hint='run pip install "dora-realign[eval]", or leave out benchmarks'
        )


# ---------------------------------------------------------------------------------------------------------------- files


def task_files(task: str) -> list[Path]:
    """All files that a YAML task depends on: itself, those it includes, modules of its ``!function`` tags, and its data files.

    Raises:
        ConfigError: the file, or one of these, does not exist, or is no task.
    """
    return list(dict.fromkeys(_files(Path(task).expanduser(), task)))


def _files(path: Path, task: str) -> Iterator[Path]:
    content = _read(path, task)
    yield path
    for include in _listed(content.get("include")):
        yield from _files(path.parent / include, task)
    for module in content.get("__modules__", ()):
        yield _existing(path.parent / f"{module}.py", path)
    for name in _data_files(content):
        yield _existing(path.parent / name, path)


def _read(path: Path, task: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"benchmarks.tasks: {task}: no file {path}", hint="give the path of an lm-eval task, or a task's name")
    modules = list[str]()

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        name = loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else ""
        modules.append(str(name).rpartition(".")[0])
        return str(name)

    Loader.add_constructor("!function", function)
    try:
        content = Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"benchmarks.tasks: {path} is not YAML: {error}", hint="see lm-eval's guide to new tasks") from error
    if not isinstance(content, dict) or not (content.get("task") or content.get("group") or path.name != Path(task).name):
        raise ConfigError(f"benchmarks.tasks: {path} has no key `task`", hint="see lm-eval's guide to new tasks")
    return content | ({"__modules__": modules} if modules else {})


def _existing(path: Path, source: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"benchmarks.tasks: {source} names {path}, which does not exist", hint="paths are relative to the YAML file")
    return path


def _data_files(content: Mapping[str, Any]) -> list[str]:
    named = (content.get("dataset_kwargs") or {}).get("data_files") or {}
    return [name for files in (named.values() if isinstance(named, dict) else [named]) for name in _listed(files)]


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _with_places(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A task's configuration with absolute paths of its data files: lm-eval would look for them in the working folder."""
    named = (content.get("dataset_kwargs") or {}).get("data_files")
    if named is None:
        return content

    def placed(files: Any) -> list[str]:
        return [str((folder / name).resolve()) for name in _listed(files)]

    found = {split: placed(files) for split, files in named.items()} if isinstance(named, dict) else placed(named)
    return content | {"dataset_kwargs": content["dataset_kwargs"] | {"data_files": found}}


# ------------------------------------------------------------------------------------------------------------------ run


def run_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: BenchmarksConfig, *, device: torch.device, batch_size: int = 8
) -> tuple[dict[str, TaskScore], dict[str, NDArray[np.float64]]]:
    """Ask ``model`` the tasks.

    Returns:
        scores and the examples' marks, both by task; a group's tasks are listed on their own.

    Raises:
        ConfigError: lm-eval is not installed, does not know a task, or cannot read its data.
    """
    check_installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager(include_defaults=any(not is_file(task) for task in config.tasks))
    wanted: list[Any] = []
    for task in config.tasks:
        path = Path(task).expanduser()
        wanted.append(_with_places(load_yaml(path), path.parent) if is_file(task) else task)
        if not is_file(task) and task not in manager.all_tasks:
            raise ConfigError(
                f"benchmarks.tasks: lm-eval knows no task {task!r}", hint="`lm-eval ls tasks` lists them; a file ends in .yaml"
            )
    served = HFLM(pretrained=model, tokenizer=tokenizer, device=str(device), batch_size=batch_size)
    found = simple_evaluate(
        served,
        tasks=wanted,
        task_manager=manager,
        num_fewshot=config.shots,
        limit=config.limit,
        bootstrap_iters=0,
        apply_chat_template=config.chat_template,
        random_seed=config.seed,
        numpy_random_seed=config.seed,
        torch_random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )
    assert found is not None, "only ranks other than 0 get nothing"
    return read_scores(found, config.seed)


def read_scores(found: Mapping[str, Any], seed: int) -> tuple[dict[str, TaskScore], dict[str, NDArray[np.float64]]]:
    """Scores and marks of each task in the result of ``lm_eval.simple_evaluate`` (with samples)."""
    scores, marks = dict[str, TaskScore](), dict[str, NDArray[np.float64]]()
    for task, samples in found["samples"].items():
        better = found["higher_is_better"][task]
        metric = main_metric(better)
        # An example has one sample per filter of the answer; the score is that of the first filter.
        of_filter = [s for s in samples if s.get("filter") == samples[0].get("filter")]
        marks[task] = np.array([float(s[metric]) for s in sorted(of_filter, key=lambda s: s["doc_id"])])
        others = {name.partition(",")[0]: value for name, value in found["results"][task].items() if isinstance(value, float)}
        others = {name: value for name, value in others.items() if name != metric and not name.endswith("_stderr") and np.isfinite(value)}
        scores[task] = TaskScore(
            metric=metric,
            value=_interval(marks[task], seed),
            others=others,
            shots=int(found["n-shot"].get(task) or 0),
            version=str(found["versions"].get(task) or ""),
        )
    return scores, marks


def main_metric(better: Mapping[str, bool | None]) -> str:
    """The metric that is a task's score: the first of :data:`PREFERRED`, else the first of which higher is better.

    Raises:
        ConfigError: higher is better of none of them.
    """
    higher = [name for name, is_higher in better.items() if is_higher]
    for name in (*PREFERRED, *higher):
        if name in higher:
            return name
    raise ConfigError(
        f"benchmarks: a task has no metric of which higher is better: {', '.join(better) or 'none'}", hint="leave out the task"
    )


def changes(policy: Values, start: Values, seed: int) -> dict[str, Interval]:
    """Mean mark of the policy minus that of the start by task, over the same examples, with paired bootstrap intervals.

    Raises:
        ValueError: a task's examples are not the same in number.
    """
    both: Sequence[str] = [task for task in policy if task in start]
    for task in both:
        if len(policy[task]) != len(start[task]):
            raise ValueError(f"{task}: {len(policy[task])} examples of the policy, {len(start[task])} of the start")
    return {task: _interval(policy[task] - start[task], seed) for task in both}


def _interval(values_E: NDArray[np.float64], seed: int) -> Interval:
    return cluster_bootstrap(values_E, np.arange(len(values_E)), SAMPLES, CONFIDENCE, seed)
