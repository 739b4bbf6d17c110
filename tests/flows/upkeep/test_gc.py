"""`dora gc`: what is needed stays, whatever it was made from stays with it, and all else goes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dora_core.config.execution import Execution
from dora_core.config.judging import GoldJudge
from dora_core.config.method import ModelConfig, TestbedConfig, TextConfig
from dora_core.errors import ConfigError, ServiceError, StoreError
from dora_core.testbed.mixture import Testbed
from flows.cli import app
from flows.cli.files.settings import data_source
from flows.cli.files.stages import FileStages
from flows.cli.output import Out
from flows.config.models import RealignConfig
from flows.planning.latest import write_latest
from flows.planning.plan import build_plan
from flows.planning.planned_stage import Plan
from flows.run_record import read_records
from flows.running.manifest import FlowRun, Manifest
from flows.upkeep import gc
from infra.settings import Settings
from infra.store.deletion import TRASH, files_below
from infra.store.store import RESULT, SPEC, Store, sha256_of
from infra.tracking import model_registry as registry
from infra.tracking.outbox import Curves, Outbox
from tasks.runtime.stage import StageRef, execute
from tasks.stages import judge, prompts, reference
from tasks.stages.registry import STAGES
from tests.flows.killed_runs import process
from tests.s3_proxy import s3_proxy
from tests.s3_server import BUCKET, S3Server, s3_server

DAY = 86_400.0


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "DORA_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    return Settings()


@pytest.fixture
def store(place: Settings) -> Store:
    return Store(place.store_uri)


def ref(stage: str, name: str) -> StageRef:
    return StageRef(stage=stage, digest=sha256_of([stage, name]))


def at(stage: StageRef) -> str:
    return f"{stage.stage}/{stage.digest}"


def made(store: Store, stage: str, name: str, *inputs: StageRef, days: float = 30, facts: dict[str, Any] | None = None) -> StageRef:
    """A finished stage, made from ``inputs`` so many days ago."""
    new = ref(stage, name)
    folder = store.folder(stage, new.digest)
    (folder.path / "output.bin").write_bytes(b"x" * 1000)
    spec = {"stage": stage, "nested": [{"from": each.model_dump()} for each in inputs]}
    store.mark_done(folder, {"stage": stage, "digest": new.digest, "spec": spec, "facts": facts or {}, "seconds": 1.0})
    age(folder.path, days)
    return new


def begun(store: Store, stage: str, name: str, *inputs: StageRef, days: float = 30, files: tuple[str, ...] = ("scratch/x",)) -> StageRef:
    """An unfinished stage."""
    new = ref(stage, name)
    folder = store.folder(stage, new.digest)
    folder.write_json(SPEC, {"inputs": [each.model_dump() for each in inputs]})
    for file in files:
        (folder.path / file).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / file).write_bytes(b"x" * 1000)
    age(folder.path, days)
    return new


def age(folder: Path, days: float) -> None:
    then = time.time() - days * DAY
    for file in folder.rglob("*"):
        os.utime(file, (then, then))


def ran(store: Store, run_id: str, *stages: StageRef, status: str = "completed", days: float = 30, **facts: Any) -> None:
    """A manifest."""
    ended = time.time() - days * DAY
    entries = [{"stage": each.stage, "label": each.stage, "digest": each.digest, "submission_id": None} for each in stages]
    content = {"run_id": run_id, "project": "p", "flow": "realign", "flow_run_id": f"flow-run-{run_id}", "status": status}
    times = {"started": ended, "finished": None if status in ("running", "waiting") else ended}
    store.write_json(f"runs/{run_id}/run.json", content | times | {"stages": entries} | facts)


def collect(place: Settings, *, delete: bool = True, older_than: float = 7 * DAY, keep_runs: int = 1, **more: Any) -> gc.Collected:
    return gc.collect(place, place.effective(), delete=delete, older_than=older_than, keep_runs=keep_runs, **more)


def there(store: Store) -> set[str]:
    """Places with a result, or with work in progress."""
    return {f"{stage}/{digest}" for stage in store.list("") if stage not in ("runs", "projects") for digest in store.list(stage)}


# ------------------------------------------------------------------------------------------------------------ what stays


def test_a_journal_that_waits_for_mlflow_stays_until_it_is_sent(place: Settings, store: Store) -> None:
    """The outbox names its parts and holds no copy; what the stage was made from may go."""
    data = made(store, "ingest", "data")
    waits = made(store, "align", "waits", data)
    part = f"{at(waits)}/journal/00-1-000000.jsonl"
    outbox = Outbox.create(place.outbox, "key")
    sent = outbox.append(Curves(run="a", time=1.0, store=store.uri, part=part))
    elsewhere = outbox.append(Curves(run="a", time=1.0, store="s3://other", part=f"{at(data)}/journal/00-1-000000.jsonl"))
    done = collect(place)
    assert there(store) == {at(waits)} and done.kept == {at(waits): "its curves wait for MLflow"}
    for seq in (sent, elsewhere):
        outbox.acknowledge(seq)
    outbox.close()
    collect(place)
    assert there(store) == set()


def test_the_newest_run_stays_with_what_it_was_made_from_and_an_older_one_goes(place: Settings, store: Store) -> None:
    shared, old_data, new_data = (made(store, "ingest", name) for name in ("shared", "old", "new"))
    old, new = made(store, "align", "old", old_data, shared), made(store, "align", "new", new_data, shared)
    ran(store, "p-1", old, days=40)
    ran(store, "p-2", new, days=30)
    looked = collect(place, delete=False)
    assert there(store) == {at(each) for each in (shared, old_data, new_data, old, new)}, "a dry run deletes nothing"
    assert set(looked.removed) == {at(old), at(old_data)} and looked.runs == ["p-1"]
    assert looked.kept[at(shared)] == "the newest runs of p" and "`dora gc --delete` does it" in looked.summary()

    done = collect(place)
    assert there(store) == {at(each) for each in (shared, new_data, new)} and store.list("runs") == ["p-2"]
    assert (done.removed, done.freed_bytes, done.problems) == (looked.removed, looked.freed_bytes, [])
    assert looked.freed_bytes > 2000 and looked.stages["align"].removed == 1
    assert collect(place).summary().startswith("nothing to collect")


def test_training_data_goes_once_its_policy_is_trained_and_no_run_is_kept_for_it(place: Settings, store: Store) -> None:
    """The policy's result does not refer to it; a kept run does, so that its successor with another λ finds it."""
    records = made(store, "ingest", "records")
    data, policy = made(store, "training_data", "data", records), made(store, "align", "policy", records)
    ran(store, "p-1", records, data, policy, days=40)
    collect(place)
    assert there(store) == {at(records), at(data), at(policy)}
    ran(store, "p-2", records, policy, days=30)
    assert collect(place).removed == [at(data)]
    assert there(store) == {at(records), at(policy)} and store.is_done("align", policy.digest)


