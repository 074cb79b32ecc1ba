"""Billing months: half-open, gapless, in the group's zone."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.errors import InvalidInput
from services.kernel.period import is_boundary, next_period, period_named, period_of

zones = st.sampled_from(["UTC", "America/Detroit", "Europe/Paris", "Asia/Kolkata", "Pacific/Auckland", "Pacific/Apia"])
instants = st.datetimes(datetime(2012, 1, 1), datetime(2100, 1, 1)).map(lambda value: value.replace(tzinfo=UTC))  # noqa: DTZ001


@given(instants, zones)
def test_every_instant_is_in_exactly_one_period(instant, zone):
    period = period_of(instant, zone)
    assert period.start <= instant < period.end
    assert instant in period
    after = next_period(period, zone)
    assert after.start == period.end
    assert instant not in after
    assert period_named(period.name, zone) == period
    assert is_boundary(period.end, zone)
    assert not is_boundary(period.end - timedelta(microseconds=1), zone)


def test_daylight_saving_moves_the_boundary_in_utc():
    assert period_named("2026-03", "America/Detroit").start == datetime(2026, 3, 1, 5, tzinfo=UTC)
    assert period_named("2026-03", "America/Detroit").end == datetime(2026, 4, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize("name", ["2026-13", "2026-00", "26-01", "2026-1", "2026-01 ", "0000-01", "9999-12", ""])
def test_a_name_that_is_no_month_is_refused(name):
    with pytest.raises(InvalidInput) as refused:
        period_named(name)
    assert refused.value.field == "period"
