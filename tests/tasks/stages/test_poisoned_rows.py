"""Rows with something wrong, through the real stage: good ones arrive as they were, bad ones are dropped, with reasons and counted."""

from __future__ import annotations

import bz2
import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_core.config.data import DataConfig
from dora_core.data.inputs import fingerprint_sources, inputs_of, open_files
from dora_core.errors import DataError
from infra.store.store import Store
from tasks.runtime.stage import execute
from tasks.stages.ingest import Spec, run
from tests.tasks.known_rows import GOOD, ROWS, Outcome, good, line

pytestmark = pytest.mark.fault(18)
CHAOS = pytest.param(2000, marks=pytest.mark.chaos, id="long")

# ------------------------------------------------------------------------------------------- fault 18: one kind after another

# What a row may have wrong with it, and what becomes of it: dropped, with its reason, or kept.
POISON: dict[str, tuple[bytes, str | None]] = {
    "NaN as reward": (line(good(50, rewards=[float("nan"), 1])), "nonfinite_reward"),
    "infinite reward": (line(good(51, rewards=[1, float("-inf")])), "nonfinite_reward"),
    "a reward beyond float64": (line(good(52)).replace(b"6.5", b"9" * 400), "nonfinite_reward"),
    "a number of 5000 digits": (line(good(53)).replace(b"6.625", b"9" * 5000), "unparsable"),
    "reward as text": (line(good(54, rewards=["much", 0])), "not_a_number"),
    "a decimal comma": (line(good(54, rewards=["4,5", 0])), "not_a_number"),
    "empty response": (line(good(55, responses=["x", ""])), "empty_response"),
    "white space as response": (line(good(56, responses=["x", " \n\t\u3000"])), "empty_response"),
    "null as response": (line(good(57, responses=["x", None])), "missing_response"),
    "no responses": (line(good(58, responses=None)), "missing_response"),
    "one response": (line(good(59, responses=["x"], rewards=[1], sources=["m"])), "too_few_responses"),
    "17 responses": (line(good(60, responses=["x"] * 17, rewards=None, sources=None)), "too_many_responses"),
    "no prompt": (line({k: v for k, v in good(61).items() if k != "prompt"}), "empty_prompt"),
    "blank prompt": (line(good(62, prompt=" ")), "empty_prompt"),
    "prompt of another type": (line(good(63, prompt={"text": "hi"})), "wrong_type"),
    "responses that disagree on the prompt": (
        line(good(64, responses=[[{"role": "user", "content": c}, {"role": "assistant", "content": "x"}] for c in "ab"])),
        "prompt_mismatch",
    ),
    "fewer rewards than responses": (line(good(65, rewards=[1])), "length_mismatch"),
    "fewer ranks than responses": (line(good(66, rewards=None, ranks=[1])), "length_mismatch"),
    "a rank that is none": (line(good(67, rewards=None, ranks=[1, "second"])), "not_a_number"),
    "a source nobody listed": (line(good(68, sources=["human", "zz"])), "unknown_source"),
    "a source with a line break": (line(good(69, sources=["human", "a\nb"])), "unknown_source"),
    "an id that was there": (line(good(0, prompt="another")), "duplicate_id"),
    "the same row again": (line(good(1)), "duplicate_id"),
    "a response of 10 MB": (line(good(70, responses=["x", "y" * 10_000_000])), "text_too_long"),
    "half a character": (line(good(71, responses=["x", "\ud83d"])), "lone_surrogate"),
    "bytes that are not UTF-8": (line(good(72)).replace(b"prompt 72", b"\xff\xfe"), "unparsable"),
    "half a line": (line(good(73))[:40] + b"\n", "unparsable"),
    "a key twice": (line(good(74)).replace(b'{"id"', b'{"prompt": "other", "id"'), "unparsable"),
    "nesting without end": (b'{"prompt": ' + b"[" * 100_000 + b"\n", "unparsable"),
    "no object": (b'["prompt", "x", "y"]\n', "wrong_type"),
    "NUL bytes": (b"\0" * 100 + b"\n", "unparsable"),
    "two rows in one line": (line(good(75)).strip() * 2 + b"\n", "unparsable"),
    "another language": (b"<html><body>502 Bad Gateway</body></html>\n", "unparsable"),
    "control characters in a text": (line(good(80, responses=["\x00\x07", "y"])), None),
    "the same response twice": (line(good(81, responses=["x", "x"])), None),
    "a byte order mark before it": (b"\xef\xbb\xbf" + line(good(82)), None),
    "Windows' line end": (line(good(83)).strip() + b"\r\n", None),
    "tied ranks": (line(good(84, rewards=[-1.0, -1.0])).replace(b'"rewards": [-1.0, -1.0]', b'"ranks": [1, 1]'), None),
}
LISTED = ["human", "m"]