RUNS = [
    ("it runs", {"status": "running"}, "p-1 is running"),
    ("it waits for a person", {"status": "waiting"}, "p-1 is waiting for a decision"),
    ("another kind of run", {"flow": "study"}, "the newest runs of p"),
    ("another project's", {"project": "q"}, "the newest runs of q"),
    ("it failed yesterday", {"status": "failed", "days": 1}, "the last runs of p"),
    ("it failed a month ago", {"status": "failed"}, None),
    ("it is over, and not the newest", {}, None),
]


@pytest.mark.parametrize(("facts", "why"), [case[1:] for case in RUNS], ids=[case[0] for case in RUNS])
def test_which_runs_stay(place: Settings, store: Store, facts: dict[str, Any], why: str | None) -> None:
    data = made(store, "ingest", "old", days=60)
    old = made(store, "align", "old", data, days=60)
    unfinished = begun(store, "evaluate", "old", old)
    ran(store, "p-1", old, unfinished, **({"days": 50} | facts))
    ran(store, "p-2", made(store, "evaluate", "new"), days=30)
    done = collect(place)
    assert [done.kept.get(at(each)) for each in (data, old, unfinished)] == [why] * 3
    assert ("p-1" in store.list("runs")) == (why is not None)
    assert store.is_done("align", old.digest) == (why is not None)


