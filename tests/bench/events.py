"""The customers of the bench and their calls: the same for the same seed, each with the amount it must be charged.

What a call costs is worked out here a second time, in plain integers, so that a run can be checked and not only timed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts.groups import Plan
from services.runtime.outbox import partition_of
from services.usage.books import INBOUND, PriceRow
from services.usage.price_files import PriceFile, read_price_file

ROOT = Path(__file__).resolve().parents[2]
PRICE_FILES = {"list": "voice_prices.csv", "inbound": "inbound_prices_v2.csv"}  # as they stand in deploy/demo

ORGANIZATION = "metro"
PUBLISHER = "bench"
SOURCE = "/switches/bench"

ACCOUNTS = 1_000
INVOICED_SHARE = 0.2
FLEET = 20  # invoiced accounts that share one payer group
RECHARGED = 50  # pay-as-you-go accounts that recharge by themselves now and then
NUMBERS = 50_000  # numbers that are called: most calls go to a number that a cache does not hold
AMERICAN_SHARE, INBOUND_SHARE = 0.7, 0.25
CALL_S_MEAN, CALL_S_MAX = 120.0, 7_200
SPAN = timedelta(days=3)


@dataclass(frozen=True, slots=True)
class Customer:
    """One account. ``fleet`` is the payer group that it shares; without one it has a group of its own."""

    account_id: str
    number: str
    plan: Plan
    fleet: str | None
    recharges: bool


def customers() -> list[Customer]:
    """A fifth is invoiced, twenty to a payer group; the others pay as they go, each alone."""
    invoiced = int(ACCOUNTS * INVOICED_SHARE)
    made = []
    for index in range(ACCOUNTS):
        is_invoiced = index < invoiced
        made.append(
            Customer(
                account_id=f"customer-{index:04d}",
                number=f"+1248555{index:04d}",
                plan="invoiced" if is_invoiced else "payg",
                fleet=f"fleet-{index // FLEET:02d}" if is_invoiced else None,
                recharges=invoiced <= index < invoiced + RECHARGED,
            )
        )
    return made


def price_files() -> dict[str, PriceFile]:
    """The price books that everybody has, by name."""
    return {name: read_price_file((ROOT / "deploy" / "demo" / file).read_bytes()) for name, file in PRICE_FILES.items()}


@dataclass(slots=True)
class Calls:
    """Encoded events as (key, value) per partition, and what must come of them per account, in nanos."""

    partitions: list[list[tuple[bytes, bytes]]]
    count: int = 0
    nano: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def nano_in_all(self) -> int:
        return sum(self.nano.values())


def span_before(now: datetime) -> tuple[datetime, datetime]:
    """The days that calls end in: the last three, not before the month begins unless it has only begun."""
    end = now - timedelta(minutes=1)
    month = datetime(end.year, end.month, 1, tzinfo=UTC)
    start = end - SPAN
    return (max(start, month) if end - month > timedelta(hours=6) else start), end


def calls(count: int, *, seed: int, now: datetime, partitions: int, of_one: bool = False) -> Calls:
    """Answered calls of all customers, or of one, in the order of their ends, keyed by account, as a switch would publish
    them."""
    dice = random.Random(seed)
    made = Calls([[] for _ in range(partitions)])
    accounts = customers()
    keys = [customer.account_id.encode() for customer in accounts]
    homes = [made.partitions[partition_of(customer.account_id, partitions)] for customer in accounts]
    numbers = _numbers(dice)
    inbound = next(row for row in price_files()["inbound"].rows if row.product == INBOUND)
    begin, end = span_before(now)
    step = (end - begin).total_seconds() / count
    text_of = _Clock(begin)
    charged = [0] * len(accounts)
    uniform, below = dice.random, dice.randrange
    for index in range(count):
        who = len(accounts) - 1 if of_one else below(len(accounts))
        customer = accounts[who]
        billable_s = min(CALL_S_MAX, 1 + int(dice.expovariate(1 / CALL_S_MEAN)))
        duration_s = billable_s + below(25)
        ended_s = int(index * step)
        other, price = numbers[below(len(numbers))]
        if uniform() < INBOUND_SHARE:
            direction, caller, called, price = "inbound", other, customer.number, inbound
        else:
            direction, caller, called = "outbound", customer.number, other
        charged[who] += cost(price, billable_s)
        ended = text_of(ended_s)
        value = (
            f'{{"specversion":"1.0","id":"{seed}.{index}","source":"{SOURCE}","type":"tollbook.usage.voice.leg.v1",'
            f'"time":"{ended}","data":{{"account_id":"{customer.account_id}","direction":"{direction}",'
            f'"caller":"{caller}","called":"{called}","started_at":"{text_of(ended_s - duration_s)}",'
            f'"ended_at":"{ended}","answered":true,"duration_s":{duration_s},"billable_s":{billable_s},'
            f'"call_leg_id":"PJSIP/trunk-{index:08x}"}}}}'
        )
        homes[who].append((keys[who], value.encode()))
    made.count = count
    for customer, nano in zip(accounts, charged, strict=True):
        made.nano[customer.account_id] = nano
    return made


def cost(price: PriceRow, billable_s: int) -> int:
    """Nanos of a call: the started increments after the minimum, once rounded half-even.

    >>> cost(PriceRow("voice.outbound", "+1", 14_000_000), 95), cost(PriceRow(INBOUND, "+1", 8_500_000, 0, 1, 1), 1)
    (28000000, 141667)
    """
    seconds = max(billable_s, price.minimum)
    seconds = -(-seconds // price.increment) * price.increment
    whole, rest = divmod(price.price_nano * seconds, 60)
    if rest > 30 or (rest == 30 and whole % 2):
        whole += 1
    return whole + price.connection_fee_nano


class _Clock:
    """Seconds after an instant as the text of a wire, without a datetime for each."""

    def __init__(self, begin: datetime) -> None:
        day = datetime(begin.year, begin.month, begin.day, tzinfo=UTC)
        self._offset_s = int((begin - day).total_seconds()) + 86_400  # a call may have begun on the day before
        self._days = [(day + timedelta(days=number - 1)).strftime("%Y-%m-%d") for number in range(SPAN.days + 4)]
        self._times = [f"T{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}Z" for s in range(86_400)]

    def __call__(self, seconds: int) -> str:
        day, second = divmod(seconds + self._offset_s, 86_400)
        return self._days[day] + self._times[second]


def _numbers(dice: random.Random) -> list[tuple[str, PriceRow]]:
    """Numbers of the price list with the row of their longest prefix, most of them American."""
    prices = {row.prefix: row for row in price_files()["list"].rows}
    american = [prefix for prefix, row in prices.items() if prefix.startswith("+1")]
    abroad = [prefix for prefix in prices if not prefix.startswith("+1")]
    return list(_drawn(dice, prices, american, abroad))


def _drawn(
    dice: random.Random, prices: dict[str, PriceRow], american: list[str], abroad: list[str]
) -> Iterator[tuple[str, PriceRow]]:
    for _ in range(NUMBERS):
        if dice.random() < AMERICAN_SHARE:
            prefix, digits = dice.choice(american), 11
        else:
            prefix, digits = dice.choice(abroad), dice.choice((11, 12))
        missing = digits + 1 - len(prefix)
        number = prefix + "".join(dice.choices("0123456789", k=max(1, missing)))
        longest = next(number[:length] for length in range(len(number), 1, -1) if number[:length] in prices)
        yield number, prices[longest]
