import json
from pathlib import Path

from infra.tracking.outbox import Batch, Curves, Finish, Outbox, Start, waiting_places

FINISH = Finish(run="a", time=1.0, status="FINISHED")


def test_an_outbox_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    mine = Outbox.create(tmp_path, "key")
    mine.append(FINISH)
    assert Outbox.adopt(tmp_path, "key") == []
    mine.close()
    [adopted] = Outbox.adopt(tmp_path, "key")
    assert adopted.pending == [(1, FINISH)]
    adopted.acknowledge(1)
    adopted.close()
    assert list(tmp_path.iterdir()) == []


def test_a_partially_written_line_is_ignored_and_numbers_and_facts_go_on(tmp_path: Path) -> None:
    mine = Outbox.create(tmp_path, "key")
    mine.append(FINISH)
    mine.acknowledge(mine.append(FINISH), {"a": "mlflow-id"})
    file = mine.keep("figures/loss.png", b"png")
    mine.close()
    with mine.path.open("a") as log:
        log.write('{"seq": 3, "op": {"kind": "fin')
    [adopted] = Outbox.adopt(tmp_path, "key")
    assert adopted.pending == [(1, FINISH)] and adopted.facts == {"a": "mlflow-id"} and adopted.open_operations == 1
    assert adopted.append(FINISH) == 3 and adopted.keep("loss.png", b"other") != file and Path(file).read_bytes() == b"png"
    adopted.close()


def test_operations_of_earlier_releases_are_read(tmp_path: Path) -> None:
    """As their spool held them, with metrics in the batches."""
    start = {"name": "align", "parent": None, "project": "demo", "artifact_root": "/mlartifacts", "user": "ann"}
    given = {
        "name": "records",
        "digest": "d" * 64,
        "source": {"uri": "/records", "digest": "d" * 64},
        "type": "local",
        "context": "training",
    }
    lines = [
        {"kind": "start", **start},
        {"kind": "batch", "metrics": [["loss", 0.5, 1000, 3]]},
        {"kind": "batch", "params": [["seed", "1"]]},
        {"kind": "input", **given},
        {"kind": "artifact", "file": "/spool/0001/loss.png", "folder": "figures"},
        {"kind": "finish", "status": "KILLED"},
    ]
    log = "".join(json.dumps({"seq": seq, "op": {"run": "a", "time": 1.5} | line}) + "\n" for seq, line in enumerate(lines, start=1))
    (tmp_path / "key-0-1.jsonl").write_text(log + '{"ack": 1, "facts": {"a": "mlflow-id"}}\n')
    [adopted] = Outbox.adopt(tmp_path, "key")
    assert [operation.kind for _, operation in adopted.pending] == ["batch", "batch", "input", "artifact", "finish"]
    assert adopted.pending[0][1] == Batch(run="a", time=1.5, metrics=[("loss", 0.5, 1000, 3)])
    assert adopted.facts == {"a": "mlflow-id"} and isinstance(adopted.operations[1], Start)
    adopted.close()


def test_an_operation_of_another_release_is_kept_and_not_sent(tmp_path: Path) -> None:
    mine = Outbox.create(tmp_path, "key")
    mine.append(FINISH)
    with mine.path.open("a") as log:
        log.write(json.dumps({"seq": 2, "op": {"kind": "model", "run": "a", "time": 2.0}}) + "\n")
    mine.close()
    [adopted] = Outbox.adopt(tmp_path, "key")
    assert adopted.pending == [(1, FINISH)] and adopted.open_operations == 2
    adopted.acknowledge(1)
    adopted.close()
    assert mine.path.exists(), "a release that knows it sends it"


def test_stages_whose_journals_wait_are_named_until_they_are_sent(tmp_path: Path) -> None:
    """Also of an outbox whose process lives; of this store alone."""
    mine = Outbox.create(tmp_path, "key")
    sent, *_ = [
        mine.append(Curves(run="a", time=1.0, store=store, part=f"{place}/journal/00-1-000000.jsonl"))
        for store, place in (("/store", "align/aa"), ("/store", "sft/bb"), ("s3://other", "sft/cc"))
    ]
    mine.append(FINISH)
    assert waiting_places(tmp_path, "/store") == {"align/aa", "sft/bb"}
    mine.acknowledge(sent)
    assert waiting_places(tmp_path, "/store") == {"sft/bb"}
    mine.close()
    assert waiting_places(tmp_path / "none", "/store") == set()