def test_the_next_plan_finds_what_it_looks_back_at(place: Settings, store: Store) -> None:
    """The last run of a project, also of stages that its newest one did not reach, and a classifier kept since long ago."""
    first = made(store, "classify", "first", days=90)
    kept = made(store, "classify", "kept", days=60, facts={"classifier": first.model_dump()})
    latest = {"classify": {"digest": kept.digest, "payload": {"stage": "classify"}, "run_id": "p-1"}}
    store.write_json("projects/p/latest.json", {"run_id": "p-1", "plan": latest})
    for digest in (first.digest, sha256_of("of a classifier that is gone")):
        Path(store.local(f"scores/{digest}")).mkdir(parents=True)
        (store.local(f"scores/{digest}") / "part.parquet").write_bytes(b"x")
    age(store.local("scores"), 60)
    collect(place)
    assert there(store) == {at(first), at(kept), f"scores/{first.digest}"}


def test_the_row_cache_of_log_probabilities_belongs_to_its_model(place: Settings, store: Store) -> None:
    start, data = made(store, "sft", "start"), made(store, "ingest", "data")
    spec = reference.Spec(records=data, start=start, model=ModelConfig(), text=TextConfig())
    folder = store.folder("reference", spec.digest())
    store.mark_done(folder, {"stage": "reference", "digest": spec.digest(), "spec": spec.payload(), "facts": {}})
    ran(store, "p-1", spec.ref())
    for digest in (reference.row_cache_digest(spec), "d" * 64):
        store.local(f"logps/{digest}").mkdir(parents=True)
        (store.local(f"logps/{digest}") / "part.parquet").write_bytes(b"x")
    age(store.local_root, 30)
    assert collect(place).removed == [f"logps/{'d' * 64}"]
    assert there(store) == {at(start), at(data), at(spec.ref()), f"logps/{reference.row_cache_digest(spec)}"}


def test_unfinished_work_stays_while_it_may_be_somebodys(place: Settings, store: Store) -> None:
    samples = made(store, "generate", "samples")
    now = begun(store, "judge", "now", samples, days=0.01)
    answers = begun(store, "judge", "paid", files=("scratch/answers/1.jsonl",))
    gone = begun(store, "align", "abandoned", files=("scratch/checkpoints/1/model.safetensors",))
    done = collect(place, older_than=0.0)
    assert there(store) == {at(samples), at(now), at(answers)} and done.removed == [at(gone)]
    assert done.kept[at(samples)] == "unfinished, written lately"


def test_leftovers_of_killed_processes_go_and_foreign_folders_stay(place: Settings, store: Store) -> None:
    kept = made(store, "align", "kept")
    folder = store.local(at(kept))
    (folder / "scratch").mkdir()
    (folder / "scratch" / "shard.parquet").write_bytes(b"x" * 500)
    (folder / f".{RESULT}.1-2.tmp").write_bytes(b"x")
    ran(store, "p-1", kept)
    (store.local("runs/p-1") / ".run.json.1-2.tmp").write_bytes(b"x")
    trash = store.local(f"align/.{'b' * 64}{TRASH}")
    trash.mkdir()
    (trash / "output.bin").write_bytes(b"x")
    age(store.local_root, 30)
    fresh = folder / ".fresh.1-2.tmp"
    fresh.write_bytes(b"x")
    foreign = store.local(f"photos/{'a' * 64}/me.jpg")
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"x")
    done = collect(place)
    assert len(done.leftovers) == 3 and not trash.exists()
    assert {file.name for file in files_below(store, at(kept))} == {"output.bin", RESULT, fresh.name, "scratch/shard.parquet"}
    assert store.is_done("align", kept.digest) and foreign.exists()
    os.utime(fresh, (0, 0))
    assert len(collect(place).leftovers) == 2, "nobody works in this folder any more"
    assert {file.name for file in files_below(store, at(kept))} == {"output.bin", RESULT}


