"""Scoring on a full disk, and damaged shards, results and numbers: noticed, named or counted, and cured by a second run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from dora_core.calibration import LOGIT_LIMIT
from dora_core.classifier.model import PairEncoder
from dora_core.classifier.wide import Ngrams
from dora_core.errors import ModelError, StoreError
from infra.store.store import ERROR, Store
from tasks.runtime.stage import StageRef, execute
from tasks.stages import classify, ingest
from tasks.tables.rows import texts_at
from tests.faults import Recovery
from tests.tasks.scoring import CLASSIFIER, SHARD_ROWS, World, alter, markers, run, scored, shard_of, spec_of, written


def temporary(path: Path) -> Path:
    """Where ``infra.store.store.replacing`` writes in this thread."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def fill(path: Path) -> None:
    """From now on the kernel refuses what is written to ``path``: no space left on device."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/full")


@pytest.mark.fault(13)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
@pytest.mark.parametrize("file", ["data of a shard", "marker of a shard", "scores", "table"])
def test_a_full_disk_is_named_and_the_next_run_goes_on(store, world, meet, recovery: Recovery, file: str) -> None:
    fault = meet("none")
    (fault.folder / "pid").touch()
    stage = store.folder("calibrate", spec_of(world.records, world.classifier).digest()).path
    start = shard_of(fault, world)
    shard = f"scratch/scores/{start:012d}-{min(start + SHARD_ROWS, len(world.keys)):012d}"
    link, finished = {
        "data of a shard": (temporary(stage / f"{shard}.parquet"), start),
        "marker of a shard": (temporary(stage / f"{shard}.json"), start),
        "scores": (temporary(stage / "scratch/part.parquet"), len(world.keys)),
        "table": (stage / "calibration.parquet", len(world.keys)),
    }[file]
    fill(link)
    fill(temporary(stage / ERROR))
    with pytest.raises(StoreError, match=r"the disk is full: [\d.,]+ of [\d.,]+ MB are free on /") as caught:
        run(store, world)
    recovery.begins()
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert "run the same command again" in caught.value.hint and str(stage) in caught.value.message
    assert not list(stage.rglob(".*.tmp"))
    assert sum(marker["rows"] for marker in markers(store).values()) == finished
    before = scored(fault)

    link.unlink(missing_ok=True)
    run(store, world)
    assert written(store) == world.files
    assert len(scored(fault)) - len(before) == len(world.keys) - finished


def on_a_small_disk(mount: str, start: str, records: str, classifier: str) -> None:
    """In a process with the file system ``mount`` of its own: calibrate until that is full, make room, calibrate; says what it saw."""
    torch.set_num_threads(1)
    disk = Path(mount)
    store = Store(str(shutil.copytree(start, disk / "store")))
    world = World(Path(start), StageRef(stage="ingest", digest=records), StageRef(stage="classify", digest=classifier), {}, [])
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 64 * 1024)
    try:
        run(store, world)
    except StoreError as error:
        seen = {"error": error.to_json(), "left": [str(p) for p in disk.rglob("*.tmp")], "finished": sorted(markers(store))}
    ballast.unlink()
    run(store, world)
    print(json.dumps(seen | {"files": written(store)}))


@pytest.mark.fault(13)
@pytest.mark.component
@pytest.mark.chaos
def test_on_a_small_disk_of_its_own_the_stage_ends_and_goes_on(world, tmp_path: Path, recovery: Recovery) -> None:
    """A real file system, of 32 MB, that fills up after some shards."""
    own = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a file system of its own here (unshare --map-root-user --mount)")
    code = f"import sys; from {__name__} import on_a_small_disk; on_a_small_disk(*sys.argv[1:])"
    mounted = f'mount -t tmpfs -o size=32m none {tmp_path} && exec "$@"'
    arguments = [str(tmp_path), str(world.root), world.records.digest, world.classifier.digest]
    recovery.begins()
    child = subprocess.run(
        [*own, "sh", "-c", mounted, "sh", sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout.splitlines()[-1])
    assert seen["error"]["message"].startswith("the disk is full: 0.0 of 33.6 MB are free on " + str(tmp_path) + " now"), seen
    assert "run the same command again" in seen["error"]["hint"] and seen["left"] == []
    assert 0 < len(seen["finished"]) < len(range(0, len(world.keys), SHARD_ROWS))
    assert seen["files"] == world.files


# ------------------------------------------------------------------------------------------------------------ damage


def flip(path: Path) -> None:
    """One other bit in the middle; the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "corrupt": flip,
    "truncated": lambda data: os.truncate(data, data.stat().st_size // 2),
    "marker without data": Path.unlink,
    "data without marker": lambda data: data.with_suffix(".json").unlink(),
    "torn marker": lambda data: os.truncate(data.with_suffix(".json"), 20),
    "marker of noise": lambda data: data.with_suffix(".json").write_bytes(random.Random(0).randbytes(200)),
    "marker of something else": lambda data: data.with_suffix(".json").write_text("[1]"),
}


@pytest.mark.fault(14, 15)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_alone_is_scored_again(store, world, meet, recovery: Recovery, damage: str) -> None:
    fault = meet("raises")
    with pytest.raises(ConnectionError):
        run(store, world)
    finished = markers(store)
    first = random.Random(damage).choice(sorted(finished))
    recovery.begins()
    DAMAGE[damage](next(store.local_root.glob(f"calibrate/*/scratch/scores/{first:012d}-*.parquet")))
    before = len(scored(fault))
    run(store, world)
    assert written(store) == world.files
    assert len(scored(fault)) - before == len(world.keys) - sum(m["rows"] for m in finished.values()) + finished[first]["rows"]


