"""Automations of a Prefect server: crash detection for runs of this package, and notices to a webhook.

*Zombies.* A flow run whose process is gone stays Running for ever. Prefect's remedy: runs send heartbeats
(``PREFECT_FLOWS_HEARTBEAT_FREQUENCY``, 180 s by default), and an automation sets runs that missed three to Crashed. `dora reap` ends
their Ray jobs and MLflow runs. A run whose worker died between taking it and starting its process sends none, stays Pending, and holds
a place of its queue (``flows/deployment/deploy.py``): `dora reap` ends those, and an automation the runs of `reap` itself. Not all runs:
each event of each run would be written to the database once more, and two hundred queued runs lock SQLite often enough.
Left out: a run that suspends within the fraction of a second after a heartbeat was sent and before it arrived is crashed, too; its model
stays challenger.

*Notices.* A POST of JSON for each run of ours that fails or crashes, and for each of our events (``flows/running/events.py``), of which a
run that a guard rail stops is one::

    {"text": "<one sentence>", "event": …, "project": …, "run": …, "cause": …, "link": …, "figures": {…}}

Chat services show ``text``. The address is a secret: it lives in a Prefect block, encrypted, and nowhere in logs.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from flows.running.states import STOPPED

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

PREFIX = "dora: "
TAG = "dora"
"""Tag of our deployments, and so of their runs."""
OURS = {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
UPKEEP = "upkeep"
"""Work queue of maintenance flows (reap, gc)."""
BLOCK = "dora-webhook"
MISSED_HEARTBEATS = 3
PENDING_LIMIT = timedelta(minutes=10)
"""A process of a busy machine takes seconds to start; a pod may wait hours for its place, which is why this is for process pools."""
AGAIN = "start it again: what is finished is kept"

FAILURE = """\
{% set cause = flow_run.state.message or flow_run.state.name %}\
{"text": {{ (flow_run.name ~ ": " ~ flow_run.state.name ~ ": " ~ cause) | tojson }}, "event": {{ event.event | tojson }}, \
"project": {{ flow_run.name.split(" · ")[0] | tojson }}, "run": {{ flow_run.name | tojson }}, "cause": {{ cause | tojson }}, \
"link": {{ ("UI/runs/flow-run/" ~ flow_run.id) | tojson }}, "figures": {}}"""

HAPPENING = """\
{% set sent = event.payload %}\
{"text": {{ (sent.run ~ ": " ~ sent.message) | tojson }}, "event": {{ event.event | tojson }}, "project": {{ sent.project | tojson }}, \
"run": {{ sent.run | tojson }}, "cause": {{ sent.message | tojson }}, "link": {{ sent.link | tojson }}, \
"figures": {{ sent.figures | tojson }}}"""
"""Jinja, rendered by the Prefect server; ``tojson`` also closes what a message might open."""


def install(api_url: str, webhook: str | None) -> list[str]:
    """Create our automations, or bring them to this release's state; safe to repeat. Whether one is switched on stays as it is.

    Args:
        api_url: ``http://host:4200/api``.
        webhook: address for notices; None = the one given before, if any.

    Returns:
        One line per automation.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    lines = []
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        block = _webhook_block(client, webhook)
        seconds = get_current_settings().flows.heartbeat_frequency
        wanted = list(automations(api_url.removesuffix("/api"), block, seconds))
        known = {automation.name: automation for automation in client.read_automations()}
        lines += [f"{automation.name}: {_ensure(client, automation, known.get(automation.name))}" for automation in wanted]
    if seconds is None:
        lines.append("PREFECT_FLOWS_HEARTBEAT_FREQUENCY is off: runs whose process is gone stay Running")
    if block is None:
        lines.append("no webhook is known: failures and decisions are sent nowhere; `dora deploy --webhook URL` sets one")
    return lines


def _ensure(client: SyncPrefectClient, automation: AutomationCore, before: Automation | None) -> str:
    """Create or update an automation; an unchanged one is left alone, since an update resets the server's timers of silent runs."""
    if before is None:
        client.create_automation(automation)
        return "created"
    automation = automation.model_copy(update={"enabled": before.enabled})
    if before.model_dump(include=set(type(automation).model_fields)) == automation.model_dump():
        return "unchanged"
    client.update_automation(before.id, automation)
    return "updated"


