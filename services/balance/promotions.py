"""Promotional credit asked for by commands: granted, approved by a second person, redeemed by a code; and its end.

A grant or a code that promises more than one person may waits for another one. A credit of an account is the account's,
whatever group pays for it; a shared one is spent by all accounts of a payer group of the organization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from contracts.balance import ApproveCredit, GrantCredit, RedeemCode
from services.balance import credit_store, ledger
from services.balance.book import Book
from services.balance.credits import digest_of_code, needs_second_person
from services.balance.evaluation import Tell, evaluate, load
from services.balance.funding import ACCOUNTS_AT_ONCE, GROUP_CREDIT
from services.balance.wallets import Wallet
from services.kernel.errors import InvalidInput, NotFound, NotPermitted, Refused
from services.kernel.ids import derived_id
from services.kernel.money import PAYMENT_NANO_MAX, WALLET_NANO_MAX, format_nano, parse_amount
from services.runtime.work import Work

CREDIT_EXPIRES = "credit_expires"
"""The timer of a credit."""

PromotionCommand = GrantCredit | ApproveCredit | RedeemCode


@dataclass
class Promotions:
    """What the commands of one batch may need, locked, and what they come to. Without such a command nothing is read."""

    wallets: Mapping[str, Wallet] = field(default_factory=dict)
    groups: Mapping[str, credit_store.Group] = field(default_factory=dict)
    vouchers: Mapping[bytes, Any] = field(default_factory=dict)
    proposed: dict[UUID, Any] = field(default_factory=dict)
    redeemed: set[tuple[UUID, str]] = field(default_factory=set)
    times: dict[UUID, int] = field(default_factory=dict)
    new_credits: list[dict[str, Any]] = field(default_factory=list)
    new_redemptions: list[dict[str, Any]] = field(default_factory=list)
    approved: dict[UUID, str] = field(default_factory=dict)
    timers: dict[str, datetime] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    @classmethod
    async def of(cls, work: Work, commands: Iterable[Any], wallets: Mapping[str, Wallet]) -> Promotions:
        """Read and lock what these commands need; ``wallets`` are all that the batch has in hand, locked."""
        mine = [command for command in commands if isinstance(command, PromotionCommand)]
        if not mine:
            return cls()
        self = cls(wallets, await credit_store.groups_now(work, wallets))
        redeeming = [command for command in mine if isinstance(command, RedeemCode)]
        if redeeming:
            digests = {digest_of_code(command.code) for command in redeeming}
            self.vouchers = {row.digest: row for row in await credit_store.lock_vouchers(work, digests)}
            ids = {row.voucher_id for row in self.vouchers.values()}
            names = {name for command in redeeming for name in self._beneficiaries(command.account_id)}
            self.redeemed = await credit_store.redeemed_by(work, ids, names)
        approving = {command.credit_id for command in mine if isinstance(command, ApproveCredit)}
        if approving:
            rows = await credit_store.load_credits(work, approving, lock=True)
            self.proposed = {row.credit_id: row for row in rows if row.valid_from is None}
        return self

    def carry_out(self, work: Work, wallet: Wallet, command: PromotionCommand, book: Book) -> None:
        """One command; raises what refuses it."""
        match command:
            case GrantCredit():
                self._grant(work, wallet, command, book)
            case ApproveCredit():
                self._approve(work, wallet, command, book)
            case RedeemCode():
                self._redeem(work, wallet, command, book)

    async def write(self, work: Work) -> None:
        """Write what came of them."""
        if self.new_credits:
            await credit_store.append_credits(work, self.new_credits)
        if self.new_redemptions:
            await credit_store.append_redemptions(work, self.new_redemptions)
            await credit_store.count_redemptions(work, self.times)
        if self.approved:
            await credit_store.approve_credits(work, self.approved, self.approved)
        await work.set_timers(CREDIT_EXPIRES, self.timers)
        await work.set_timers(GROUP_CREDIT, dict.fromkeys(self.shared, work.now))

    # ---- one command ----

    def _grant(self, work: Work, wallet: Wallet, command: GrantCredit, book: Book) -> None:
        if command.role not in ("operator", "finance"):
            raise NotPermitted("grant_credit needs the role operator or finance", field="role")
        nano = _amount(wallet, command.amount, command.currency)
        if command.expires_at is not None and command.expires_at <= work.now:
            raise InvalidInput("must lie in the future", field="expires_at")
        group = self.groups.get(wallet.account_id)
        if command.shared and (group is None or group.scoped):
            raise Refused(
                "only a payer group of the organization shares a credit; grant it to the account alone",
                field="shared",
                code="needs_organization_group",
            )
        row = _row(
            wallet, derived_id("credit", wallet.account_id, command.command_id), nano, work.now,
            group_id=None if group is None else group.group_id, shared=command.shared, expires_at=command.expires_at,
            origin="grant", asked_by=command.actor, note=command.note or None,
        )  # fmt: skip
        if needs_second_person(nano):
            self.proposed[row["credit_id"]] = _Proposed(**row)
            self.new_credits.append(row)
            wallet.tell(
                work, "credit_proposed", amount_nano=nano, command_id=command.command_id, credit_id=row["credit_id"],
                expires_at=command.expires_at, message="another person has to approve it",
            )  # fmt: skip
            return
        row |= {"valid_from": work.now, "remaining_nano": nano}
        self.new_credits.append(row)
        self._begin(work, wallet, _Proposed(**row), command.command_id, command.actor, book)

    def _approve(self, work: Work, wallet: Wallet, command: ApproveCredit, book: Book) -> None:
        if command.role not in ("operator", "finance"):
            raise NotPermitted("approve_credit needs the role operator or finance", field="role")
        proposed = self.proposed.get(command.credit_id)
        if proposed is None or proposed.asked_for != wallet.account_id:
            raise NotFound(
                f"no proposed credit {command.credit_id} was asked for {wallet.account_id}",
                field="credit_id",
                code="unknown_credit",
            )
        if proposed.asked_by == command.actor:
            raise NotPermitted(
                "who proposed it cannot approve it: another person has to", field="actor", code="needs_second_person"
            )
        if proposed.expires_at is not None and proposed.expires_at <= work.now:
            raise Refused("it would have expired by now; grant it anew", field="credit_id", code="expired")
        del self.proposed[command.credit_id]
        new = next((row for row in self.new_credits if row["credit_id"] == command.credit_id), None)
        if new is None:
            self.approved[command.credit_id] = command.actor
        else:
            new |= {"valid_from": work.now, "remaining_nano": new["granted_nano"], "approved_by": command.actor}
        self._begin(work, wallet, proposed, command.command_id, command.actor, book)

    def _redeem(self, work: Work, wallet: Wallet, command: RedeemCode, book: Book) -> None:
        voucher = self.vouchers.get(digest_of_code(command.code))
        if voucher is None or (voucher.needs_approval and voucher.approved_by is None):
            raise NotFound("no such code; look for a mistyped letter", field="code", code="unknown_code")
        if voucher.organization_id not in (None, wallet.organization_id):
            raise NotFound("no such code; look for a mistyped letter", field="code", code="unknown_code")
        if voucher.redeem_until is not None and voucher.redeem_until <= work.now:
            raise Refused("the code can be redeemed no more", field="code", code="expired")
        if voucher.currency != wallet.currency:
            raise Refused(f"the code is in {voucher.currency}", field="code", code="wrong_currency")
        group = self.groups.get(wallet.account_id)
        shared = voucher.shared and group is not None and not group.scoped
        beneficiary = self._beneficiaries(wallet.account_id)[1 if shared else 0]
        if (voucher.voucher_id, beneficiary) in self.redeemed:
            raise Refused(f"the code was redeemed for {beneficiary} before", field="code", code="already_redeemed")
        times = self.times.get(voucher.voucher_id, 0)
        if voucher.redeemed + times >= voucher.redemptions_max:
            raise Refused("the code was redeemed as often as it can be", field="code", code="used_up")
        _refuse_too_much(wallet, voucher.amount_nano)
        row = _row(
            wallet, derived_id("credit", str(voucher.voucher_id), beneficiary), voucher.amount_nano, work.now,
            group_id=None if group is None else group.group_id, shared=shared,
            expires_at=None if voucher.credit_days is None else work.now + timedelta(days=voucher.credit_days),
            origin="code", asked_by=command.actor, note=voucher.note,
        ) | {"valid_from": work.now, "remaining_nano": voucher.amount_nano}  # fmt: skip
        self.times[voucher.voucher_id] = times + 1
        self.redeemed.add((voucher.voucher_id, beneficiary))
        self.new_redemptions.append(
            {
                "voucher_id": voucher.voucher_id,
                "beneficiary": beneficiary,
                "account_id": wallet.account_id,
                "credit_id": row["credit_id"],
                "actor": command.actor,
                "at": work.now,
            }
        )
        self.new_credits.append(row)
        self._begin(work, wallet, _Proposed(**row), command.command_id, command.actor, book)

    def _beneficiaries(self, account_id: str) -> list[str]:
        """For whom an account can redeem a code: itself, then its payer group if it has one."""
        group = self.groups.get(account_id)
        return [f"account {account_id}", *([] if group is None else [f"group {group.group_id}"])]

    def _begin(self, work: Work, wallet: Wallet, credit: _Proposed, command_id: str, actor: str, book: Book) -> None:
        """From now on it pays: posted, told, its end set; a shared one lets all accounts of its group be looked at.

        Those in hand have it at once, since each is judged at the end of this batch. A proposal of another group's day is that
        group's, not the one's to which the account that asked has moved.
        """
        entries = ledger.credit_granted(str(credit.credit_id), credit.granted_nano, credit.account_id)
        book.post(
            work, "credit_granted", str(credit.credit_id), credit.currency, entries, actor=actor, note=credit.note
        )
        if credit.account_id is None and credit.group_id is not None:
            for account_id, group in self.groups.items():
                if group.group_id == credit.group_id:
                    self.wallets[account_id].shared_credit_nano += credit.granted_nano
            self.shared.add(credit.group_id)
        else:
            wallet.credit_nano += credit.granted_nano
        if credit.expires_at is not None:
            self.timers[str(credit.credit_id)] = credit.expires_at
        wallet.tell(
            work, "credit_granted", amount_nano=credit.granted_nano, command_id=command_id, credit_id=credit.credit_id,
            expires_at=credit.expires_at,
        )  # fmt: skip


@dataclass(frozen=True)
class _Proposed:
    """A row of a credit as it was asked for."""

    credit_id: UUID
    organization_id: str
    group_id: str | None
    account_id: str | None
    asked_for: str
    currency: str
    granted_nano: int
    remaining_nano: int
    valid_from: datetime | None
    expires_at: datetime | None
    created_at: datetime
    origin: str
    asked_by: str
    approved_by: str | None
    note: str | None


def _row(
    wallet: Wallet,
    credit_id: UUID,
    nano: int,
    now: datetime,
    *,
    group_id: str | None,
    shared: bool,
    expires_at: datetime | None,
    origin: str,
    asked_by: str,
    note: str | None,
) -> dict[str, Any]:
    return {
        "credit_id": credit_id,
        "organization_id": wallet.organization_id,
        "group_id": group_id,
        "account_id": None if shared else wallet.account_id,
        "asked_for": wallet.account_id,
        "currency": wallet.currency,
        "granted_nano": nano,
        "remaining_nano": 0,
        "valid_from": None,
        "expires_at": expires_at,
        "created_at": now,
        "origin": origin,
        "asked_by": asked_by,
        "approved_by": None,
        "note": note,
    }


def _amount(wallet: Wallet, text: str, code: str) -> int:
    if code != wallet.currency:
        raise InvalidInput(f"the wallet is in {wallet.currency}", field="currency", code="wrong_currency")
    nano = parse_amount(text)
    if not 0 < nano <= PAYMENT_NANO_MAX:
        raise InvalidInput(f"must be above zero and at most {format_nano(PAYMENT_NANO_MAX)}", field="amount")
    _refuse_too_much(wallet, nano)
    return nano


def _refuse_too_much(wallet: Wallet, nano: int) -> None:
    if wallet.credit_nano + wallet.shared_credit_nano + nano > WALLET_NANO_MAX:
        raise Refused(
            f"an account may have credits of at most {format_nano(WALLET_NANO_MAX)}", field="amount", code="too_much"
        )


# ---- the end of a credit -------------------------------------------------------------------------------------------


async def expire(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: what is left of a credit that has expired is breakage. A charge that meets it queues on the wallet or the credit."""
    ids = [UUID(key) for key in keys]
    owners = {row.account_id for row in await credit_store.load_credits(work, ids, lock=False)}
    wallets = await load(work, {account_id for account_id in owners if account_id is not None})
    over = [
        row
        for row in await credit_store.load_credits(work, ids, lock=True)
        if row.valid_from is not None
        and row.expired_at is None
        and row.expires_at is not None
        and row.expires_at <= work.now
    ]
    if not over:
        return
    book = Book()
    for row in over:
        left = row.remaining_nano
        if left:
            entries = ledger.credit_expired(str(row.credit_id), left, row.account_id)
            book.post(work, "credit_expired", str(row.credit_id), row.currency, entries)
        if row.account_id is not None:
            wallets[row.account_id].credit_nano -= left
            wallets[row.account_id].tell(
                work, "credit_expired", amount_nano=left, credit_id=row.credit_id, expires_at=row.expires_at
            )
    await book.write(work)
    await credit_store.expire_credits(work, [row.credit_id for row in over])
    groups = {row.group_id for row in over if row.account_id is None}
    await work.set_timers(GROUP_CREDIT, dict.fromkeys(groups, work.now))
    await evaluate(work, wallets, tell=tell)


async def look_at_groups(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: a shared credit of these groups came or went; their accounts are looked at, some at once, the others next."""
    accounts: set[str] = set()
    more: dict[str, datetime] = {}
    for key in keys:
        group_id, _, after = key.partition(" ")
        some = await credit_store.members(work, group_id, after, ACCOUNTS_AT_ONCE)
        accounts.update(some)
        if len(some) == ACCOUNTS_AT_ONCE:
            more[f"{group_id} {some[-1]}"] = work.now
    await evaluate(work, await load(work, accounts), tell=tell)
    await work.set_timers(GROUP_CREDIT, more)


async def look_for_overlooked(work: Work, *, tell: Tell) -> None:
    """Tick: find whom two transactions overlooked. One moved what a group shares while another one moved an account of it, and
    neither saw what the other was about to commit; both together may suspend, restore or warn the account."""
    groups = await credit_store.sharing(work)
    concerned = await credit_store.concerned(work.connection, groups) if groups else ()
    if concerned:
        await look_at_groups(work, sorted(concerned), tell=tell)
