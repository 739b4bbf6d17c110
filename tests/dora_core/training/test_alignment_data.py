"""The file of training records: records written are read back by index, from a memory map."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dora_core.config.method import TextConfig
from dora_core.data.encoding import Encoder
from dora_core.data.response_turns import join_turns
from dora_core.errors import DataError
from dora_core.training.alignment_data import UNKNOWN, AlignmentData, choose_responses, write_alignment_data
from tests.dora_core.conftest import WORDS
from tests.dora_core.data.chat_families import SEPARATED


def make_rows(n: int) -> list[dict]:
    """Lists of 2 to 5 responses with gaps and ties in the rewards; some records have no preference at all."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        size = int(rng.integers(2, 6))
        rows.append(
            {
                "row": i,
                "reward_kind": "reward",
                "prompt": [{"role": "user", "content": " ".join(rng.choice(WORDS, size=1 + i % 9))}],
                "responses": [" ".join(rng.choice(WORDS, size=int(rng.integers(1, 14)))) for _ in range(size)],
                "rewards": [None if rng.random() < 0.3 else float(rng.integers(0, 3)) for _ in range(size)],
                "sources": [["human", None, "a-lm"][int(rng.integers(0, 3))] for _ in range(size)],
                "logps": (-rng.exponential(size=size)).tolist(),
                "factor": float(rng.gamma(2.0)),
                "label_probability": float(rng.random()) if i % 3 else None,
            }
        )
    return rows


def write(path: Path, rows: list[dict], encoder: Encoder, batch: int, limit: int) -> AlignmentData:
    table = pa.Table.from_pylist(rows)
    batches = (table.slice(i, batch) for i in range(0, len(table), batch))
    write_alignment_data(path, batches, encoder, limit, sources=["human", None, "a-lm", "left"], records=len(rows))
    return AlignmentData(path)


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("limit", [2, 3, 8])
def test_records_are_those_of_encoding_one_by_one(tokenizer, tmp_path: Path, batch: int, limit: int) -> None:
    rows, encoder = make_rows(60), Encoder(tokenizer, TextConfig(max_prompt_tokens=8, max_response_tokens=12))
    data = write(tmp_path / "data.arrow", rows, encoder, batch, limit)
    names = ["a-lm", "human", "left", UNKNOWN]
    assert data.sources == names
    expected = []
    for r in rows:
        rewards = [math.nan if x is None else x for x in r["rewards"]]
        chosen = choose_responses(rewards, limit)
        if len(chosen) >= 2 and rewards[chosen[0]] > rewards[chosen[-1]]:
            expected.append((r, chosen))
    assert len(data) == len(expected) and data.dropped == len(rows) - len(expected) > 0
    for i, (r, chosen) in enumerate(expected):
        record = data[i]
        assert (record.row, record.factor) == (r["row"], r["factor"])
        assert record.responses == [encoder.encode(r["prompt"], r["responses"][j]) for j in chosen]
        assert all(response.prompt_ids is record.responses[0].prompt_ids for response in record.responses)
        assert record.rewards == [r["rewards"][j] for j in chosen] and record.reference_logps == [r["logps"][j] for j in chosen]
        assert record.label_probability == (1.0 if r["label_probability"] is None else r["label_probability"])
        assert [names[s] for s in record.sources] == [r["sources"][j] or UNKNOWN for j in chosen]
        assert data.tokens[i] == len(record.responses[0].prompt_ids) + sum(len(x.response_ids) for x in record.responses)
        assert data.unshared_tokens[i] == sum(map(len, record.responses))
    assert data.tokens.dtype == np.int64 and data.tokens.shape == (len(data),)


def test_token_ids_stay_in_the_file(tokenizer, tmp_path: Path) -> None:
    """Opening maps the file: nothing is allocated for its contents, and every view lies inside the map."""
    before = pa.total_allocated_bytes()
    data = write(tmp_path / "data.arrow", make_rows(500), Encoder(tokenizer, TextConfig()), 50, 8)
    assert pa.total_allocated_bytes() == before
    views = [view for batch in data._batches for view in (batch._prompt_ids, batch._response_ids, batch._response_at)]
    assert len(views) == 30 and not any(view.flags.owndata or view.flags.writeable for view in views)


def test_the_bytes_depend_on_the_records_alone(tokenizer, tmp_path: Path) -> None:
    rows, encoder = make_rows(30), Encoder(tokenizer, TextConfig())
    write(tmp_path / "a", rows, encoder, 10, 8)
    write(tmp_path / "b", pickle.loads(pickle.dumps(rows)), encoder, 10, 8)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_index_outside_is_an_index_error(tokenizer, tmp_path: Path) -> None:
    data = write(tmp_path / "data.arrow", make_rows(5), Encoder(tokenizer, TextConfig()), 2, 8)
    for index in (-1, len(data)):
        with pytest.raises(IndexError):
            data[index]


