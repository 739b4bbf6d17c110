import pytest

from infra.tracking.mlflow_limits import BATCH, PARAM_CHARACTERS, clean_name, flatten, metric_rows, shorten, text_chunks


@pytest.mark.parametrize(
    ("given", "expected"),
    [("h(y)/auc@0.5", "h_y_/auc_0.5"), ("../../x", "x"), ("λ", "_"), ("", "_"), ("a" * 300, "a" * 250), ("loss", "loss")],
)
def test_clean_name(given: str, expected: str) -> None:
    assert clean_name(given) == expected


def test_shorten_keeps_length_and_digest_of_the_whole() -> None:
    assert shorten("abc", 3) == "abc"
    short = shorten("a" * 201, 200)
    assert len(short) == 200 and "201 characters" in short and short != shorten("a" * 200 + "b", 200)
    assert shorten("\ud800", 10) == "?"


def test_flatten() -> None:
    assert dict(flatten({"a": {"b": {"c": 1}, "d": "x"}, "e": [1, 2], "f": {}, "g": True})) == {
        "a.b.c": "1",
        "a.d": "x",
        "e": "[1, 2]",
        "f": "{}",
        "g": "true",
    }


def test_metrics_without_a_finite_value_are_left_out() -> None:
    rows = [("h(y)", 0.5, 1000, 3), ("loss", float("nan"), 1000, 3), ("loss", float("inf"), 1000, 4), ("loss", 1.0, 1000, 5)]
    assert metric_rows(rows) == [("h_y_", 0.5, 1000, 3), ("loss", 1.0, 1000, 5)]


def test_texts_go_in_chunks_and_at_the_length_that_mlflow_accepts() -> None:
    chunks = list(text_chunks("params", [(f"key/{number}", "x" * 7000) for number in range(BATCH["params"] + 1)]))
    assert [len(chunk) for chunk in chunks] == [BATCH["params"], 1]
    assert chunks[1][0][0] == "key/100" and {len(text) for chunk in chunks for _, text in chunk} == {PARAM_CHARACTERS}
    assert list(text_chunks("tags", [])) == []
