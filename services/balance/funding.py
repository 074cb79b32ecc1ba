"""The charge path of accounts that have credits: what credits pay of a batch, posted beside the charges themselves.

The batch posts each charge whole to the wallet or the unbilled amount; what credits pay of it comes back by a transaction of
its own, in the same transaction of the database. So accounts without credits cost nothing, and the sums are those of
designs/ledger: credit -2, wallet -3, revenue +5. Wallets are locked before, credits here, in order of their ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from uuid import UUID

from contracts.topics import USAGE_CHARGES
from services.balance import credit_store, ledger, store
from services.balance.book import Book
from services.balance.credits import Credit, Funded, Funding, Use, fund
from services.balance.ended import EndedCalls, shares_to_lock
from services.balance.shares import Shares
from services.kernel.money import parse_amount
from services.runtime.records import Record
from services.runtime.work import Work

GROUP_CREDIT = "group_credit"
"""The timer of a group: a shared credit came or went, or is left to less or more than an account of it can do with, so its
accounts are to be looked at."""

ACCOUNTS_AT_ONCE = 200  # of a group are looked at in one transaction: their wallets are locked for it

# The charge path reads only what it needs of every charge; these fields are read for accounts with credits alone.
_read = USAGE_CHARGES.reading("charge_id", "event_time", "reverses", "replaces").judge


async def pay(
    work: Work,
    batch_id: int,
    records: Iterable[Record],
    account_ids: Collection[str],
    standings: Mapping[str, store.Standing],
    ended: EndedCalls | None,
) -> dict[str, tuple[Funded, store.Standing]]:
    """Let credits pay for the charges of these accounts, whose wallets are locked; what was paid, and the wallets after it.

    ``ended`` are the calls of the batch: what they hold of shared credits goes back first. What other accounts hold of them is
    not touched; what other calls of the same account hold may be used too, and is held of the account's own money then.
    """
    holding = set() if ended is None else ended.of(account_ids)
    sharing = set() if ended is None else ended.sharing
    held = await shares_to_lock(work, sharing and sharing | holding)
    uses = [use for record in records if (use := _use(record, account_ids)) is not None]
    reversed_ids = {use.reverses for use in uses if use.reverses is not None}
    replaced_ids = {use.replaces for use in uses if use.replaces is not None}
    paid_before = await credit_store.parts_of(work, reversed_ids, replaced_ids) if reversed_ids or replaced_ids else {}
    credits = await credit_store.lock_credits(
        work.connection,
        account_ids,
        {use.group_id for use in uses if use.group_id is not None},
        {part.credit_id for parts in paid_before.values() for part in parts} | {share.credit_id for share in held},
    )
    if holding and not sharing and any(credit.held_nano for credit in credits):
        held = await shares_to_lock(work, holding)
    shares = Shares(sharing | holding, credits, held)
    if ended is not None:
        ended.end(shares)
    shares.tell_holders()
    had_shared = _sharing(credit for credit in credits if credit.remaining_nano > 0)
    funding = fund(uses, credits, paid_before)
    if ended is not None:
        await ended.displace(work, shares)
    touched = {part.credit_id for part in funding.parts} | {credit.credit_id for credit in shares.moved}
    if touched:
        await credit_store.save_credits(work.connection, [credit for credit in credits if credit.credit_id in touched])
        await shares.save_parts(work.connection)
    after = await _post(work, batch_id, funding, {credit.credit_id: credit for credit in credits}, standings)
    looked_at = had_shared ^ _sharing(credit for credit in credits if credit.remaining_nano > 0)
    moved = _sharing(credit for credit in credits if credit.credit_id in touched) - looked_at
    if moved:
        looked_at |= await credit_store.concerned(work.connection, moved)
    await work.set_timers(GROUP_CREDIT, dict.fromkeys(looked_at, work.now))
    return {standing.account_id: (funding.accounts[standing.account_id], standing) for standing in after}


async def _post(
    work: Work,
    batch_id: int,
    funding: Funding,
    by_id: Mapping[UUID, Credit],
    standings: Mapping[str, store.Standing],
) -> list[store.Standing]:
    """Post what credits paid, and add it to the wallets; those as they stand then."""
    if not funding.parts:
        return []
    await credit_store.append_parts(work, funding.parts)
    book = Book()
    additions = []
    for account_id in sorted(funding.accounts):
        funded, standing = funding.accounts[account_id], standings[account_id]
        book.post(
            work, "credit_used", f"{batch_id}/{account_id}", standing.currency, _entries(account_id, funded, by_id)
        )
        own = sum(
            -nano
            for credit_id, nano in funded.by_credit.items()
            if by_id[credit_id].account_id is not None and by_id[credit_id].expired_at is None
        )
        additions.append(
            store.Addition(account_id, "", standing.currency, funded.wallet_nano, funded.unbilled_nano, own)
        )
    await book.write(work)
    return await store.add_to_wallets(work, additions)


def _use(record: Record, account_ids: Collection[str]) -> Use | None:
    charge = record.message.data
    account_id: str = charge.account_id
    if account_id not in account_ids:
        return None
    more = _read(record.value or b"")["data"]
    return Use(
        more["charge_id"],
        account_id,
        charge.group_id,
        charge.bill_to,
        charge.plan == "invoiced",
        datetime.fromisoformat(more["event_time"]),
        parse_amount(charge.amount, signed=True),
        more["reverses"],
        more.get("replaces"),
    )


def _entries(account_id: str, funded: Funded, by_id: Mapping[UUID, Credit]) -> tuple[ledger.Entry, ...]:
    valid = {each: nano for each, nano in funded.by_credit.items() if by_id[each].expired_at is None}
    return ledger.credit_used(
        account_id,
        {str(each): nano for each, nano in valid.items()},
        wallet=funded.wallet_nano,
        unbilled=funded.unbilled_nano,
        breakage=sum(funded.by_credit.values()) - sum(valid.values()),
    )


def _sharing(credits: Iterable[Credit]) -> set[str]:
    """The groups whose accounts share one of these."""
    return {credit.group_id for credit in credits if credit.account_id is None and credit.group_id is not None}
