"""The charge path, hot: one batch, one transaction, about ten statements however many charges.

Folded per account; the batch and its transactions are appended, the postings told, the wallets locked last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any

from msgspec import UNSET
from pydantic_core import to_json

from contracts.topics import BALANCE_POSTINGS, USAGE_CHARGES
from services.balance import daily_spend, funding, store
from services.balance.chain import Charged, content_of_batch
from services.balance.credits import Funded
from services.balance.ended import EndedCalls
from services.balance.evaluation import Tell, demands_attention, evaluate, load
from services.kernel.errors import AmountError, Corrupt
from services.kernel.money import format_nano, parse_amount
from services.runtime.links import judge
from services.runtime.records import Record
from services.runtime.work import Work

AMOUNTS_REMEMBERED = 65_536  # the same few prices and durations come again and again

Posted = tuple[str | None, str | None, bool]  # group, bill_to, whether it is unbilled


@lru_cache(AMOUNTS_REMEMBERED)
def _nano(text: str) -> int:
    return parse_amount(text, signed=True)


class Folded:
    """The charges of one account in a batch, added up."""

    __slots__ = ("charges", "currency", "organization_id", "posted", "revenue", "takes_back")

    def __init__(self, organization_id: str, currency: str) -> None:
        self.organization_id = organization_id
        self.currency = currency
        self.charges = 0
        self.takes_back = False
        self.revenue: dict[str, int] = defaultdict(int)
        self.posted: dict[Posted, list[int]] = defaultdict(lambda: [0, 0])  # [charges, nanos]


_ALIKE = ("account_id", "organization_id", "currency", "product", "group_id", "bill_to", "plan")
_alike = attrgetter(*_ALIKE)

READING = USAGE_CHARGES.reading(*_ALIKE, "amount", "replaces")
"""How a charge is read here."""


def fold(records: Iterable[Record]) -> dict[str, Folded]:
    """Sums per account.

    Raises `LinkLost` for a charge that is not of its contract, `Corrupt` for an account charged in two currencies.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}  # charges that differ in their amounts only
    takers: set[str] = set()
    for record in records:
        charge = record.message.data
        try:
            nano = _nano(charge.amount)
        except AmountError:
            judge(READING, record)
            raise
        if charge.replaces is not UNSET:
            judge(READING, record)  # in others that are alike it is another one
            takers.add(charge.account_id)
        elif nano < 0:
            takers.add(charge.account_id)
        sums = alike.get(key := _alike(charge))
        if sums is None:
            judge(READING, record)
            alike[key] = [1, nano]
        else:
            sums[0] += 1
            sums[1] += nano
    accounts: dict[str, Folded] = {}
    for (account_id, organization_id, currency, product, group_id, bill_to, plan), (count, nano) in alike.items():
        folded = accounts.get(account_id)
        if folded is None:
            folded = accounts[account_id] = Folded(organization_id, currency)
        elif folded.currency != currency:
            raise Corrupt(f"account {account_id} is charged in {folded.currency} and {currency}")
        folded.charges += count
        folded.revenue[product] += nano
        posted = folded.posted[group_id, bill_to, plan == "invoiced"]
        posted[0] += count
        posted[1] += nano
    for account_id in takers:
        accounts[account_id].takes_back = True
    return accounts


