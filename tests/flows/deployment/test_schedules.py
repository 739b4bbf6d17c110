"""Schedules across a change of the clock: Prefect's own generator, asked as its scheduler asks it, and what is shipped."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from prefect.server.schemas.schedules import CronSchedule

from flows.deployment.deploy import Deployment, declared

pytestmark = pytest.mark.fault(20)
CHANGES = {
    "Berlin, spring": ("Europe/Berlin", datetime(2027, 3, 28, tzinfo=UTC)),
    "Berlin, autumn": ("Europe/Berlin", datetime(2027, 10, 31, tzinfo=UTC)),
    "New York, spring": ("America/New_York", datetime(2027, 3, 14, tzinfo=UTC)),
    "New York, autumn": ("America/New_York", datetime(2027, 11, 7, tzinfo=UTC)),
}
SHIPPED = [entry for entry in declared() if entry.schedules]


def scheduled(cron: str, zone: str, change: datetime, days: int = 2) -> list[datetime]:
    """All starts that the scheduler creates from ``days`` before a change until as many after it, in UTC.

    It looks again and again, each time for the next three starts or those of the next hour, and adds those it does not have yet
    (Prefect 3.8: ``PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS`` and ``…_MIN_SCHEDULED_TIME``).
    """
    schedule, begin, end = CronSchedule(cron=cron, timezone=zone), change - timedelta(days=days), change + timedelta(days=days)
    found, now = set(), begin
    while now < end:
        seen = []
        for start in schedule._get_dates_generator(start=now, end=now + timedelta(days=100)):
            seen.append(datetime.fromtimestamp(start.timestamp(), UTC))
            if len(seen) >= 3 and start >= now + timedelta(hours=1):
                break
        found.update(seen)
        now += timedelta(days=days) / 96
    return sorted(start for start in found if begin <= start < end)


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_a_shipped_schedule_starts_evenly_whatever_the_clocks_do(entry: Deployment) -> None:
    (schedule,) = entry.schedules
    starts = scheduled(schedule.cron, schedule.timezone, CHANGES["Berlin, autumn"][1], days=1 if entry.name == "reap" else 15)
    (gap,) = {later - earlier for earlier, later in pairwise(starts)}
    assert gap in (timedelta(minutes=10), timedelta(days=1), timedelta(days=7))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 2 * * *", "30 1 * * *", "0 3 * * *"])
def test_a_daily_schedule_in_a_zone_that_changes_its_clock_starts_once_a_day(cron: str, change: str) -> None:
    """Also at an hour that is left out, where Prefect starts an hour early, and at one that comes twice, where it starts once."""
    zone, day = CHANGES[change]
    starts = Counter(start.astimezone(ZoneInfo(zone)).date() for start in scheduled(cron, zone, day))
    around = [day.date() + timedelta(days=n) for n in (-1, 0, 1)]
    assert [starts[date] for date in around] == [1, 1, 1]


def test_a_frequent_schedule_in_such_a_zone_pauses_for_an_hour_which_is_why_ours_are_in_utc() -> None:
    """What ``infra/prefect.yaml`` warns of. If this fails, Prefect has mended it and the warning can go."""
    starts = scheduled("*/10 * * * *", *CHANGES["Berlin, autumn"], days=1)
    assert max(later - earlier for earlier, later in pairwise(starts)) == timedelta(minutes=70)
    assert all(schedule.timezone == "UTC" for entry in SHIPPED for schedule in entry.schedules)
