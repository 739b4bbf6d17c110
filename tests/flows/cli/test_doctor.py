"""`dora doctor`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from flows.cli import app
from infra import doctor
from infra.doctor import Check


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (None, 0), (False, 1)])
def test_only_what_must_be_fixed_fails(ok: bool | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "checks", lambda settings: [Check("memory", ok, "3 GB", "buy some")])
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == code and "memory: 3 GB" in shown.stdout and ("buy some" in shown.stdout) == (ok is not True)
    document = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert document == {"checks": [{"name": "memory", "ok": ok, "detail": "3 GB", "hint": "buy some"}]}
