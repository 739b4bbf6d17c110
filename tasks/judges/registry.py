"""``JUDGES``: every judge by its kind, found by the names of the files beside this one (``tasks/judges/base.py`` has the rules)."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import tasks.judges
from tasks.judges.base import JudgeKind

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