def test_each_kind_of_poisoned_row_is_dropped_with_its_reason_or_kept_and_all_are_counted(tmp_path: Path) -> None:
    """One good row after each bad one: the counts by reason and the records together are the rows that came in."""
    followers = [good(100 + i) for i in range(len(POISON))]
    pairs = zip(POISON.values(), followers, strict=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join([*map(line, ROWS), *(raw + line(row) for (raw, _), row in pairs)]))
    outcome = Outcome(tmp_path / "a.jsonl", tmp_path / "store", sources=LISTED)

    kept: list[dict[str, Any]] = [*ROWS]
    for (raw, reason), follower in zip(POISON.values(), followers, strict=True):
        if reason is None:
            row = json.loads(raw.decode("utf-8-sig"))
            kept.append({k: row[k] for k in row if k != "ranks"} | ({"rewards": [-n for n in row["ranks"]]} if "ranks" in row else {}))
        kept.append(follower)
    reasons = [reason for _, reason in POISON.values() if reason is not None]
    outcome.check(kept, bad=len(reasons))
    assert outcome.facts["bad_by_reason"] == dict(Counter(reasons))
    assert outcome.facts["repeated_responses"] == 1
    where = {GOOD + 2 * i: reason for i, (_, reason) in enumerate(POISON.values()) if reason is not None}
    assert {entry["row"]: entry["reason"] for entry in outcome.quarantine} == where


def test_a_row_with_several_mistakes_counts_once_and_is_told_with_all_of_them(tmp_path: Path) -> None:
    row = good(50, prompt="", responses=["", None], rewards=[float("nan"), float("inf")])
    (tmp_path / "a.jsonl").write_bytes(b"".join(map(line, [*ROWS, row])))
    outcome = Outcome(tmp_path / "a.jsonl", tmp_path / "store")
    outcome.check(ROWS, bad=1)
    assert len(outcome.quarantine) == 5


def test_past_the_bound_the_run_is_refused_and_each_reason_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join([*map(line, ROWS), *(raw for raw, _ in POISON.values())]))
    config = DataConfig(train=[{"path": str(tmp_path / "a.jsonl")}], sources=LISTED)
    with pytest.raises(DataError) as caught:
        execute(Spec(data=config, fingerprints=fingerprint_sources(config)), run, Store(str(tmp_path / "store")))
    for reason, count in Counter(reason for _, reason in POISON.values() if reason).items():
        assert f"{reason} {count}" in caught.value.message
    assert "quarantine.parquet" in caught.value.hint


# ------------------------------------------------------------------------------------------------- rows among garbage

LINES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([raw for name, (raw, reason) in POISON.items() if reason and len(raw) < 200_000 and "id" not in name]),
    st.builds(lambda i, at, byte: line(ROWS[i])[:at] + bytes([byte]) + line(ROWS[i])[at + 1 :], *3 * [st.integers(0, 20)]),
    st.builds(lambda i, cut: line(ROWS[i])[:cut], st.integers(0, 20), st.integers(1, 30)),
    st.text(max_size=20).map(lambda text: text.encode("utf-16")),
)


def separated(garbage: bytes) -> bytes:
    return garbage.rstrip(b"\n") + b"\n"


@pytest.mark.parametrize("examples", [pytest.param(60, id="quick"), CHAOS])
def test_good_lines_survive_whatever_stands_between_them(examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.lists(LINES, min_size=1, max_size=8), st.sampled_from(["jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.zst"]))
    def check(garbage: list[bytes], suffix: str) -> None:
        content = b"".join([line(ROWS[0]), *(separated(g) + line(row) for g, row in zip(garbage, ROWS[1:], strict=False))])
        rows = list(read_bytes(content, suffix))
        kept = [row for row in rows if isinstance(row, dict)]
        for expected in ROWS[: 1 + len(garbage)]:
            assert expected in kept
        assert len(rows) == sum(1 for text in content.split(b"\n") if text.strip())

    check()


def read_bytes(content: bytes, suffix: str) -> Iterator[Any]:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(pack.get(suffix.rpartition(".")[2], bytes)(content))
        for item in inputs_of(DataConfig(train=[{"path": str(path), "source": "m"}])):
            for file in open_files(item, {}):
                yield from (row for _, row in file.rows(None, 3))
