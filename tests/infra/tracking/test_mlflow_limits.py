import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.tracking.mlflow_limits import BATCH, PARAM_CHARACTERS, clean_name, flatten, metric_rows, original_name, shorten, text_chunks


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", "loss"),
        ("weight_share_模型甲", "weight_share_模型甲"),  # letters of any script
        ("win/gpt-4:a", "win/gpt-4_x3a_a"),
        ("win/gpt-4#a", "win/gpt-4_x23_a"),
        ("h(y)/auc@0.5", "h_x28_y_x29_/auc_x40_0.5"),
        ("../../x", "_x2e__x2e_/_x2e__x2e_/x"),
        ("a//b/", "a/_x_/b/_x_"),
        ("..a", "_x2e_.a"),
        ("", "_x_"),
        ("a_x3a_b", "a_x5f_x3a_b"),  # not the name of "a:b"
        ("e\u0301", "e_x301_"),  # NFD, another name than "é"
        ("a\nb", "a_xa_b"),
    ],
)
def test_clean_name(name: str, expected: str) -> None:
    assert clean_name(name) == expected
    assert original_name(expected) == name


def test_a_long_name_is_cut_and_keeps_its_identity() -> None:
    names = [clean_name("a" * 300), clean_name("a" * 299 + "b"), clean_name("模" * 251)]
    assert len(set(names)) == 3 and all(len(name) == 250 for name in names)


@given(st.lists(st.text(max_size=30), min_size=2, max_size=2, unique=True))
def test_mlflow_accepts_every_name_and_no_two_meet(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    one, two = map(clean_name, names)
    assert one != two and original_name(one) == names[0]
    for validate in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        validate(one)


def test_two_paths_of_one_dotted_key_stay_apart() -> None:
    found = list(flatten({"a.b": 1, "a": {"b": 2}}))
    assert found[0] == ("a.b", "1") and found[1][0].startswith("a.b_") and found[1][1] == "2"


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
    assert metric_rows(rows) == [("h_x28_y_x29_", 0.5, 1000, 3), ("loss", 1.0, 1000, 5)]


def test_texts_go_in_chunks_and_at_the_length_that_mlflow_accepts() -> None:
    chunks = list(text_chunks("params", [(f"key/{number}", "x" * 7000) for number in range(BATCH["params"] + 1)]))
    assert [len(chunk) for chunk in chunks] == [BATCH["params"], 1]
    assert chunks[1][0][0] == "key/100" and {len(text) for chunk in chunks for _, text in chunk} == {PARAM_CHARACTERS}
    assert list(text_chunks("tags", [])) == []