def test_no_preference_at_all_is_refused(tokenizer, tmp_path: Path) -> None:
    rows = [r | {"rewards": [1.0] * len(r["responses"])} for r in make_rows(4)]
    with pytest.raises(DataError, match="none of 4 training records has a preference"):
        write(tmp_path / "data.arrow", rows, Encoder(tokenizer, TextConfig()), 2, 8)


def labelled_rows() -> list[dict]:
    """A desirable and an undesirable record between lists, and a list with one measured response."""
    rows = make_rows(4)
    rows[0] |= {"rewards": [1.0, 0.0] + [None] * (len(rows[0]["responses"]) - 2)}
    rows[3] |= {"rewards": [1.0] + [None] * (len(rows[3]["responses"]) - 1)}
    for row, label in ((rows[1], 1.0), (rows[2], 0.0)):
        row |= {name: row[name][:1] for name in ("responses", "sources", "logps")} | {"rewards": [label], "reward_kind": "label"}
    return rows


def test_unpaired_records_stay_and_a_list_with_one_measured_response_does_not(tokenizer, tmp_path: Path) -> None:
    data = write(tmp_path / "data.arrow", labelled_rows(), Encoder(tokenizer, TextConfig()), 3, 2)
    assert [(data[i].row, data[i].unpaired, data[i].rewards) for i in range(len(data))] == [
        (0, False, [1.0, 0.0]),
        (1, True, [1.0]),
        (2, True, [0.0]),
    ]
    assert (data.unpaired, data.dropped) == (2, 1)


def test_a_file_of_an_earlier_release_has_no_unpaired_and_no_uncertain_records(tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "data.arrow", make_rows(9), Encoder(tokenizer, TextConfig()), 3, 8)
    with pa.ipc.open_file(str(tmp_path / "data.arrow")) as reader:
        table = reader.read_all()
    old = table.drop_columns(["unpaired", "label_probability"])
    with pa.ipc.new_file(str(tmp_path / "old.arrow"), old.schema) as file:
        file.write_table(old)
    data = AlignmentData(tmp_path / "old.arrow")
    assert data.unpaired == 0 and len(data) == len(table) and not data[0].unpaired
    assert data.uncertain == 0 and data[0].label_probability == 1.0


def test_a_record_without_exactly_one_label_is_refused(tokenizer, tmp_path: Path) -> None:
    rows = labelled_rows()
    rows[1]["rewards"] = [0.5]
    with pytest.raises(DataError, match=r"record in row 1 has reward_kind label and the rewards \[0.5\]"):
        write(tmp_path / "data.arrow", rows, Encoder(tokenizer, TextConfig()), 3, 8)


def test_the_hardest_share_is_left_out(tokenizer, tmp_path: Path) -> None:
    """q = (.9, .2, 1, .2, .6): a share of .4 is two records, .5 too; of the two at .2 a share of .2 leaves the earlier one."""
    rows = [r | {"rewards": [1.0, 0.0] + [None] * (len(r["responses"]) - 2)} for r in make_rows(5)]
    for row, q in zip(rows, (0.9, 0.2, None, 0.2, 0.6), strict=True):
        row["label_probability"] = q
    path = tmp_path / "data.arrow"
    whole = write(path, rows, Encoder(tokenizer, TextConfig()), 2, 8)
    for share, kept in ((0.0, [0, 1, 2, 3, 4]), (0.2, [0, 1, 2, 4]), (0.4, [0, 2, 4]), (0.5, [0, 2, 4]), (0.9, [2])):
        data = AlignmentData(path, share)
        assert [data[i].row for i in range(len(data))] == kept and data.dropped == 5 - len(kept)
        assert data.tokens.tolist() == whole.tokens[kept].tolist() and data.uncertain == sum(i != 2 for i in kept)
    with pytest.raises(IndexError):
        AlignmentData(path, 0.4)[3]


def test_dropping_the_hardest_of_certain_records_is_refused(tokenizer, tmp_path: Path) -> None:
    rows = [r | {"label_probability": 1.0} for r in make_rows(20)]
    write(tmp_path / "data.arrow", rows, Encoder(tokenizer, TextConfig()), 7, 8)
    with pytest.raises(DataError, match=r"align.drop_hardest: 0.3 leaves out .* none of \d+ records has one"):
        AlignmentData(tmp_path / "data.arrow", 0.3)


def equal_rows(tails: list[tuple[str, str]]) -> list[dict]:
    """Pairs of responses that begin with the same eight words and end with ``tails``."""
    start = " ".join(WORDS[:8])
    common = {"reward_kind": "reward", "sources": ["human", "human"], "logps": [-1.0, -2.0], "factor": 1.0, "label_probability": None}
    return [
        common
        | {
            "row": i,
            "prompt": [{"role": "user", "content": "the cat"}],
            "responses": [f"{start} {tail}".rstrip() for tail in pair],
            "rewards": [1.0, 0.0],
        }
        for i, pair in enumerate(tails)
    ]


