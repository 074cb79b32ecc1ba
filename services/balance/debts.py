"""What payer groups owe, in the hands of a handler: locked group rows, their open invoices, and what follows from a change.

A handler takes the groups, changes them, loads the wallets of `accounts`, and finishes; groups are locked before wallets, for
only then is it known whose shares a payment pays. Amounts as people say them: what is owed is above zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from contracts.receivables import GroupEvent, GroupEventKind, InvoiceStanding, InvoiceState
from contracts.topics import BALANCE_GROUP_EVENTS
from services.balance import applying, ledger, overdue, receivables_store
from services.balance.book import Book
from services.balance.wallets import Wallet
from services.kernel.currency import currency
from services.kernel.money import format_nano
from services.runtime.work import Work

WALLET_PAYS = "wallet_pays"
"""The timer of an account whose wallet pays what it owes of invoices: at once, in a transaction of its own, as groups are
locked before wallets."""

OVERDUE = "overdue"
"""The timer of a group: the next instant at which one of its open invoices becomes overdue, is told of, or suspends."""

Source = Literal["transfer", "card", "balance", "overpayment", "credit", "write_off", "credit_note"]

_TOLD: dict[Source, GroupEventKind] = {
    "transfer": "invoice_paid",
    "card": "invoice_paid",
    "balance": "invoice_paid",
    "overpayment": "invoice_paid",
    "credit": "invoice_credited",
    "write_off": "invoice_written_off",
    "credit_note": "invoice_credited",
}


@dataclass(slots=True)
class Receivable:
    """A closed invoice of which something was due, and who owes what of it."""

    invoice_id: UUID
    group_id: str
    number: str
    period: str
    due_on: datetime
    due_nano: int
    paid_nano: int = 0
    written_off_nano: int = 0
    credited_nano: int = 0
    voided: bool = False
    version: int = 0
    overdue_since: datetime | None = None
    noticed_days: int | None = None
    write_off_proposed_by: str | None = None
    write_off_note: str | None = None
    shares: dict[str, int] = field(default_factory=dict)
    from_wallets: dict[str, int] = field(default_factory=dict)  # what each account's wallet paid, less what it got back

    @classmethod
    def of(cls, row: Any, shares: Iterable[Any]) -> Receivable:
        """From a row of the table and those of its shares."""
        values = {name: getattr(row, name) for name in _COLUMNS}
        values |= {name: int(values[name]) for name in ("due_nano", "paid_nano", "written_off_nano", "credited_nano")}
        made = cls(**values)
        for share in shares:
            if share.open_nano:
                made.shares[share.account_id] = share.open_nano
            if share.from_wallet_nano:
                made.from_wallets[share.account_id] = share.from_wallet_nano
        return made

    @property
    def open_nano(self) -> int:
        return self.due_nano - self.paid_nano - self.written_off_nano - self.credited_nano

    @property
    def state(self) -> InvoiceState:
        return applying.state_of(
            due_nano=self.due_nano,
            paid_nano=self.paid_nano,
            written_off_nano=self.written_off_nano,
            credited_nano=self.credited_nano,
            is_overdue=self.overdue_since is not None,
            is_void=self.voided,
        )

    def standing(self) -> InvoiceStanding:
        """As it is told."""
        return InvoiceStanding(
            invoice_id=self.invoice_id,
            version=self.version,
            number=self.number,
            period=self.period,
            state=self.state,
            due_on=self.due_on,
            due=format_nano(self.due_nano),
            paid=format_nano(self.paid_nano),
            written_off=format_nano(self.written_off_nano),
            credited=format_nano(self.credited_nano),
            open=format_nano(self.open_nano),
            overdue_since=self.overdue_since,
            owed_by=tuple(sorted(self.shares)),
        )


_COLUMNS = [each.name for each in fields(Receivable) if each.name not in ("shares", "from_wallets")]


@dataclass(slots=True)
class Payer:
    """A payer group as far as it owes; a row that this transaction holds."""

    group_id: str
    organization_id: str
    currency: str
    zone: str
    event_version: int
    unapplied_nano: int
    suspends: bool
    changed: bool = False

    @classmethod
    def of(cls, row: Any) -> Payer:
        return cls(**{**row._mapping, "unapplied_nano": int(row.unapplied_nano)})

    def tell(self, work: Work, kind: GroupEventKind, *, amount_nano: int | None = None, **more: Any) -> None:
        """Publish one event of this group, with the next version."""
        self.event_version = work.next_version(self.event_version)
        self.changed = True
        event = GroupEvent(
            group_id=self.group_id,
            organization_id=self.organization_id,
            version=self.event_version,
            kind=kind,
            at=work.now,
            currency=self.currency,
            amount=None if amount_nano is None else format_nano(amount_nano),
            unapplied=format_nano(self.unapplied_nano),
            **more,
        )
        work.publish(BALANCE_GROUP_EVENTS, self.group_id, f"{self.group_id}:{self.event_version}", event.data())


class Credited(NamedTuple):
    """What a credit note did to an invoice: whose shares are freed, what was written off and is no loss, what goes back to
    wallets that had paid it, what is kept."""

    shares: dict[str, int]
    regained_nano: int
    wallets: dict[str, int]
    kept_nano: int


class Debts:
    """Locked groups with their open invoices; see `take`."""

    def __init__(self, payers: Iterable[Payer], invoices: Iterable[Receivable]) -> None:
        self.payers = {payer.group_id: payer for payer in payers}
        self._invoices: dict[str, dict[UUID, Receivable]] = {group_id: {} for group_id in self.payers}
        for invoice in invoices:
            self._invoices[invoice.group_id][invoice.invoice_id] = invoice
        self._new: list[Receivable] = []
        self._touched: dict[UUID, Receivable] = {}
        self._moved: set[tuple[UUID, str]] = set()  # shares
        self._applications: list[dict[str, Any]] = []
        self._freed: dict[str, int] = defaultdict(int)
        self._spent: list[tuple[str, int, Receivable]] = []
        self._members: list[tuple[str, str]] = []
        self._timers: dict[str, datetime] = {}

    def find(self, group_id: str, reference: str) -> Receivable | None:
        """An invoice of a group by number or id, among those that were taken."""
        return next(
            (
                invoice
                for invoice in self._invoices[group_id].values()
                if reference in (invoice.number, str(invoice.invoice_id))
            ),
            None,
        )

    # ---- what changes --------------------------------------------------------------------------------------------

    def add(self, invoice: Receivable) -> None:
        """A closed invoice of a group that was taken."""
        self._invoices[invoice.group_id][invoice.invoice_id] = invoice
        self._new.append(invoice)

    def pay(
        self, work: Work, payer: Payer, amount_nano: int, source: Source, named: UUID | None = None, **about: Any
    ) -> tuple[dict[str, int], int]:
        """Apply money to the group's invoices by rule; returns what of each account's share is paid, and what is left.

        ``about`` names the payment in what is told.
        """
        invoices = self._invoices[payer.group_id]
        applied = applying.apply(
            amount_nano,
            (
                applying.OpenInvoice(each.due_on, each.number, each.invoice_id, each.open_nano)
                for each in invoices.values()
            ),
            named,
        )
        paid: dict[str, int] = defaultdict(int)
        for invoice_id, nano in applied.pays:
            for account_id, part in self._settle(work, payer, invoices[invoice_id], nano, source, **about).items():
                paid[account_id] += part
        return dict(paid), applied.left_nano

    def write_off(self, work: Work, payer: Payer, invoice: Receivable, **about: Any) -> dict[str, int]:
        """Give up what is open of an invoice; returns the shares."""
        return self._settle(work, payer, invoice, invoice.open_nano, "write_off", **about)

    def credit(
        self, work: Work, payer: Payer, invoice: Receivable, credited: Mapping[str, int], number: str, *, voids: bool
    ) -> Credited:
        """What a credit note takes off an invoice, per account: first what is open, but for what an account's own wallet paid of
        what is credited to it; then what was written off, which is no loss any more. The rest was paid: by wallets, into which it
        goes back, or by money that came for the group, which is kept for its other invoices."""
        nano = sum(credited.values())
        step = _minor_unit(payer.currency)
        back = {
            account_id: min(each - max(0, invoice.shares.get(account_id, 0)), invoice.from_wallets.get(account_id, 0))
            for account_id, each in credited.items()
        }
        back = {account_id: each for account_id, each in back.items() if each > 0}
        freed = min(nano - sum(back.values()), max(0, invoice.open_nano))
        regained = min(nano - freed, invoice.written_off_nano)
        paid = nano - freed - regained
        if paid < sum(back.values()):
            back = applying.spread(paid, back, step) if paid else {}
        kept = paid - sum(back.values())
        shares = applying.free(freed, credited, invoice.shares, step) if freed else {}
        self._free(invoice, shares)
        for account_id, each in back.items():
            invoice.from_wallets[account_id] -= each
            self._moved.add((invoice.invoice_id, account_id))
        payer.unapplied_nano += kept
        invoice.voided = invoice.voided or voids
        if regained:
            invoice.written_off_nano -= regained
            self._applied(work, invoice, "write_off", -regained)
        invoice.credited_nano += freed + regained
        self._applied(work, invoice, "credit_note", freed + regained)
        said = f"credit note {number}" + (f"; {format_nano(kept)} was paid and is for other invoices" if kept else "")
        payer.tell(
            work, "invoice_credited", amount_nano=freed + regained, source="credit_note", invoice=invoice.standing(),
            reference=number, message=said,
        )  # fmt: skip
        return Credited(shares, regained, back, kept)

    def pay_from_wallets(self, work: Work, payer: Payer, wallets: Mapping[str, Wallet], book: Book) -> None:
        """The wallets in hand of invoiced accounts pay what these owe of the group's invoices, what is due first before others.

        A wallet is never taken below zero by it, and what a payment by card brought for a group is left for that.
        """
        purses = {account_id: wallet.own_nano for account_id, wallet in wallets.items() if pays_from_wallet(wallet)}
        for account_id, nano, _ in self._spent:  # what has paid already leaves the wallet at the end
            if account_id in purses:
                purses[account_id] -= nano
        for invoice in sorted(self._invoices[payer.group_id].values(), key=lambda each: (each.due_on, each.number)):
            self._pay_from(work, payer, invoice, purses, book)

    def _pay_from(self, work: Work, payer: Payer, invoice: Receivable, purses: dict[str, int], book: Book) -> None:
        pays = applying.from_wallets(purses, invoice.shares, _minor_unit(payer.currency))
        if not pays:
            return
        shares = self._settle(work, payer, invoice, sum(pays.values()), "balance", parts=pays)
        entries = ledger.balance_used(payer.group_id, pays, shares)
        ref = f"{invoice.invoice_id}:{invoice.version}"
        book.post(work, "balance_used", ref, payer.currency, entries, note=invoice.number)
        for account_id, nano in pays.items():
            purses[account_id] -= nano
            invoice.from_wallets[account_id] = invoice.from_wallets.get(account_id, 0) + nano
            self._moved.add((invoice.invoice_id, account_id))
            self._spent.append((account_id, nano, invoice))

    def use_unapplied(self, work: Work, payer: Payer, book: Book, ref: str) -> None:
        """At a close: what the group has to its credit pays its open invoices, what is due first before others.

        An invoice on which more was taken back than used is such a credit too.
        """
        for invoice in list(self._invoices[payer.group_id].values()):
            if invoice.due_nano <= 0 and invoice.shares:
                shares = self._settle(work, payer, invoice, invoice.open_nano, "credit")
                entries = ledger.unapplied_used(payer.group_id, shares)
                book.post(work, "unapplied_used", f"credit {invoice.invoice_id}", payer.currency, entries)
        self.use_kept(work, payer, payer.unapplied_nano, book, ref)

    def use_kept(self, work: Work, payer: Payer, nano: int, book: Book, ref: str) -> None:
        """So much of what the group has to its credit pays its open invoices, what is due first before others."""
        paid, _ = self.pay(work, payer, nano, "overpayment")
        if paid:
            book.post(work, "unapplied_used", ref, payer.currency, ledger.unapplied_used(payer.group_id, paid))

    def _settle(
        self,
        work: Work,
        payer: Payer,
        invoice: Receivable,
        nano: int,
        source: Source,
        *,
        parts: Mapping[str, int] | None = None,
        **about: Any,
    ) -> dict[str, int]:
        """Some or all of what is open of an invoice is owed no more; returns whose share of it, and tells it.

        ``parts`` says whose, where that does not follow from what each owes; who pays the last of it pays it for all. Of an
        invoice that is a credit, what is open and moved is below zero.
        """
        if nano == invoice.open_nano:
            parts = dict(invoice.shares)
        elif parts is None:
            parts = applying.spread(nano, invoice.shares, _minor_unit(payer.currency))
        self._free(invoice, parts)
        if source == "write_off":
            invoice.written_off_nano += nano
        else:
            invoice.paid_nano += nano
        if source in ("overpayment", "credit"):
            payer.unapplied_nano -= nano
        self._applied(work, invoice, source, nano, about.get("payment_id"))
        payer.tell(work, _TOLD[source], amount_nano=nano, source=source, invoice=invoice.standing(), **about)
        return dict(parts)

    def _free(self, invoice: Receivable, parts: Mapping[str, int]) -> None:
        """Accounts owe these parts of an invoice no more."""
        for account_id, part in parts.items():
            invoice.shares[account_id] -= part
            self._moved.add((invoice.invoice_id, account_id))
            self._freed[account_id] += part
        invoice.shares = {account_id: left for account_id, left in invoice.shares.items() if left}

    def _applied(
        self, work: Work, invoice: Receivable, source: Source, nano: int, payment_id: UUID | None = None
    ) -> None:
        """The next step of an invoice, by what was applied to it; one of which nothing is open needs no write-off any more."""
        if not invoice.open_nano:
            invoice.write_off_proposed_by = invoice.write_off_note = None
        invoice.version = work.next_version(invoice.version)
        self.touch(invoice)
        self._applications.append(
            {
                "invoice_id": invoice.invoice_id,
                "version": invoice.version,
                "source": source,
                "payment_id": payment_id,
                "nano": nano,
                "at": work.now,
            }
        )

    def open_nano(self, group_id: str) -> int:
        """What is open of a group's invoices."""
        return sum(max(0, invoice.open_nano) for invoice in self._invoices[group_id].values())

    def touch(self, invoice: Receivable) -> None:
        """An invoice of a group that was taken has changed."""
        self._touched[invoice.invoice_id] = invoice

    # ---- what follows --------------------------------------------------------------------------------------------

    async def look(self, work: Work) -> None:
        """Overdue, notices, suspension: what is due by now, once each; and when to look again."""
        days = await receivables_store.suspend_after_days(work.connection)
        switched: set[str] = set()
        for group_id, payer in self.payers.items():
            suspends, some_overdue = False, False
            following: list[datetime] = []
            for invoice in sorted(self._invoices[group_id].values(), key=lambda each: (each.due_on, each.number)):
                if invoice.open_nano <= 0:
                    continue
                stage = overdue.stage(invoice.due_on, payer.zone, work.now, days)
                if stage.next_at is not None:
                    following.append(stage.next_at)
                if stage.notice is not None:
                    some_overdue = True
                    self._notice(work, payer, invoice, stage.notice)
                suspends = suspends or stage.suspends
            if following:
                self._timers[group_id] = min(following)
            wanted = some_overdue and (suspends or payer.suspends)
            if wanted != payer.suspends:
                payer.suspends = wanted
                payer.changed = True
                switched.add(group_id)
        if switched:
            self._members = await receivables_store.members(work, switched, work.now)

    def _notice(self, work: Work, payer: Payer, invoice: Receivable, notice: int) -> None:
        """Tell that an invoice is overdue, or has been for so many days; what was leapt over is not told any more."""
        if invoice.noticed_days is not None and invoice.noticed_days >= notice:
            return
        first = invoice.overdue_since is None
        if first:
            invoice.overdue_since = overdue.begins(invoice.due_on, payer.zone)
            invoice.version = work.next_version(invoice.version)
        invoice.noticed_days = notice
        self.touch(invoice)
        payer.tell(
            work,
            "invoice_overdue" if first else "overdue_notice",
            amount_nano=invoice.open_nano,
            invoice=invoice.standing(),
            days=notice,
        )

    async def concerned(self, work: Work) -> set[str]:
        """Every account whose wallet can have to be in hand to finish, whatever is paid: who owes, and who belongs to the
        groups. For handlers that look at wallets before they know what is paid, as all are locked at once."""
        if not self.payers:
            return set()
        owing = {account_id for own in self._invoices.values() for each in own.values() for account_id in each.shares}
        return owing | {account_id for account_id, _ in await receivables_store.members(work, self.payers, work.now)}

    @property
    def accounts(self) -> set[str]:
        """Whose wallets must be in hand to finish."""
        return {account_id for account_id, nano in self._freed.items() if nano} | {
            account_id for account_id, _ in self._members
        }

    @property
    def funded(self) -> set[str]:
        """Whose receivable moved."""
        return {account_id for account_id, nano in self._freed.items() if nano}

    async def finish(self, work: Work, wallets: Mapping[str, Wallet]) -> None:
        """Write the groups and their invoices; move the wallets in hand, which `evaluate` looks at and saves afterwards."""
        for account_id, nano in self._freed.items():
            if nano:
                wallets[account_id].receivable_nano += nano
                wallets[account_id].changed = True
        for account_id, nano, _ in self._spent:
            wallets[account_id].wallet_nano -= nano
        for account_id, nano, invoice in self._spent:
            message = f"invoice {invoice.number} of {invoice.period}"
            wallets[account_id].tell(work, "balance_used", amount_nano=nano, message=message)
        for account_id, group_id in self._members:
            if account_id in wallets:
                judge_overdue(work, wallets[account_id], suspends=self.payers[group_id].suspends)
        changed = [payer for payer in self.payers.values() if payer.changed]
        if self._new:
            await receivables_store.append_receivables(work, [_row(each) for each in self._new])
            # Those that are settled already have a row like any other.
            keys = self._moved | {(each.invoice_id, account_id) for each in self._new for account_id in each.shares}
            await receivables_store.append_shares(work, _shares(self._new, keys))
        if changed:
            await receivables_store.save_payers(
                work, [(each.group_id, each.event_version, each.unapplied_nano, each.suspends) for each in changed]
            )
        if self._touched:
            await receivables_store.save_receivables(work, [_row(each) for each in self._touched.values()])
        new = {each.invoice_id for each in self._new}
        known = [each for own in self._invoices.values() for each in own.values() if each.invoice_id not in new]
        if moved := _shares(known, self._moved):
            await receivables_store.save_shares(work, moved)
        if self._applications:
            await receivables_store.append_applications(work, self._applications)
        if self._timers:
            await work.set_timers(OVERDUE, self._timers)


