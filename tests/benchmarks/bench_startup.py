"""Start-up costs: a command, one Ray job phase by phase, and a chain of small stages as separate jobs or in one job.

Commands run in fresh interpreters. A job's phases are marks that its stage writes: the driver alone; with torch and
transformers imported; with two actors; with a Ray Train run of two workers. The chain is a whole realignment of 40 prompts, so
small that its computation is negligible: each stage a job with two workers, each a job without workers, all in one shared job.

    python -m tests.benchmarks.bench_startup [--repetitions 3] [--only commands job chain] [--save FILE]
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from dora_core.config.method import TestbedConfig
from dora_core.testbed.mixture import Testbed
from flows.config.models import RealignConfig
from flows.planning.plan import build_plan
from flows.planning.planned_stage import Plan
from flows.running.shared_job import SharedJob
from infra.ray_head import RayHead
from infra.ray_jobs import RayJobs
from infra.store.store import Store
from tasks.runtime.stage import StageSpec, execute, write_spec
from tasks.stages import drift, ingest
from tests.benchmarks.harness import Row, argument_parser, best_of, report

PROBE = """
import time
began = time.time()
from tasks.runtime.stage import StageOutput, StageSpec

class Spec(StageSpec):
    stage = "probe"
    does: str
    turn: int

def run(spec, context):
    marks = [("interpreter, supervisor", began), ("our imports", time.time())]
    if spec.does == "torch":
        from transformers import AutoModelForCausalLM
        mark(marks, "torch, transformers")
    if spec.does in ("actors", "train"):
        from tasks.runtime.cluster import ray_session
        with ray_session():
            mark(marks, "Ray connected")
            (actors if spec.does == "actors" else train)(context, marks)
        mark(marks, "Ray disconnected")
    return StageOutput(rows=1, facts=AnyFacts(marks=marks))

def mark(marks, name):
    marks.append((name, time.time()))

def actors(context, marks):
    import ray

    class Actor:
        def ready(self): ...
        def load(self):
            from transformers import AutoModelForCausalLM

    two = [ray.remote(Actor).options(num_cpus=1).remote() for _ in range(2)]
    ray.get([actor.ready.remote() for actor in two])
    mark(marks, "2 actors started")
    ray.get([actor.load.remote() for actor in two])
    mark(marks, "torch in 2 actors")

def train(context, marks):
    import os
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    mark(marks, "ray.train imported")
    entered = str(context.path / "entered")

    def loop(config):
        import time
        with open(config["entered"], "w") as file:
            file.write(str(time.time()))

    TorchTrainer(
        loop, train_loop_config={"entered": entered}, torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=f"bench-{time.time()}", storage_path=str(context.scratch)),
    ).fit()
    marks.append(("2 training workers started", float(open(entered).read())))
    mark(marks, "Ray Train ended")
"""

ENTRY_POINT = """
from startup_probes.probe import Spec, run
from tasks.runtime.stage import main

