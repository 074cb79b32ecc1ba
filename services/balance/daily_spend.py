"""What accounts with limits have spent on each UTC day, by the event time of their charges: counted, and told.

A call of yesterday that comes late counts for yesterday; a correction is a charge below zero on the day of what it
corrects. Rows are kept from the moment an account gets its first limit; what was posted earlier that day is taken over, for
the account as a whole. Its wallet is locked before its rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time

from contracts.balance import BalanceEventKind
from contracts.topics import USAGE_CHARGES
from services.balance import store
from services.balance.spending import REACHED, Told, to_tell
from services.balance.wallets import Wallet
from services.kernel.money import format_nano, parse_amount
from services.runtime.records import Record
from services.runtime.work import Work

WHOLE = ""  # in the place of an outbound profile: the account as a whole

# The charge path reads only what it needs of every charge; these fields are read for accounts with limits alone.
_read = USAGE_CHARGES.reading("event_time", "outbound_profile").judge


async def count(work: Work, records: Sequence[Record], account_ids: Collection[str]) -> list[store.Spent]:
    """Add the charges of these accounts to their days; returns the rows of which something is to be told."""
    counted = frozenset(account_ids)
    sums: dict[store.SpendKey, int] = defaultdict(int)
    for record in records:
        charge = record.message.data
        account_id: str = charge.account_id
        if account_id not in counted:
            continue
        nano = parse_amount(charge.amount, signed=True)
        use = _read(record.value or b"")["data"]
        day = date.fromisoformat(use["event_time"][:10])
        sums[account_id, day, WHOLE] += nano
        profile = use.get("outbound_profile")
        if profile is not None:
            sums[account_id, day, profile] += nano
    return await add(work, sums)


async def add(work: Work, sums: Mapping[store.SpendKey, int]) -> list[store.Spent]:
    """Add nanos to days; returns the rows of which something is to be told. Days that are over are not spoken of."""
    spent = await store.add_to_spend(work, sums)
    today = work.now.date()
    return [row for row in spent if row.day >= today and _new(row) is not None]


async def limit(
    work: Work, wallets: Mapping[str, Wallet], limits: Iterable[store.SpendLimit], new: Collection[str]
) -> None:
    """Set limits of accounts whose wallets are in hand. One that today's spend has reached already is told at once.

    ``new`` names the accounts that had none until now.
    """
    limits = list(limits)
    await store.save_limits(work, limits)
    today = work.now.date()
    sums = {(each.account_id, today, each.outbound_profile): 0 for each in limits}
    if new:
        midnight = datetime.combine(today, time(), UTC)
        for account_id, nano in await store.charged_since(work, new, midnight):
            sums[account_id, today, WHOLE] = nano
    await tell(work, wallets, await add(work, sums))


async def tell(work: Work, wallets: Mapping[str, Wallet], spent: Sequence[store.Spent]) -> None:
    """Tell what these rows have come to, once; the wallets are in hand."""
    told: list[store.SpendTold] = []
    for row in sorted(spent):
        new = _new(row)
        if new is None:
            continue
        kind: BalanceEventKind = "spend_limit_reached" if new.level == REACHED else "spend_limit_near"
        wallets[row.account_id].tell(
            work,
            kind,
            amount_nano=row.spent_nano,
            limit=format_nano(new.limit_nano),
            outbound_profile=row.outbound_profile or None,
            day=row.day.isoformat(),
        )
        told.append(store.SpendTold(row.account_id, row.day, row.outbound_profile, new.level, new.limit_nano))
    if told:
        await store.save_told(work, told)


def _new(row: store.Spent) -> Told | None:
    before = Told(row.told, row.told_limit_nano) if row.told_limit_nano is not None else None
    return to_tell(row.spent_nano, row.limit_nano, before)