def pays_from_wallet(wallet: Wallet) -> bool:
    """Whether there is money in a wallet that pays what its account owes of invoices: an invoiced one with both.

    The wallet of a pay-as-you-go account is for its use, and pays no invoice of the time when it was invoiced.
    """
    if wallet.plan != "invoiced" or not wallet.receivable_nano < 0 < wallet.own_nano:
        return False
    return applying.whole_units(wallet.own_nano, _minor_unit(wallet.currency)) > 0


def _minor_unit(code: str) -> int:
    """Nanos of the smallest amount that arrives."""
    return int(10 ** (9 - currency(code).exponent))


def _row(invoice: Receivable) -> dict[str, Any]:
    return {name: getattr(invoice, name) for name in _COLUMNS}


def _shares(invoices: Iterable[Receivable], keys: Iterable[tuple[UUID, str]]) -> list[tuple[UUID, str, int, int]]:
    """Rows (invoice, account, open, paid by its wallet) of such of these shares as are of these invoices."""
    by_id = {each.invoice_id: each for each in invoices}
    return [
        (invoice_id, account_id, invoice.shares.get(account_id, 0), invoice.from_wallets.get(account_id, 0))
        for invoice_id, account_id in sorted(keys)
        if (invoice := by_id.get(invoice_id)) is not None
    ]


def judge_overdue(work: Work, wallet: Wallet, *, suspends: bool) -> None:
    """Suspend an invoiced account of a group with a long overdue invoice, or lift that reason. Nobody else is concerned."""
    if suspends and wallet.plan == "invoiced":
        wallet.add_reason(work, "overdue")
    else:
        wallet.lift_reason(work, "overdue")


async def take(work: Work, group_ids: Iterable[str], references: Iterable[str] = ()) -> Debts:
    """Lock the rows of these groups and read what is open of them, and their invoices of these numbers or ids."""
    rows = await receivables_store.lock_payers(work, group_ids)
    known = [row.group_id for row in rows]
    owed = await receivables_store.load_receivables(work, known, references) if known else []
    shares = await receivables_store.load_shares(work, [row.invoice_id for row in owed]) if owed else {}
    return Debts(map(Payer.of, rows), (Receivable.of(row, shares.get(row.invoice_id, ())) for row in owed))
