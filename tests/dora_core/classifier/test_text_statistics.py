"""Surface statistics by hand, in several scripts; the regressors' constants."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_core.classifier.text_statistics import STATISTICS, SurfaceBasis, surface_statistics


def of(response: str, prompt: str = "How do I cook soup?") -> dict[str, float]:
    return dict(zip(STATISTICS, surface_statistics([prompt], [response])[0], strict=True))


def test_by_hand():
    s = of("Cook soup. Cook soup. Then, eat it!\n- Good luck, 3 times")
    assert (s["sentences"], s["words"]) == (4, 11)
    assert s["words_per_sentence"] == pytest.approx(11 / 4) and s["sentence_spread"] == pytest.approx(np.std([2, 2, 3, 4]))
    assert (s["adjacent_repeats"], s["repeated_sentences"]) == (1, 1)
    assert (s["repeated_words"], s["repeated_2grams"], s["repeated_3grams"]) == (2, 1, 0)
    assert s["distinct_words"] == pytest.approx(9 / 11)
    assert (s["commas"], s["exclamations"], s["digits"], s["lines"], s["list_items"], s["dashes"]) == (2, 1, 1, 1, 1, 1)
    assert (s["prompt_words"], s["prompt_share"], s["prompt_covered"]) == (4, pytest.approx(4 / 11), pytest.approx(2 / 5))


def test_repeats_that_are_not_adjacent():
    s = of("One. Two. One. One.")
    assert (s["adjacent_repeats"], s["repeated_sentences"]) == (1, 2)


def test_other_scripts():
    assert of("你好。你好。再见！")["sentences"] == 3 and of("你好。你好。再见！")["adjacent_repeats"] == 1
    assert of("Как дела? Хорошо, спасибо…")["words"] == 4


def plain(prompt: str, response: str) -> dict[str, float]:
    """The same statistics from their definitions, one after another."""
    lower, known = response.lower(), set(re.findall(r"\w+", prompt.lower()))
    words = re.findall(r"\w+", lower)
    sentences = [s.strip() for s in re.findall(r"[^.!?。！？…\n]+[.!?。！？…]*", lower) if s.strip()]
    lengths = [len(re.findall(r"\w+", s)) for s in sentences] or [0]
    grams = {n: [tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for n in (2, 3, 4)}
    shared = [w for w in words if w in known]

    def count(pattern: str) -> int:
        return len(re.findall(pattern, response))

    return {
        "sentences": len(sentences),
        "words": len(words),
        "characters": len(response),
        "words_per_sentence": np.mean(lengths),
        "sentence_spread": np.std(lengths),
        "adjacent_repeats": sum(a == b for a, b in pairwise(sentences)),
        "repeated_sentences": len(sentences) - len(set(sentences)),
        "repeated_words": len(words) - len(set(words)),
        **{f"repeated_{n}grams": len(g) - len(set(g)) for n, g in grams.items()},
        "distinct_words": len(set(words)) / max(1, len(words)),
        "commas": count(r"[,，、]"),
        "exclamations": count(r"[!！]"),
        "questions": count(r"[?？]"),
        "colons": count(r"[:;：；]"),
        "quotes": count("[\"'“”‘’«»]"),
        "brackets": count(r"[()\[\]{}（）]"),
        "dashes": count(r"[-–—]"),
        "digits": count(r"\d"),
        "capitals": count(r"[A-Z]"),
        "lines": count(r"\n"),
        "list_items": count(r"(?m)^\s*(?:[-*•]|\d+[.)])\s"),
        "markdown": count(r"(?m)^#+ |\*\*|`"),
        "not_ascii": count(r"[^\x00-\x7f]"),
        "prompt_words": len(shared),
        "prompt_share": len(shared) / max(1, len(words)),
        "prompt_covered": len(set(shared)) / max(1, len(known)),
    }


LIKELY = st.text(st.sampled_from("ab A1٣.!?…。，,;:-–*#`\"'()[]\n é你𝔘"), max_size=60)


@given(st.lists(st.tuples(LIKELY | st.text(), LIKELY | st.text()), min_size=1, max_size=5))
def test_all_texts_at_once_are_counted_as_each_alone(pairs):
    values = surface_statistics([p for p, _ in pairs], [r for _, r in pairs])
    for row, (prompt, response) in zip(values, pairs, strict=True):
        assert dict(zip(STATISTICS, row, strict=True)) == pytest.approx(plain(prompt, response), abs=1e-12)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_any_text_has_finite_statistics(pairs):
    values = surface_statistics([p for p, _ in pairs], [r for _, r in pairs])
    assert values.shape == (len(pairs), len(STATISTICS)) and np.isfinite(values).all() and (values >= 0).all()


def test_regressors_are_standardised_on_the_fitting_rows_and_do_not_extrapolate():
    texts = [" ".join(["word."] * n) for n in range(1, 30)]
    statistics = surface_statistics(["q"] * len(texts), texts)
    basis = SurfaceBasis.fit(statistics)
    regressors = basis(statistics)
    assert regressors.shape == (29, basis.width)
    used = basis.std_B > 0
    np.testing.assert_allclose(regressors[:, used].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(regressors[:, used].std(axis=0), 1)
    assert (regressors[:, ~used] == 0).all() and not used.all()
    far = surface_statistics(["q"], [" ".join(["word."] * 10_000)])
    np.testing.assert_allclose(basis(far)[:, :3], regressors[-1:, :3])
