"""``JUDGES``: every judge by its kind, found by the names of the files beside this one (``tasks/judges/base.py`` has the rules)."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from pydantic import create_model

import tasks.judges
from tasks.judges.base import JudgeKind
from tasks.runtime.facts import Facts

_NO_JUDGES = {"base", "registry"}


def _find() -> dict[str, JudgeKind]:
    found: dict[str, JudgeKind] = {}
    for module in pkgutil.iter_modules(tasks.judges.__path__):
        if module.name not in _NO_JUDGES:
            judge: JudgeKind = import_module(f"tasks.judges.{module.name}").JUDGE
            assert judge.kind == module.name, f"tasks/judges/{module.name}.py describes the judge {judge.kind}"
            found[judge.kind] = judge
    return found


JUDGES = _find()


def facts_of_all() -> type[Facts]:
    """Build one model with the facts of every judge; those of judges that did not run have their defaults."""
    models = dict.fromkeys(judge.facts for judge in JUDGES.values() if judge.facts is not Facts)
    return create_model("JudgeFacts", __base__=tuple(models), __doc__="Facts of the judge that ran.")
