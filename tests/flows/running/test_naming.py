"""The name of the flow run in this process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.config.models import RealignConfig
from flows.config.run_names import name_of_realignment
from flows.running import naming


@pytest.mark.parametrize(("given", "name"), [("as the paper has it", "as the paper has it"), ("brave-otter", None), (None, None)])
def test_a_typed_name_is_kept(given: str | None, name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DORA_HOME", str(tmp_path))
    monkeypatch.delenv("DORA_STORE", raising=False)
    monkeypatch.setattr(naming, "this_run", SimpleNamespace(name=given))
    config = RealignConfig.model_validate({"project": "p", "data": {"train": [{"path": "/d/a.jsonl"}]}})
    found = naming.naming(name_of_realignment)(config)
    assert found == name if name else found.startswith("p · 20") and found.endswith(" · a.jsonl · dpo · dora λ=auto")