async def charges(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Post a batch of charges and look at the wallets whose state demands it."""
    accounts = fold(records)
    links = {f"{link}|{topic}/{partition}": span for (link, topic, partition), span in work.taken.items()}
    rows: list[Charged] = []
    additions: list[store.Addition] = []
    for account_id in sorted(accounts):
        folded = accounts[account_id]
        unbilled = -sum(sums[1] for posted, sums in folded.posted.items() if posted[2])
        wallet = -sum(folded.revenue.values()) - unbilled
        rows.append(
            Charged(
                account_id, folded.currency, folded.charges, wallet, unbilled,
                list(folded.revenue), list(folded.revenue.values()),
            )
        )  # fmt: skip
        additions.append(store.Addition(account_id, folded.organization_id, folded.currency, wallet, unbilled))
    content = content_of_batch(work.now, links, rows)
    batch_id, credited = await store.append_batch(work, links, content, _owners(accounts))
    for account_id in sorted(accounts):
        if account_id not in credited:
            _tell_postings(work, batch_id, account_id, accounts[account_id], _BY_NO_CREDIT)
    await store.append_charged(work, batch_id, rows)
    await (
        work.write_published()
    )  # to encode a thousand postings takes longer than all that is done under the wallets' locks
    standings = await store.add_to_wallets(work, additions)
    for standing in standings:
        if standing.currency != accounts[standing.account_id].currency:
            raise Corrupt(f"a charge in {accounts[standing.account_id].currency} reached a {standing.currency} wallet")
    ended = await EndedCalls.load(work, records, standings)
    if credited or (ended is not None and ended.sharing):
        after = {standing.account_id: standing for standing in standings}
        funded = await funding.pay(work, batch_id, records, credited, after, ended)
        for account_id in sorted(credited):
            paid = _BY_NO_CREDIT
            if account_id in funded:
                paid, after[account_id] = funded[account_id]
            _tell_postings(work, batch_id, account_id, accounts[account_id], paid)
        standings = list(after.values())
    elif ended is not None:
        ended.end(None)
    if ended is not None:
        standings = await ended.save(work, standings)
    demanding = {standing.account_id for standing in standings if demands_attention(standing)}
    counted = [standing.account_id for standing in standings if standing.spend_counted]
    spent = await daily_spend.count(work, records, counted) if counted else []
    demanding.update(row.account_id for row in spent)
    if demanding:
        wallets = await load(work, demanding)
        await daily_spend.tell(work, wallets, spent)
        await evaluate(work, wallets, tell=tell)


_BY_NO_CREDIT = Funded()


def _owners(accounts: Mapping[str, Folded]) -> dict[tuple[str, str | None], bool]:
    """Whose credits may pay: the (account, group) of charges, and whether a charge of the account or of the group is taken back
    or replaced: what one gives back to a credit that was spent may pay for the others of its group."""
    owners = {
        (account_id, group_id): folded.takes_back
        for account_id, folded in accounts.items()
        for group_id, _, _ in folded.posted
    }
    giving_back = {group_id for (_, group_id), takes_back in owners.items() if takes_back and group_id is not None}
    return {pair: takes_back or pair[1] in giving_back for pair, takes_back in owners.items()}


def _tell_postings(work: Work, batch_id: int, account_id: str, folded: Folded, funded: Funded) -> None:
    """One posting per (group, bill_to): charged = credits + wallet + unbilled."""
    totals: dict[tuple[str | None, str | None], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for (group_id, bill_to, is_unbilled), (count, nano) in folded.posted.items():
        total = totals[group_id, bill_to]
        total[0] += count
        total[2 if is_unbilled else 1] += nano
    for (group_id, bill_to, is_unbilled), nano in funded.by_invoice.items():
        total = totals[group_id, bill_to]
        total[2 if is_unbilled else 1] -= nano
        total[3] += nano
    for number, ((group_id, bill_to), (count, wallet, unbilled, credits)) in enumerate(totals.items()):
        # Each amount is written once: nearly all charges of an account are paid in one way.
        charged = format_nano(wallet + unbilled + credits)
        posting = {
            "account_id": account_id,
            "group_id": group_id,
            "bill_to": bill_to,
            "currency": folded.currency,
            "charges": count,
            "charged": charged,
            "credits": format_nano(credits) if credits else "0",
            "wallet": format_nano(wallet) if unbilled or credits else charged,
            "unbilled": (format_nano(unbilled) if wallet or credits else charged) if unbilled else "0",
        }
        name = f"{batch_id}:{account_id}:{number}"
        work.publish(BALANCE_POSTINGS, group_id or account_id, name, to_json(posting))
