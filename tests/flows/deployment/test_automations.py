"""What a Prefect server is told to do for our runs; the server's own template engine renders the notices."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from prefect.server.events.actions import CallWebhook
from prefect.server.utilities.user_templates import render_user_template_sync

from flows.deployment.automations import FAILURE, HAPPENING, PREFIX, UPKEEP, automations

NASTY = 'a "quoted" reason, {{ 1 + 1 }}\nwith a second line and </script>'


def render(template: str, **context: Any) -> dict[str, Any]:
    CallWebhook.validate_template(template, "payload")  # as the server does when the automation is saved
    return json.loads(render_user_template_sync(template, context))


def test_a_notice_of_a_failure_has_project_run_cause_and_link() -> None:
    run = SimpleNamespace(id="7", name="demo · dpo · erm", state=SimpleNamespace(name="Failed", message=NASTY))
    template = FAILURE.replace("UI/", "http://host:4200/")
    told = render(template, flow_run=run, event=SimpleNamespace(event="prefect.flow-run.Failed"))
    assert told == {
        "text": f"demo · dpo · erm: Failed: {NASTY}",
        "event": "prefect.flow-run.Failed",
        "project": "demo",
        "run": "demo · dpo · erm",
        "cause": NASTY,
        "link": "http://host:4200/runs/flow-run/7",
        "figures": {},
    }
    crashed = SimpleNamespace(id="7", name="demo", state=SimpleNamespace(name="Crashed", message=None))
    assert render(template, flow_run=crashed, event=SimpleNamespace(event="e"))["cause"] == "Crashed"


def test_a_notice_of_an_event_carries_its_payload() -> None:
    payload = {"project": "demo", "run": "demo · dpo", "message": NASTY, "link": "http://host/1", "figures": {"kl": 0.5}}
    told = render(HAPPENING, event=SimpleNamespace(event="dora.promoted", payload=payload))
    assert told["text"] == f"demo · dpo: {NASTY}" and told["event"] == "dora.promoted" and told["figures"] == {"kl": 0.5}


def test_what_is_installed_depends_on_heartbeats_and_a_webhook() -> None:
    never_began, zombies, failures, decisions = automations("http://host:4200", uuid4(), 180)
    assert all(a.name.startswith(PREFIX) for a in (never_began, zombies, failures, decisions))
    assert "prefect.flow-run.Pending" not in never_began.trigger.expect >= {"prefect.flow-run.Running", "prefect.flow-run.Cancelled"}
    assert UPKEEP in str(never_began.trigger.match_related), "of other runs it would cost a database write for each event"
    assert zombies.trigger.within.total_seconds() == 540
    assert {"prefect.flow-run.heartbeat", "prefect.flow-run.Suspended", "prefect.flow-run.Completed"} <= zombies.trigger.expect
    assert "prefect.flow-run.Stopped" in zombies.trigger.expect - failures.trigger.expect, "a stop is an end, and has a notice of its own"
    assert "http://host:4200/runs/flow-run/" in failures.actions[0].payload
    assert decisions.trigger.expect == {"dora.*"}
    assert [a.name for a in automations("", None, 180)] == [never_began.name, zombies.name]
    assert [a.name for a in automations("", None, None)] == [never_began.name]
