"""Fonts of figures for scripts that matplotlib's own font lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from flows.report import fonts
from flows.report.fonts import BASE, families_for, fit_fonts
from infra.tracking.tracker import _png


@pytest.fixture(autouse=True)
def fresh() -> None:
    families_for.cache_clear()


def test_latin_greek_and_cyrillic_need_no_other_font() -> None:
    assert families_for("abc äß λ жю") == [BASE]


def test_an_installed_font_that_has_the_characters_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which fonts a machine has differs: the serif font plays one that alone has ``模``."""
    path = shutil.copy(font_manager.findfont("DejaVu Serif"), tmp_path / "other.ttf")
    monkeypatch.setattr(fonts, "_installed", lambda: iter([("Empty", "e"), ("Other Sans", path)]))
    has = {font_manager.findfont(BASE): frozenset(map(ord, "abc")), "e": frozenset[int](), path: frozenset([ord("模")])}
    monkeypatch.setattr(fonts, "_characters", has.__getitem__)
    assert families_for("ab模") == [BASE, "Other Sans"]
    figure = Figure()
    axes = figure.subplots()
    axes.set_title("模")
    fit_fonts(figure)
    assert axes.title.get_fontfamily() == [BASE, "Other Sans"]


def test_characters_that_no_font_has_are_told() -> None:
    figure = Figure()
    figure.subplots().set_title("\U000e0100 a \U0010fffd")  # private use: no font draws it
    assert "\U0010fffd" in _png(figure)[1]
    plain = Figure()
    plain.subplots().set_title("a")
    content, missing = _png(plain)
    assert content.startswith(b"\x89PNG") and missing == ""