@pytest.mark.fault(14)
def test_an_altered_result_is_never_read_and_the_remedy_works(store, world, recovery: Recovery) -> None:
    """Same size, other bytes: a plan, which goes by sizes, takes it for done; the stage that reads it does not."""
    folder = store.local_root / "ingest" / world.records.digest
    flip(folder / "records.parquet")
    assert store.is_done("ingest", world.records.digest)
    with pytest.raises(StoreError, match=r"ingest/\w{12} is damaged: records\.parquet") as caught:
        run(store, world)
    recovery.begins()
    assert f"delete {folder} and run the same command again" in caught.value.hint
    spec = ingest.Spec.model_validate(
        {k: v for k, v in json.loads((folder / "result.json").read_text())["spec"].items() if k not in ("stage", "version")}
    )
    shutil.rmtree(folder)
    execute(spec, ingest.run, store)
    run(store, world)
    assert written(store) == world.files


# ------------------------------------------------------------------------------------------------------- bad numbers


def rarest_buckets(store: Store, world: World, count: int) -> list[tuple[int, list[int]]]:
    """n-gram buckets that the fewest training rows use, and the keys of these rows; no row has two of them."""
    records = store.fetch("ingest", world.records.digest) / "records.parquet"
    fitted = classify.FOLDER
    tokenizer = AutoTokenizer.from_pretrained(store.fetch("classify", world.classifier.digest) / fitted / "tokenizer")
    prompts, responses = texts_at(records, np.arange(len(world.keys)), "train")
    rows = PairEncoder(tokenizer, CLASSIFIER.max_prompt_tokens, CLASSIFIER.max_response_tokens)(prompts, responses)
    ngrams = Ngrams.of(rows.responses)
    users: dict[int, set[int]] = {}
    for row, (start, stop) in enumerate(pairwise(ngrams.start.tolist())):
        for bucket in ngrams.index[start:stop].tolist():
            users.setdefault(bucket, set()).add(row)
    chosen, taken = list[tuple[int, list[int]]](), set[int]()
    for bucket, of in sorted(users.items(), key=lambda item: (len(item[1]), item[0])):
        if len(chosen) < count and not of & taken:
            chosen.append((bucket, [world.keys[row] for row in of]))
            taken |= of
    return chosen


@pytest.mark.fault(18)
def test_poisoned_scores_are_neutral_or_clipped_and_all_are_counted(store, world) -> None:
    """One response gets NaN from the classifier, one the probability 1, one the probability 0."""
    (lost, lost_keys), (certain, certain_keys), (impossible, impossible_keys) = rarest_buckets(store, world, 3)

    def poison(heads: dict[str, torch.Tensor]) -> None:
        heads["wide.ngram_weight"][lost, 0] = torch.nan
        heads["wide.ngram_weight"][certain, 0] = torch.inf
        heads["wide.ngram_weight"][impossible, 1] = -torch.inf

    run(store, world, cap_quantile=0.95)
    before = pq.read_table(next(store.local_root.glob("calibrate/*/calibration.parquet")))
    for name in ("scores", "calibrate"):
        shutil.rmtree(store.local_root / name)
    alter(store, world.classifier, poison)
    facts = run(store, world, cap_quantile=0.95)["facts"]
    after = pq.read_table(next(store.local_root.glob("calibrate/*/calibration.parquet")))

    assert not facts["no_shift"], "the heads count, or the test shows nothing"
    rows = facts["rows"]
    assert rows["in"] == len(world.keys) == len(after) == rows["scored"] + rows["unscored"]
    assert rows["unscored"] == len(lost_keys) and rows["clipped"] == len(certain_keys + impossible_keys)
    assert rows["capped"] == round(facts["capped_fraction"] * rows["in"]) > 0
    assert any(f"{len(lost_keys)} of {rows['in']} responses got no number" in warning for warning in facts["warnings"])
    names = sorted(name for name in after.column_names if name.startswith("w_"))
    place = {key: row for row, key in enumerate(world.keys)}
    w = np.column_stack([after[name].to_numpy() for name in names])
    assert np.isfinite(w).all() and np.isfinite(after["h"].to_numpy()).all() and (after["h"].to_numpy() > 0).all()
    assert w[[place[key] for key in lost_keys], 0] == pytest.approx(1.0)
    assert (w[[place[key] for key in certain_keys], 0] > np.exp(LOGIT_LIMIT - 5)).all()
    assert (w[[place[key] for key in impossible_keys], 1] < np.exp(5 - LOGIT_LIMIT)).all()
    sound = np.setdiff1d(np.arange(len(world.keys)), [place[key] for key in lost_keys + certain_keys + impossible_keys])
    assert all(np.array_equal(before[name].to_numpy()[sound], after[name].to_numpy()[sound]) for name in names), (
        "the others' are as they were"
    )


@pytest.mark.fault(18)
def test_a_classifier_that_gives_no_numbers_is_refused(store, world) -> None:
    alter(store, world.classifier, lambda heads: heads["wide.bias"].fill_(torch.nan))
    with pytest.raises(ModelError, match=r"gave no number to \d+ of \d+ responses \(100\.0%, at most 1% may lack one\)") as caught:
        run(store, world)
    assert "classifier.learning_rate" in caught.value.hint
