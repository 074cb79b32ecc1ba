"""The cast: who takes part, with what, and what must come out (`deploy/demo/cast.json`); and the month it is played in."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from services.kernel.errors import InvalidInput
from services.kernel.period import Period, period_of
from services.usage.importing import FORMATS, ImportReport, SwitchProfile, read_profile

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "demo"
SAMPLE_BOUNDARY = datetime(2018, 12, 1, tzinfo=UTC)
"""The month's end in the sample file that becomes the newest month's end of today."""

MIDNIGHT_S = 180  # the top-up limit depends on the day: the demo must not run into another one


def cast() -> dict[str, Any]:
    """The whole table."""
    return dict(json.loads(path("cast.json").read_text(encoding="utf-8")))


def path(name: str) -> Path:
    """A file of the demo's data."""
    found = FOLDER / name
    if not found.exists():
        raise InvalidInput(f"{found} is missing: run from a whole checkout of the project", field="deploy/demo")
    return found


@dataclass(frozen=True)
class Sample:
    """What the switch's file holds, read once before anything is published."""

    file: Path
    profile: SwitchProfile
    report: ImportReport
    newest: datetime
    inbound_rows: Counter[str]


def sample() -> Sample:
    """The records of the switch, with the instant of the newest call that is published."""
    profile = read_profile(path("switch_profile.json"))
    file, report = path("asterisk_master.csv"), ImportReport()
    newest, inbound = SAMPLE_BOUNDARY, Counter[str]()
    with file.open("rb") as records:
        for leg in FORMATS["asterisk"](records, profile, report):
            data = leg.event["data"]
            newest = max(newest, datetime.fromisoformat(data["ended_at"]))
            if data["direction"] == "inbound":
                inbound[data["called"]] += 1
    return Sample(file, profile, report, newest, inbound)


def boundary(now: datetime, newest: datetime) -> datetime:
    """The newest month's end of which all records lie in the past once the sample's month's end is moved there.

    >>> newest = datetime(2018, 12, 3, 14, 15, 23, tzinfo=UTC)
    >>> boundary(datetime(2026, 11, 21, tzinfo=UTC), newest).date().isoformat()
    '2026-11-01'
    >>> boundary(datetime(2026, 11, 3, 14, tzinfo=UTC), newest).date().isoformat()
    '2026-10-01'
    """
    end = period_of(now).start
    while end + (newest - SAMPLE_BOUNDARY) >= now:
        end = month_before(end).start
    return end


def month_before(end: datetime) -> Period:
    """The month that ends at an instant."""
    return period_of(end - timedelta(seconds=1))


def until_safe(now: datetime) -> timedelta:
    """How long to wait so that the demo does not run over 00:00 UTC.

    >>> until_safe(datetime(2026, 11, 21, 23, 58, tzinfo=UTC)).seconds, until_safe(datetime(2026, 11, 21, 12, tzinfo=UTC)).seconds
    (120, 0)
    """
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    left = midnight - now
    return left if left < timedelta(seconds=MIDNIGHT_S) else timedelta(0)
