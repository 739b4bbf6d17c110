"""The flows with a form: one configuration per flow run, for its name and for its work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dora_core.errors import ConfigError
from flows.config.models import RealignConfig
from flows.deployment import form_flows
from flows.deployment.forms import Data, Method

FORM = {"config_file": "demo", "data": Data(), "method": Method(beta=0.5), "overrides": ["project=x"], "until": "promote"}


def begun(monkeypatch: pytest.MonkeyPatch, run_id: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """A flow run that begins; the calls of ``configure``."""
    calls: list[tuple[Any, ...]] = []

    def configure(model: Any, file: str, sections: Any, overrides: Any) -> RealignConfig:
        calls.append((file, sections, overrides))
        if file == "gone.yaml":
            raise ConfigError("no such file")
        return RealignConfig.model_validate({"project": "x", "data": {"train": [{"path": "a"}]}})

    monkeypatch.setattr(form_flows, "_CONFIGURED", {})
    monkeypatch.setattr(form_flows, "this_run", SimpleNamespace(id=run_id, parameters=parameters, flow_name="realign"))
    monkeypatch.setattr(form_flows, "configure", configure)
    return calls


def test_name_and_work_share_one_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = begun(monkeypatch, "run-1", FORM)
    name = form_flows.named(RealignConfig, lambda config: config.project)
    assert name() == "x" and form_flows.configured(RealignConfig).project == "x"
    assert calls == [("demo", [FORM["data"], FORM["method"]], ["project=x"])], "made once, from the sections and the overrides"


def test_another_run_of_the_process_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = begun(monkeypatch, "run-1", FORM)
    form_flows.configured(RealignConfig)
    form_flows.this_run.id = "run-2"
    form_flows.configured(RealignConfig)
    assert len(calls) == 2


def test_a_mistake_is_raised_by_the_run_and_not_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    begun(monkeypatch, "run-1", FORM | {"config_file": "gone.yaml"})
    assert form_flows.named(RealignConfig, lambda config: config.project)() == "realign · gone.yaml"
    with pytest.raises(ConfigError):
        form_flows.configured(RealignConfig)
