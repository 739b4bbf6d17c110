"""Names that Prefect has made up for a flow run, told apart from names that a person has typed, which are kept.

Prefect's server takes two words of the library coolname (``brave-otter``), the form of its pages a Greek letter and a star's name
(``alpha3-cygni``). A typed name of one of these forms cannot be told apart: put a space into it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"
OF_THE_FORM = re.compile(rf"({GREEK.replace(' ', '|')})\d*-[a-z-]+")


def is_generated(name: str) -> bool:
    """Whether Prefect has made the name up."""
    words = name.split("-")
    return OF_THE_FORM.fullmatch(name) is not None or (len(words) == 2 and all(word in _words() for word in words))


@cache
def _words() -> frozenset[str]:
    import coolname
    from coolname.loader import load_config

    lists = load_config(Path(coolname.__file__).parent / "data").values()
    found = (one.get("words") for one in lists)
    return frozenset(word for words in found if isinstance(words, list | tuple) for word in words if isinstance(word, str))