def automations(ui: str, block: UUID | None, heartbeat_seconds: int | None) -> Iterator[AutomationCore]:
    """Yield the automations that the server should have.

    Args:
        ui: address of Prefect's pages.
        block: the webhook's; None = no notices.
        heartbeat_seconds: interval of a run's heartbeats; None = heartbeats are off.
    """
    yield from _crash_detection(heartbeat_seconds)
    if block is not None:
        yield from _notices(ui, block)


def _crash_detection(heartbeat_seconds: int | None) -> Iterator[AutomationCore]:
    """Yield the automations that set runs to Crashed: upkeep that never began, runs without a heartbeat."""
    from prefect.client.schemas.objects import StateType
    from prefect.events import ChangeFlowRunState, EventTrigger, Posture
    from prefect.events.schemas.automations import AutomationCore

    heartbeat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", STOPPED, "Crashed", "Cancelled", "Suspended", "Paused")}

    def silence(of: Any, after: str, expect: set[str], within: timedelta) -> EventTrigger:
        """Return a trigger for each run that, within a time after an event, has sent neither an expected one nor its end."""
        return EventTrigger(
            match=RUNS,
            match_related=of,
            after={after},
            expect=expect | ends,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        )

    yield AutomationCore(
        name=f"{PREFIX}upkeep that never began is Crashed",
        description=f"Sets runs of queue {UPKEEP} to Crashed that a worker took {PENDING_LIMIT} ago and did not start: it is gone.",
        enabled=True,
        trigger=silence(
            [
                {"prefect.resource.role": "work-pool", "prefect.work-pool.type": "process"},
                {"prefect.resource.role": "work-queue", "prefect.resource.name": UPKEEP},
            ],
            "prefect.flow-run.Pending",
            {"prefect.flow-run.Running", "prefect.flow-run.Cancelling"},
            PENDING_LIMIT,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"not started within {PENDING_LIMIT}: {AGAIN}")],
    )
    if heartbeat_seconds is not None:
        limit = timedelta(seconds=MISSED_HEARTBEATS * heartbeat_seconds)
        yield AutomationCore(
            name=f"{PREFIX}a run without a heartbeat is Crashed",
            description=f"Sets runs tagged {TAG} to Crashed that have sent nothing for {limit}: their process is gone.",
            enabled=True,
            trigger=silence(OURS, heartbeat, {heartbeat}, limit),
            actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {limit}: its process is gone; {AGAIN}")],
        )


def _notices(ui: str, block: UUID) -> Iterator[AutomationCore]:
    """Yield the automations that send failures and decisions to the webhook."""
    from prefect.events import CallWebhook, EventTrigger, Posture
    from prefect.events.schemas.automations import AutomationCore

    failed = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    project = {"prefect.resource.id": "dora.project.*"}
    for name, what, trigger, payload in (
        (
            "notice of failures",
            f"runs tagged {TAG} that failed or crashed",
            EventTrigger(match=RUNS, match_related=OURS, expect=failed, for_each={"prefect.resource.id"}, posture=Posture.Reactive),
            FAILURE.replace("UI/", f"{ui}/"),
        ),
        (
            "notice of decisions",
            "calibrations that are ready, questions, promotions, refusals and guard rails",
            EventTrigger(match=project, expect={"dora.*"}, posture=Posture.Reactive),
            HAPPENING,
        ),
    ):
        yield AutomationCore(
            name=f"{PREFIX}{name}",
            description=f"Sends {what} to the webhook of block {BLOCK}.",
            enabled=True,
            trigger=trigger,
            actions=[CallWebhook(block_document_id=block, payload=payload)],
        )


def _webhook_block(client: SyncPrefectClient, webhook: str | None) -> UUID | None:
    """Return the id of the block with the address: written now, or before; None without one."""
    from prefect.blocks.webhook import Webhook
    from prefect.exceptions import ObjectNotFound
    from prefect.types import SecretDict
    from pydantic import SecretStr

    if webhook is not None:
        block = Webhook(url=SecretStr(webhook), headers=SecretDict({"Content-Type": "application/json"}))
        return cast(UUID, block.save(BLOCK, overwrite=True))
    try:
        return client.read_block_document_by_name(BLOCK, Webhook.get_block_type_slug(), include_secrets=False).id
    except ObjectNotFound:
        return None