@pytest.mark.fault(7)
def test_what_a_killed_collection_was_about_to_delete_is_no_run_and_goes(place: Settings, store: Store) -> None:
    """A manifest halfway out looked like a run that has just begun: what it names, and every row cache, stayed for ever."""
    kept, gone = made(store, "align", "kept"), made(store, "align", "gone")
    ran(store, "p-2", kept, days=29)
    ran(store, "p-1", gone)
    cache = store.local(f"scores/{'c' * 64}")
    cache.mkdir(parents=True)
    (cache / "part.parquet").write_bytes(b"x")
    manifest, scratch = store.local(f"runs/.p-1{TRASH}"), store.local(f"{at(kept)}/.scratch{TRASH}")
    store.local("runs/p-1").rename(manifest)
    scratch.mkdir()
    (scratch / "shard.parquet").write_bytes(b"x")
    age(store.local_root, 30)
    assert [each.run_id for each in read_records(store)] == ["p-2"]
    collect(place)
    assert there(store) == {at(kept)} and not manifest.exists() and not scratch.exists()


@given(st.data())
@settings(max_examples=40)
def test_what_is_reachable_from_what_is_kept_stays_and_nothing_else(data: st.DataObject) -> None:
    """Random stores against the definition."""
    with tempfile.TemporaryDirectory() as folder:
        store, inputs, finished, days = Store(f"{folder}/store"), dict[str, list[str]](), dict[str, bool](), dict[str, int]()
        refs: list[StageRef] = []
        for number in range(data.draw(st.integers(1, 10))):
            sources = data.draw(st.lists(st.sampled_from(refs), unique=True, max_size=3)) if refs else []
            is_finished, age_days = data.draw(st.booleans()), data.draw(st.sampled_from([1, 30]))
            new = (made if is_finished else begun)(store, "align", str(number), *sources, days=age_days)
            refs.append(new)
            inputs[at(new)], finished[at(new)], days[at(new)] = [at(each) for each in sources], is_finished, age_days
        needed_places = {place for place in inputs if days[place] == 1}
        completed = 0
        for number in range(data.draw(st.integers(0, 4))):  # the newest first
            stages = data.draw(st.lists(st.sampled_from(refs), unique=True, min_size=1, max_size=3))
            status = data.draw(st.sampled_from(["completed", "running", "waiting", "failed"]))
            ran(store, f"p-{number}", *stages, status=status, days=20 + number)
            completed += status == "completed"
            if status in ("running", "waiting") or (status == "completed" and completed == 1):
                needed_places |= {at(each) for each in stages}
        todo = list(needed_places)
        while todo:
            new_places = set(inputs[todo.pop()]) - needed_places
            needed_places |= new_places
            todo += new_places
        place = Settings(home=Path(folder))
        before = {place: {f.name for f in files_below(store, place)} for place in needed_places}
        done = collect(place)
        assert there(store) == needed_places == done.kept.keys() and set(done.removed) == inputs.keys() - needed_places
        assert {place: {f.name for f in files_below(store, place)} for place in needed_places} == before
        assert all(store.is_done(*place.split("/")) == finished[place] for place in needed_places)


# ---------------------------------------------------------------------------------------------------- registered models


def promoted(store: Store, name: str, *inputs: StageRef) -> tuple[StageRef, StageRef, StageRef]:
    """Policy, evaluation and decision of an old run."""
    policy = made(store, "align", name, *inputs)
    evaluation = made(store, "evaluate", name, policy)
    decision = made(store, "promote", name, facts={"decision": "promoted"})
    result = store.read_result("promote", decision.digest)
    store.write_json(f"{at(decision)}/{RESULT}", result | {"spec": {"evaluation": evaluation.model_dump(), "policy": policy.model_dump()}})
    age(store.local(at(decision)), 30)
    return policy, evaluation, decision


