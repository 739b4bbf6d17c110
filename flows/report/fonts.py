"""Fonts for texts that matplotlib's own font lacks (Chinese, Japanese, Korean and others): of those installed on this machine.

Matplotlib draws a character that no font of its list has as a box, and only warns. MLflow's PNG files need the fonts; in a report the text
stays text, and the browser chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Hebrew, Arabic."""
PREFERRED = ("Noto Sans", "Source Han Sans", "WenQuanYi", "IPA", "Nanum", "Droid Sans Fallback", "PingFang", "Microsoft YaHei")
"""Beginnings of the names of families that are taken first."""
BOXES = "Last Resort"
"""Comes with matplotlib, and draws a box for every character."""


def fit_fonts(figure: Figure) -> None:
    """Give every text of a figure the fonts that draw its characters, where such are installed. Costs nothing for other texts."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    families = families_for("".join(sorted({character for text in texts for character in text.get_text()})))
    if families == [BASE]:
        return
    for text in texts:
        text.set_fontfamily(families)
    for axes in figure.axes:
        axes.tick_params(labelfontfamily=families)


@cache
def families_for(characters: str) -> list[str]:
    """Return :data:`BASE` and the installed families that together draw ``characters``; those that no font has stay missing."""
    from matplotlib import font_manager

    missing = {ord(each) for each in characters if each.isprintable()} - _characters(font_manager.findfont(BASE))
    families = [BASE]
    for family, path in _installed() if missing else ():
        has = missing & _characters(path)
        if has:
            families.append(family)
            missing -= has
        if not missing:
            break
    return families


def _installed() -> Iterator[tuple[str, str]]:
    """(family, file) of every upright font, preferred families first."""
    from matplotlib import font_manager

    drawing = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and not font.name.startswith(BOXES)]
    fonts = {font.name: font.fname for font in drawing}
    yield from sorted(fonts.items(), key=lambda font: (not font[0].startswith(PREFERRED), "Sans" not in font[0], font[0]))


@cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(path).get_charmap())
