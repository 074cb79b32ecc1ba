"""Suspended at funds <= 0, delayed by a recharge on its way, restored above zero."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from services.balance.suspension import Restore, Suspend, Unchanged, judge
from services.kernel.money import NANO

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Attempt:
    amount_nano: int
    requested_at: datetime
    state: str = "requested"
    kind: str = "auto"


def minutes_ago(minutes, amount=130 * NANO, **changes):
    return Attempt(amount, NOW - timedelta(minutes=minutes), **changes)


@pytest.mark.parametrize(
    ("funds", "suspended", "outcome"),
    [
        (1, False, Unchanged()),
        (0, False, Suspend()),
        (-1, False, Suspend()),
        (0, True, Unchanged()),
        (1, True, Restore()),
    ],
)
def test_funds_alone(funds, suspended, outcome):
    assert judge(funds_nano=funds, suspended=suspended, attempts=[], now=NOW) == outcome


def test_example_41_a_fresh_recharge_delays_and_an_old_one_does_not():
    fresh = minutes_ago(2)
    assert judge(funds_nano=-5 * NANO, suspended=False, attempts=[fresh], now=NOW) == Unchanged(
        NOW + timedelta(minutes=13)
    )
    assert judge(funds_nano=-5 * NANO, suspended=False, attempts=[minutes_ago(15)], now=NOW) == Suspend()


def test_example_43_a_recharge_that_would_not_lift_it_above_zero_does_not_delay():
    assert judge(funds_nano=-200 * NANO, suspended=False, attempts=[minutes_ago(1)], now=NOW) == Suspend()
    assert judge(funds_nano=-130 * NANO, suspended=False, attempts=[minutes_ago(1)], now=NOW) == Suspend()


def test_only_an_open_automatic_request_delays():
    for other in (minutes_ago(1, state="declined"), minutes_ago(1, state="unknown"), minutes_ago(1, kind="manual")):
        assert judge(funds_nano=-1, suspended=False, attempts=[other], now=NOW) == Suspend()


def test_a_recharge_on_its_way_does_not_restore():
    assert judge(funds_nano=-1, suspended=True, attempts=[minutes_ago(1)], now=NOW) == Unchanged()