def test_registered_models_stay_and_what_the_aliases_were_made_from(place: Settings, store: Store, mlflow_sqlite: str) -> None:
    place = place.model_copy(update={"mlflow_uri": mlflow_sqlite})
    data = [made(store, "ingest", str(number)) for number in range(4)]
    models = [promoted(store, str(number), data[number]) for number in range(4)]
    for number, (policy, evaluation, _) in enumerate(models[:3]):  # the fourth was never registered
        tags = {"dora.stage": policy.stage, "dora.digest": policy.digest, "dora.evaluation": evaluation.digest}
        version = registry.register(mlflow_sqlite, "demo", f"{store.uri}/{at(policy)}/model", tags=tags)
        ran(store, f"p-{number}", policy, evaluation, status="failed")
        if number:
            registry.promote(mlflow_sqlite, "demo", version)
    done = collect(place)
    assert done.kept[at(models[2][0])] == "champion of demo" and done.kept[at(models[1][0])] == "previous of demo"
    assert done.kept[at(models[0][0])] == done.kept[at(models[0][1])] == "registered versions of demo"
    assert set(done.removed) == {at(data[0]), at(data[3]), at(models[3][0]), at(models[3][1])}
    assert all(store.is_done("promote", decision.digest) for *_, decision in models), "no decision is made twice"
    assert store.list("runs") == ["p-0", "p-1", "p-2"], "a report about a registered model stays possible"
    assert registry.rollback(mlflow_sqlite, "demo") == "2" and store.is_done("align", models[1][0].digest)


def test_another_stores_registry_is_refused_before_anything_is_deleted(place: Settings, store: Store, mlflow_sqlite: str) -> None:
    policy, *_ = promoted(store, "old")
    with pytest.raises(ConfigError, match="has none of the 1 models") as error:
        collect(place.model_copy(update={"mlflow_uri": mlflow_sqlite}))
    assert "DORA_MLFLOW_URI" in error.value.hint and store.is_done("align", policy.digest)
    with pytest.raises(ConfigError):  # no registry at all
        collect(place)
    assert at(policy) in collect(place, unregistered=True).removed