def test_pairs_that_are_equal_after_the_cut_are_dropped_and_counted(tokenizer, tmp_path: Path) -> None:
    """Of three pairs, the first differs beyond the cut alone, the second within it, and the third is the same text twice (two draws)."""
    rows = equal_rows([("on a mat", "on a dog"), ("", "run"), ("home", "home")])
    whole = Encoder(tokenizer, TextConfig()).encode(rows[1]["prompt"], rows[1]["responses"][0])
    encoder = Encoder(tokenizer, TextConfig(max_response_tokens=len(whole.response_ids)))
    cuts = write_alignment_data(tmp_path / "data", iter([pa.Table.from_pylist(rows)]), encoder, 2, sources=["human"], records=3)
    data = AlignmentData(tmp_path / "data")
    assert [data[i].row for i in range(len(data))] == [1, 2] and data.dropped == 1
    lost = [encoder.encode(r["prompt"], y).cut for r in rows for y in r["responses"]]
    assert (cuts.equal, cuts.responses, cuts.prompts) == (1, 6, 3)
    assert (cuts.cut_responses, cuts.cut_tokens) == (sum(n > 0 for n in lost), sum(lost)) == (5, sum(lost))
    assert (cuts.cut_prompts, cuts.lost_system) == (0, 0)


def test_no_pair_that_differs_is_an_error_with_the_limit(tokenizer, tmp_path: Path) -> None:
    encoder = Encoder(tokenizer, TextConfig(max_response_tokens=4))
    with pytest.raises(
        DataError, match=r"all 2 training records .* equal tokens.* text.max_response_tokens = 4 \(4 of 4 responses are cut\)"
    ):
        write(tmp_path / "data", equal_rows([("on", "a"), ("dog", "cat")]), encoder, 10, 2)


def test_a_list_loses_the_responses_that_repeat_a_better_one(tokenizer, tmp_path: Path) -> None:
    row = equal_rows([("on a mat", "on a dog")])[0]
    row |= {"responses": [*row["responses"], "home"], "rewards": [2.0, 1.0, 0.0], "sources": ["human"] * 3, "logps": [-1.0, -2.0, -3.0]}
    data = write(tmp_path / "data", [row], Encoder(tokenizer, TextConfig(max_response_tokens=4)), 10, 8)
    assert (data[0].rewards, data[0].reference_logps) == ([2.0, 0.0], [-1.0, -3.0])


def test_log_probabilities_of_other_tokens_are_refused(tokenizer, tmp_path: Path) -> None:
    [row], encoder = equal_rows([("on", "a dog")]), Encoder(tokenizer, TextConfig())
    counts = [len(encoder.encode(row["prompt"], y).response_ids) for y in row["responses"]]
    assert len(write(tmp_path / "same", [row | {"tokens": counts}], encoder, 10, 2)) == 1
    with pytest.raises(DataError, match=f"that of {counts[1] - 1} response tokens, and the response has {counts[1]}") as refused:
        write(tmp_path / "other", [row | {"tokens": [counts[0], counts[1] - 1]}], encoder, 10, 2)
    assert "logps/" in refused.value.hint


def test_places_that_are_not_learned_come_back(tokenizer, tmp_path: Path) -> None:
    """Records of one and of several turns in different batches of the file, and their numbers of learned tokens against the reference's."""
    tokenizer.chat_template = SEPARATED
    encoder = Encoder(tokenizer, TextConfig())
    turns = [{"role": role, "content": text} for role, text in (("assistant", "on a"), ("user", "cat"), ("assistant", "mat"))]
    rows = [row | {"rewards": [1.0, 0.0], "responses": ["run home", "very old"]} for row in make_rows(4)]
    rows = [row | {"sources": row["sources"][:2], "logps": row["logps"][:2]} for row in rows]
    rows[2]["responses"] = ["dog", join_turns(turns)]
    for row in rows:
        row["tokens"] = [encoder.encode(row["prompt"], response).learned for response in row["responses"]]
    data = write(tmp_path / "data.arrow", rows, encoder, 2, 8)
    for place, row in enumerate(rows):
        assert data[place].responses == [encoder.encode(row["prompt"], response) for response in row["responses"]]
    several = data[2].responses[1]
    [(start, stop)] = several.context
    assert several.learned == rows[2]["tokens"][1] == len(several.response_ids) - (stop - start)
    rows[2]["tokens"][1] = len(several.response_ids)
    with pytest.raises(DataError, match="its reference log-probability is that of"):
        write(tmp_path / "other.arrow", rows, encoder, 2, 8)