main({"probe": (Spec, run)})
"""
PHASES = ("alone", "torch", "actors", "train")
CHAIN = {
    "project": "startup",
    "text": {"max_prompt_tokens": 32, "max_response_tokens": 64},
    "policy": {"hidden_size": 32, "heads": 2, "layers": 1, "vocab_size": 320},
    "classifier": {"encoder": {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 400}, "epochs": 1, "folds": 2},
    "sft": {"optimization": {"max_steps": 3, "batch_size": 8}},
    "align": {"optimization": {"max_steps": 3, "batch_size": 8}},
    "evaluate": {"kl_prompts": 2, "kl_max_new_tokens": 8, "bootstrap_samples": 100, "twins": ["erm"]},
    "compare": None,
}


# ------------------------------------------------------------------------------------------------------------- commands


def commands(folder: Path, repetitions: int) -> list[Row]:
    data = Testbed(TestbedConfig()).write(folder / "data.parquet")
    config = folder / "c.yaml"
    config.write_text(yaml.safe_dump({"data": {"train": [{"path": str(data)}]}}))
    environment = dict(os.environ) | {"DORA_HOME": str(folder / "home")}

    def fresh(code: str, *arguments: str) -> Callable[[], object]:
        line = [sys.executable, "-c", code, *arguments]
        return lambda: subprocess.run(line, env=environment, check=True, capture_output=True)

    dora = "from flows.cli import main; main()"
    seconds = best_of(
        {
            "an empty interpreter": fresh("pass"),
            "import torch": fresh("import torch"),
            "import prefect": fresh("import prefect.flows"),
            "dora --help": fresh(dora, "--help"),
            "dora realign --help": fresh(dora, "realign", "--help"),
            "dora realign --dry-run": fresh(dora, "realign", "-c", str(config), "--dry-run"),
        },
        repetitions,
    )
    targets = {"dora --help": 0.4, "dora realign --help": 0.4, "dora realign --dry-run": 1.5}
    floor = f"an interpreter alone: {seconds['an empty interpreter']:.2f} s"
    return [
        Row(name, f"{s:.2f} s", f"< {targets[name]} s" if name in targets else "", s < targets[name] if name in targets else None, floor)
        for name, s in seconds.items()
    ]


# -------------------------------------------------------------------------------------------------------------- one job


def one_job(head: RayHead, folder: Path, repetitions: int) -> list[Row]:
    from startup_probes.probe import Spec

    store, jobs, rows = Store(str(folder / "probes")), RayJobs(head.dashboard_url, head.environment(), entry_point="startup_probes"), []
    for does in PHASES:
        best: list[tuple[str, float]] = []
        for turn in range(repetitions):
            spec = Spec(does=does, turn=turn)
            uri, began = write_spec(spec, store), time.time()
            run_job(jobs, spec, uri, store)
            ended = time.time()
            result = store.read_result("probe", spec.digest())
            assert result is not None
            marks = [("", began), *result["facts"]["marks"], ("process ended and noticed", ended)]
            if not best or ended - began < best[-1][1] - best[0][1]:
                best = marks
        steps = [f"{name} {after - before:.2f}" for (_, before), (name, after) in itertools.pairwise(best)]
        rows.append(Row(f"a job, {does}", f"{best[-1][1] - best[0][1]:.2f} s", limit=" · ".join(steps)))
    return rows


def run_job(jobs: RayJobs, spec: StageSpec, uri: str, store: Store) -> None:
    jobs.run(stage=spec.stage, digest=spec.digest(), spec_uri=uri, is_done=lambda: spec.is_done(store))


# ------------------------------------------------------------------------------------------------- a chain of small stages


def chain(head: RayHead, folder: Path) -> list[Row]:
    data = Testbed(TestbedConfig(prompts=40, responses_per_prompt=3)).write(folder / "small.parquet")
    jobs = RayJobs(head.dashboard_url, head.environment())
    seconds: dict[str, float] = {}
    computing: dict[str, float] = {}

    def planned(workers: int, name: str) -> tuple[Plan, Store]:
        config = RealignConfig(data={"train": [{"path": str(data)}]}, execution={"default": {"workers": workers}}, **CHAIN)
        store = Store(str(folder / name))
        plan = build_plan(config, store, until="evaluate")
        execute(plan.stages[0].spec, ingest.run, store)
        execute(plan.stages[1].spec, drift.run, store)
        return plan, store

    for workers, name in ((2, "a job each, 2 workers"), (0, "a job each, no workers"), (0, "one shared job")):
        plan, store = planned(workers, name.replace(" ", "-"))
        stages, began = plan.to_run[2:], time.time()
        if name == "one shared job":
            shared = SharedJob(stages, store, lambda: jobs)
            for stage in stages:
                shared.run(stage, on_log=lambda line: None, on_submitted=lambda submission_id: None)
        else:
            for stage in stages:
                run_job(jobs, stage.spec, write_spec(stage.spec, store), store)
        seconds[name] = time.time() - began
        computing[name] = sum(store.read_result(s.stage, s.digest)["seconds"] for s in stages)
        if name == "one shared job":
            shared.close()
    shared_seconds = seconds["one shared job"]
    return [
        Row(
            f"{len(stages)} small stages, {name}",
            f"{s:.1f} s ({s / shared_seconds:.1f} × shared)",
            limit=f"{computing[name]:.1f} s within the stages, {s - computing[name]:.1f} s around them",
        )
        for name, s in seconds.items()
    ]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=["commands", "job", "chain"], default=["commands", "job", "chain"])
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "startup_probes").mkdir()
        (folder / "startup_probes" / "__init__.py").touch()
        (folder / "startup_probes" / "__main__.py").write_text(ENTRY_POINT)
        (folder / "startup_probes" / "probe.py").write_text(PROBE)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))  # jobs inherit the head's
        if "commands" in options.only:
            rows += commands(folder, options.repetitions)
        if {"job", "chain"} & set(options.only):
            began = time.time()
            with RayHead.start(folder / "head", num_cpus=2) as head:
                rows.append(
                    Row("a Ray head of our own", f"{time.time() - began:.1f} s", limit="in the background, while Prefect's API starts")
                )
                rows += one_job(head, folder, options.repetitions) if "job" in options.only else []
                rows += chain(head, folder) if "chain" in options.only else []
    report("Start-up", rows, options.save)


if __name__ == "__main__":
    main()