def test_a_registry_that_is_away_keeps_everything(place: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    old = made(store, "align", "old")
    with pytest.raises(ServiceError, match=r"MLflow at .* does not answer"):
        collect(place.model_copy(update={"mlflow_uri": "http://127.0.0.1:9"}))
    assert store.is_done("align", old.digest)


# --------------------------------------------------------------------------------------------------- beside other things


def test_a_run_that_begins_meanwhile_gets_its_stages_back(place: Settings, store: Store) -> None:
    old = [made(store, "align", str(number)) for number in range(4)]
    Path(store.local(f"scores/{'c' * 64}")).mkdir(parents=True)
    (store.local(f"scores/{'c' * 64}") / "part.parquet").write_bytes(b"x")
    age(store.local("scores"), 30)

    def begins(what: str, done: int, total: int | None) -> None:
        if what == "deleting" and done == 1:
            ran(store, "p-1", *old, status="running")

    done = collect(place, progress=begins)
    assert len(done.removed) == 1 and there(store) == {at(each) for each in old if at(each) not in done.removed} | {f"scores/{'c' * 64}"}
    assert all(store.is_done(*at(each).split("/")) for each in old if at(each) not in done.removed)


def test_a_plan_whose_result_went_before_the_manifest_came_computes_it(store: Store, tmp_path: Path, mixture: Path) -> None:
    plan = small_plan(store, tmp_path, mixture)
    execute(plan.stages[0].spec, run_of("ingest"), store)
    plan = small_plan(store, tmp_path, mixture)
    assert plan.stages[0].cached and plan.checked(store) == plan
    (store.local(f"ingest/{plan.stages[0].digest}") / RESULT).unlink()
    again = plan.checked(store)
    assert not again.stages[0].cached and again.stages[0].reason == "runs: its result has just been deleted"
    assert again.stages[1:] == plan.stages[1:]


def test_a_dead_runs_stages_stay_until_it_is_reaped(place: Settings, store: Store) -> None:
    old = made(store, "align", "old")
    ran(store, "p-1", old, status="running", process=process(alive=False))
    done = collect(place)
    assert at(old) in done.kept and done.notes == [
        "p-1: the process is gone, but the run was not ended; `dora reap` ends it, and frees its results"
    ]


def test_a_command_on_files_tells_what_it_reads(place: Settings, store: Store, tmp_path: Path) -> None:
    """It has no manifest: its folder says so."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    read = prompts.plan("prompts", data_source(tmp_path / "p.jsonl"))
    stages = FileStages("generate", Out(as_json=True))
    stages.run([read])
    age(store.local(f"prompts/{read.digest()}"), 30)
    spec = judge.Spec(
        records=read.ref(), samples=ref("generate", "none"), judge=GoldJudge(), text=TextConfig(), execution=Execution(workers=0)
    )
    with pytest.raises(StoreError):
        stages.run([read, spec])
    assert {at(read.ref()), at(spec.ref())} <= collect(place, older_than=0.0).kept.keys()


# ----------------------------------------------------------------------------------------------------------- a real run

SMALL = {
    "project": "small",
    "classifier": {"encoder": {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 400}, "epochs": 1, "folds": 2, "refit": "never"},
    "execution": {"default": {"workers": 0}},
}


def small_plan(store: Store, folder: Path, *data: Path) -> Plan:
    config = RealignConfig(data={"train": [{"path": str(path)} for path in data]}, **SMALL)
    return build_plan(config, store, until="calibrate")


def run_of(stage: str) -> Any:
    return STAGES[stage].run


def realign(store: Store, place: Settings, folder: Path, number: int, *data: Path) -> Manifest:
    """What the flow does, without Prefect, Ray and MLflow."""
    plan = small_plan(store, folder, *data)
    config = RealignConfig(data={"train": [{"path": str(path)} for path in data]}, **SMALL)
    manifest = Manifest.create(store, plan, config, FlowRun("realign", f"flow-run-{number}", "small"), place.effective())
    for stage in plan.stages:
        result = execute(stage.spec, run_of(stage.stage), store)
        manifest.finish(stage.label, result, state="cached" if stage.cached else "ran", seconds=0.0)
    write_latest(store, plan, manifest.run_id)
    manifest.update(status="completed", finished=time.time())
    return manifest


def test_after_a_collection_a_kept_run_has_nothing_to_do_and_the_next_scores_only_what_is_new(
    place: Settings, store: Store, tmp_path: Path, mixture: Path
) -> None:
    more = [Testbed(TestbedConfig(prompts=4, responses_per_prompt=3), round=week).write(tmp_path / f"{week}.parquet") for week in (1, 2)]
    realign(store, place, tmp_path, 1, mixture)
    kept = realign(store, place, tmp_path, 2, mixture, more[0])
    before, latest = there(store), store.read_json("projects/small/latest.json")
    done = collect(place, older_than=0.0)
    assert done.runs and store.list("runs") == [kept.run_id] and {p.split("/")[0] for p in done.removed} == {"drift", "calibrate"}
    assert store.read_json("projects/small/latest.json") == latest and there(store) == before - set(done.removed)

    again = small_plan(store, tmp_path, mixture, more[0])
    assert again.to_run == [] and all(store.is_done(s.stage, s.digest) for s in again.stages)
    assert [s.label for s in small_plan(store, tmp_path, mixture).to_run] == ["drift", "calibrate"], "the classifier kept its records"
    realign(store, place, tmp_path, 3, mixture, *more)
    newest = {s.label: store.read_result(s.stage, s.digest) for s in small_plan(store, tmp_path, mixture, *more).stages}
    assert newest["classify"]["facts"]["reused"]
    scored, reused = (newest["calibrate"]["facts"][name] for name in ("scored_rows", "reused_rows"))
    assert 0 < scored < reused, "the row cache stayed"


# ------------------------------------------------------------------------------------------------------- remote, commands


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def test_a_bucket_and_this_machines_copies_of_it(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (s3.environment | {"DORA_CACHE": str(tmp_path), "DORA_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gc, "GRACE_SECONDS", 0.0)  # objects have the server's time, and are new
    place = Settings(store=f"s3://{BUCKET}/gc")
    store = Store(place.store_uri)
    data, gone = made(store, "ingest", "data"), made(store, "align", "gone")
    kept, live = made(store, "align", "kept", data), made(store, "align", "live")
    ran(store, "p-1", gone, days=40)
    ran(store, "p-2", kept, days=30)
    ran(store, "p-3", live, status="running")
    done = collect(place, older_than=0.0)
    assert (done.removed, done.runs, done.problems) == ([at(gone)], ["p-1"], [])
    assert not [key for key in s3.objects("gc/") if gone.digest in key and not key.endswith("/")]
    assert [store.is_done("align", each.digest) for each in (kept, live, gone)] == [True, True, False]
    copies = Store(str(store.local_root))
    assert done.cached_bytes > 2000 and [copies.is_done("align", each.digest) for each in (kept, live)] == [False, True]
    assert (store.fetch("align", kept.digest) / "output.bin").exists(), "it is fetched again"


@pytest.mark.fault(27)
def test_a_listing_that_is_out_of_date_deletes_nothing(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing lacks the last run, which needs a result that is old and that no other run needs."""
    with s3_proxy(s3) as proxy:
        for name, value in (proxy.server.environment | {"DORA_CACHE": str(tmp_path), "DORA_HOME": str(tmp_path / "home")}).items():
            monkeypatch.setenv(name, value)
        place = Settings(store=f"s3://{BUCKET}/stale")
        store = Store(place.store_uri)
        needed = made(store, "align", "needed")
        monkeypatch.setattr(gc, "GRACE_SECONDS", 0.0)  # objects have the server's time, and are new
        gc.collect(place, place.effective(), delete=False)  # its listings are the old ones
        proxy.is_stale = True
        ran(store, "p-1", needed, status="running")
        with pytest.raises(StoreError, match="does not list a file that was just written"):
            collect(place, older_than=0.0)
        proxy.is_stale = False
        assert collect(place, older_than=0.0).removed == [] and store.is_done("align", needed.digest)


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400.0), ("12h", 43_200.0), ("0s", 0.0), ("1.5d", 129_600.0), ("2w", 14 * DAY)])
def test_ages(text: str, seconds: float) -> None:
    assert gc.parse_age(text) == seconds


def test_the_command_only_looks_unless_told_to_delete(place: Settings, store: Store) -> None:
    old = made(store, "align", "old")
    looked = CliRunner().invoke(app, ["gc", "--json"])
    assert looked.exit_code == 0 and json.loads(looked.stdout)["removed"] == [at(old)] and store.is_done("align", old.digest)
    shown = CliRunner().invoke(app, ["gc"]).stdout
    assert "would free" in shown and "`dora gc --delete` does it" in shown
    assert CliRunner().invoke(app, ["gc", "--older-than", "soon"]).exit_code == 2
    deleted = CliRunner().invoke(app, ["gc", "--delete"])
    assert deleted.exit_code == 0 and "freed" in deleted.stdout and there(store) == set()


def test_what_cannot_be_deleted_is_told_and_left(place: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, other = made(store, "align", "old"), made(store, "sft", "other")
    outside = store.local_root.parent / "elsewhere"
    store.local(at(old)).rename(outside)
    store.local(at(old)).symlink_to(outside)
    done = collect(place)
    assert done.removed == [at(other)] and outside.exists()
