"""Commands of finance to payer groups, decoded, carried out once by (group, command id) and answered on
`balance.group_events`; and the timer that finds invoices overdue.

A payment of an invoice or for a group that is not known yet waits for it. After `WAIT_MAX` it is shown in quarantine; when
the invoice is closed, or the group made, it runs by itself all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from contracts.receivables import (
    ApproveWriteOff,
    PayByCard,
    ProposeWriteOff,
    RecordPayment,
    ReturnMoney,
    group_command,
)
from services.balance import ledger, orders, receivables_store, store
from services.balance.book import Book, transaction_id_of
from services.balance.claiming import Claims
from services.balance.commands import WAIT_MAX
from services.balance.debts import Debts, Payer, Receivable, take
from services.balance.decoding import decode
from services.balance.effects import SETTLED
from services.balance.evaluation import Tell, evaluate, load
from services.balance.orders import Orders
from services.balance.results import GROUP_PAID
from services.balance.transfers import Transfer, Transfers, check_bank, check_money
from services.balance.wallets import Wallet
from services.kernel.cards import refuse_card_number
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, NotPermitted, Refused, TollbookError
from services.kernel.ids import content_digest
from services.kernel.money import format_nano, parse_amount
from services.runtime import faults, parking
from services.runtime.records import Record
from services.runtime.work import Work

Command = RecordPayment | PayByCard | ReturnMoney | ProposeWriteOff | ApproveWriteOff

GAVE_NOTHING = frozenset({"declined", "cancelled", "abandoned"})  # attempts after which the group may pay again

_USED_AGAIN = Refused(
    "this id was used for another command of the group; give each command an id of its own",
    field="command_id",
    code="idempotency_conflict",
)


async def commands(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Carry out a batch of commands, each group's in the order they came."""
    asked = [(record, command) for record in records if (command := _read(work, record)) is not None]
    if not asked:
        return
    references = {name for _, command in asked if (name := _names(command)) is not None}
    debts = await take(work, {command.group_id for _, command in asked}, references)
    ready = [command for record, command in asked if _can_run(work, record, command, debts)]
    if not ready:
        return
    done = await receivables_store.carried_out(work, {(each.group_id, each.command_id) for each in ready})
    first = {(each.group_id, each.command_id): each for each in reversed(ready)}
    arrived = [
        _transfer(each)
        for each in ready
        if isinstance(each, RecordPayment)
        and (key := (each.group_id, each.command_id)) not in done
        and first[key] is each
        and _refusal(each, debts) is None
    ]
    transfers = await Transfers.of(work, arrived)
    sent = {_sent_as(each) for each in ready if isinstance(each, ReturnMoney)}
    sent_before = await store.posted(work, [transaction_id_of("unapplied_returned", ref) for ref in sent])
    book = Book()
    log: list[dict[str, Any]] = []
    cards: list[tuple[PayByCard, bytes]] = []
    for command in ready:
        payer = debts.payers[command.group_id]
        key = (command.group_id, command.command_id)
        content = content_digest(to_json(command.data()))
        if key in done:
            if done[key] != content:
                _refuse(work, payer, command, _USED_AGAIN)
            continue
        done[key] = content
        if isinstance(command, PayByCard):
            cards.append((command, content))
            continue
        refused: TollbookError | None = None
        try:
            if isinstance(command, ReturnMoney):
                _return_money(work, payer, command, book, sent_before)
            else:
                _CARRY_OUT[type(command)](work, debts, payer, command, book, transfers)
        except TollbookError as error:
            refused = error
            _refuse(work, payer, command, error)
        log.append(_logged(work, command, content, refused))
    await debts.look(work)
    wallets = await load(work, debts.accounts | {command.account_id for command, _ in cards})
    if cards:
        log += await _pay_by_card(work, debts, wallets, cards)
    if log:
        await receivables_store.append_commands(work, log)
    await debts.finish(work, wallets)
    await book.write(work)
    faults.step("balance.receivables.posted")
    await evaluate(work, wallets, funds_of=debts.funded, tell=tell)


async def look_at_waiting(work: Work) -> None:
    """Tick: let commands run whose group and invoice are known by now, and quarantine those that have waited long."""
    ids = await receivables_store.waiting_to_run(work, work.now - WAIT_MAX)
    if ids:
        states = ("waiting", "quarantined")
        await parking.ask(work.connection, work.tables, "replaying", "balance", ids=ids, states=states)


async def look_at_overdue(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: invoices of these groups become overdue, are told of, or suspend. All is judged from scratch."""
    debts = await take(work, keys)
    await debts.look(work)
    wallets = await load(work, debts.accounts)
    await debts.finish(work, wallets)
    faults.step("balance.overdue.judged")
    await evaluate(work, wallets, funds_of=(), tell=tell)


async def card_settled(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: payments for groups that settled into a wallet pay the groups' invoices from it, once each."""
    payments = [row for row in await receivables_store.card_payments(work, map(UUID, keys)) if row.state == "settled"]
    debts = await take(work, {row.group_id for row in payments})
    done = await store.posted(work, [transaction_id_of("invoice_paid", str(row.attempt_id)) for row in payments])
    book = Book()
    moved: dict[str, int] = {}
    recorded: list[dict[str, Any]] = []
    for row in payments:
        if transaction_id_of("invoice_paid", str(row.attempt_id)) in done:
            continue
        payer = debts.payers[row.group_id]
        about: dict[str, Any] = {"payment_id": row.attempt_id}
        shares, left = debts.pay(work, payer, row.amount_nano, "card", row.invoice_id, **about)
        payer.unapplied_nano += left
        entries = ledger.invoice_paid_by_card(payer.group_id, row.account_id, row.amount_nano, shares)
        book.post(work, "invoice_paid", str(row.attempt_id), row.currency, entries, actor=row.actor)
        moved[row.account_id] = moved.get(row.account_id, 0) + row.amount_nano
        payer.tell(
            work, "payment_recorded", amount_nano=row.amount_nano, source="card", message=_said(row.amount_nano, left),
            **about,
        )  # fmt: skip
        recorded.append(
            {
                "payment_id": row.attempt_id,
                "group_id": row.group_id,
                "bank": row.processor,
                "reference": str(row.attempt_id),
                "amount_nano": row.amount_nano,
                "currency": row.currency,
                "received_at": work.now,
                "actor": row.actor,
                "note": "",
                "account_id": row.account_id,
            }
        )
    if recorded:
        await receivables_store.append_payments(work, recorded)
        await receivables_store.end_card_payments(work, [row["payment_id"] for row in recorded])
    await debts.look(work)
    wallets = await load(work, debts.accounts | moved.keys())
    for account_id, nano in moved.items():
        wallets[account_id].wallet_nano -= nano
        wallets[account_id].on_its_way_nano -= nano
        wallets[account_id].changed = True
    await debts.finish(work, wallets)
    await book.write(work)
    faults.step("balance.card.applied")
    await evaluate(work, wallets, funds_of=debts.funded | moved.keys(), tell=tell)


async def wallets_pay(work: Work, keys: list[str], *, tell: Tell) -> None:
    """Timer: what invoiced accounts have in their wallets pays what they owe of invoices, whatever brought it there."""
    debts = await take(work, await receivables_store.groups_owed(work, keys))
    wallets = await load(work, {*keys} | await debts.concerned(work))
    book = Book()
    for group_id in sorted(debts.payers):
        debts.pay_from_wallets(work, debts.payers[group_id], wallets, book)
    for account_id in wallets.keys() & {*keys}:
        wallets[account_id].has_paid = True  # whatever came of it: all that they owe was in hand
    await debts.look(work)
    await debts.finish(work, wallets)
    await book.write(work)
    faults.step("balance.wallets.paid")
    await evaluate(work, wallets, funds_of=debts.funded, tell=tell)


# ---- reading -------------------------------------------------------------------------------------------------------


def _read(work: Work, record: Record) -> Command | None:
    try:
        command: Command = decode(group_command, record.value)
        for name in ("actor", "note", "reference", "invoice"):
            text = getattr(command, name, None) or ""
            if name == "invoice" and _is_id(text):
                continue
            refuse_card_number(text, field=name)
        if isinstance(command, RecordPayment):
            currency(command.currency)
        return command
    except InvalidInput as error:
        reason = "invalid_command" if error.code == "invalid" else error.code
        work.quarantine(record, reason, error.message, field=error.field)
        return None


def _names(command: Command) -> str | None:
    """The invoice that a command is about, if it is about one."""
    return None if isinstance(command, ReturnMoney) else command.invoice


def _is_id(reference: str) -> bool:
    """Whether an invoice is named by its id: the digits of one in three hundred ids happen to look like a card number."""
    try:
        return str(UUID(reference)) == reference
    except ValueError:
        return False


def _can_run(work: Work, record: Record, command: Command, debts: Debts) -> bool:
    """Whether the group and the invoice are known; if not, the command waits and is shown when it has waited long."""
    invoice = _names(command)
    about = {"group_id": command.group_id, "invoice": invoice}
    if command.group_id not in debts.payers:
        reason, name, missing = "unknown_group", "group_id", f"the registry knows no payer group {command.group_id}"
    elif invoice is not None and debts.find(command.group_id, invoice) is None:
        reason, name = "unknown_invoice", "invoice"
        missing = f"no invoice {invoice} of group {command.group_id} is known of which something was due"
    else:
        return True
    if record.replayed:
        sentence = f"{missing}; this runs by itself when there is one; discard it if that is wrong"
        work.quarantine(record, reason, sentence, field=name, **about)
    else:
        work.wait(record, f"waits: {missing}", **about)
    return False


# ---- carrying out --------------------------------------------------------------------------------------------------


def _transfer(command: RecordPayment) -> Transfer:
    return Transfer(
        command.bank, command.reference, parse_amount(command.amount), command.currency, command.actor, command.note,
        group_id=command.group_id,
    )  # fmt: skip


def _refusal(command: RecordPayment, debts: Debts) -> TollbookError | None:
    """Why a payment cannot be recorded, whatever was recorded before."""
    payer = debts.payers[command.group_id]
    try:
        _need_finance(command)
        check_bank(command.bank)
        check_money(parse_amount(command.amount), command.currency, payer.currency, _billed(payer))
    except TollbookError as error:
        return error
    return None


def _billed(payer: Payer) -> str:
    return f"group {payer.group_id} is billed in"


def _record_payment(
    work: Work, debts: Debts, payer: Payer, command: RecordPayment, book: Book, transfers: Transfers
) -> None:
    if (refused := _refusal(command, debts)) is not None:
        raise refused
    nano = parse_amount(command.amount)
    transfer = _transfer(command)
    about: dict[str, Any] = {"payment_id": transfer.payment_id, "reference": command.reference}
    if not transfers.take(transfer):
        payer.tell(
            work, "payment_known", amount_nano=nano, command_id=command.command_id,
            message="was recorded before; nothing is changed", **about,
        )  # fmt: skip
        return
    named = None if command.invoice is None else _invoice(debts, command).invoice_id
    shares, left = debts.pay(work, payer, nano, "transfer", named, **about)
    payer.unapplied_nano += left
    entries = ledger.invoice_paid(payer.group_id, command.bank, nano, shares)
    book.post(
        work, "invoice_paid", str(about["payment_id"]), payer.currency, entries,
        actor=command.actor, note=command.reference,
    )  # fmt: skip
    payer.tell(
        work, "payment_recorded", amount_nano=nano, source="transfer", command_id=command.command_id,
        message=_said(nano, left), **about,
    )  # fmt: skip


def _sent_as(command: ReturnMoney) -> str:
    return f"{command.group_id}:{command.bank}:{command.reference}"


def _return_money(work: Work, payer: Payer, command: ReturnMoney, book: Book, sent_before: set[UUID]) -> None:
    """Money that is kept for the group has left by our bank; ``sent_before`` are the transactions of those that did before."""
    _need_finance(command)
    check_bank(command.bank)
    nano = parse_amount(command.amount)
    check_money(nano, command.currency, payer.currency, _billed(payer))
    transaction_id = transaction_id_of("unapplied_returned", ref := _sent_as(command))
    if transaction_id in sent_before:
        raise Refused(
            f"{command.reference} of {command.bank} was recorded before for this group; nothing is changed",
            field="reference",
            code="reference_used",
        )
    if nano > payer.unapplied_nano:
        raise Refused(
            f"at most {format_nano(payer.unapplied_nano)} is kept for the group", field="amount", code="more_than_kept"
        )
    sent_before.add(transaction_id)
    payer.unapplied_nano -= nano
    entries = ledger.unapplied_returned(payer.group_id, command.bank, nano)
    book.post(
        work, "unapplied_returned", ref, payer.currency, entries, actor=command.actor,
        note=command.note or command.reference,
    )  # fmt: skip
    payer.tell(
        work, "money_returned", amount_nano=nano, reference=command.reference, command_id=command.command_id,
        message=f"{format_nano(nano)} was sent back",
    )  # fmt: skip


def _said(nano: int, left: int) -> str:
    kept = f"; {format_nano(left)} is kept for the next invoice" if left else ""
    return f"{format_nano(nano - left)} of invoices is paid{kept}"


async def _pay_by_card(
    work: Work, debts: Debts, wallets: dict[str, Wallet], asked: Sequence[tuple[PayByCard, bytes]]
) -> list[dict[str, Any]]:
    """Begin an attempt for each command that may have one, unless an earlier life did; returns the lines of the log."""
    groups = {command.group_id for command, _ in asked}
    members = set(await receivables_store.members(work, groups, work.now))
    in_flight = await receivables_store.groups_in_flight(work, groups)
    claims = await Claims.load(work, {command.account_id for command, _ in asked})
    begun, started, log = Orders(), [], []
    paid: dict[str, datetime] = {}
    for command, content in asked:
        payer = debts.payers[command.group_id]
        refused: TollbookError | None = None
        try:
            invoice = None if command.invoice is None else _invoice(debts, command)
            open_nano = debts.open_nano(command.group_id) if invoice is None else invoice.open_nano
            nano = open_nano if command.amount is None else parse_amount(command.amount)
            undone = claims.take("group", command.account_id, command.command_id, nano)
            attempt: store.NewAttempt | store.Unclaimed
            if undone is not None:
                wallet = wallets[command.account_id]
                attempt = _take_over(wallet, undone, claims)
                if attempt.state == SETTLED:
                    paid[str(attempt.attempt_id)] = work.now
            else:
                if (command.account_id, command.group_id) not in members or command.account_id not in wallets:
                    raise Refused(
                        f"group {command.group_id} does not pay for account {command.account_id}", field="account_id",
                        code="not_of_this_group",
                    )  # fmt: skip
                if command.group_id in in_flight:
                    raise Refused(
                        "a payment by card of this group is on its way; wait for its result", code="in_flight"
                    )
                wallet = wallets[command.account_id]
                method = orders.saved_method(wallet)
                if method is None:
                    raise Refused("the account has no payment method saved", field="account_id", code="no_method")
                if invoice is not None:
                    _open(debts, command)
                if not open_nano:
                    raise Refused("nothing of the group's invoices is open", field="group_id", code="nothing_open")
                check_money(nano, command.currency, payer.currency, _billed(payer))
                attempt = begun.charge(work, wallet, "group", nano, method)
            if attempt.state not in GAVE_NOTHING:
                in_flight.add(command.group_id)
            started.append(
                {
                    "attempt_id": attempt.attempt_id,
                    "group_id": command.group_id,
                    "invoice_id": None if invoice is None else invoice.invoice_id,
                    "actor": command.actor,
                }
            )
            wallet.tell_attempt(work, attempt, "requested")
            payer.tell(
                work, "card_payment_requested", amount_nano=attempt.amount_nano, payment_id=attempt.attempt_id,
                command_id=command.command_id, message=f"the method of account {command.account_id} is charged",
            )  # fmt: skip
        except TollbookError as error:
            refused = error
            _refuse(work, payer, command, error)
        log.append(_logged(work, command, content, refused))
    await begun.write(work)
    await claims.write(work)
    if started:
        await receivables_store.append_card_payments(work, started)
    await work.set_timers(GROUP_PAID, paid)
    return log


def _take_over(wallet: Wallet, attempt: store.Unclaimed, claims: Claims) -> store.Unclaimed:
    """The command is read again: what it asked for is known already, whatever became of it. Where it was not known to be the
    group's, its money lies in the wallet as any other, and goes on to the group if it is still there."""
    claimed = attempt._replace(kind="group")
    if attempt.kind != "group" and attempt.state == SETTLED:
        if wallet.own_nano < attempt.amount_nano:
            claims.end(attempt)
            raise Refused(
                f"the payment settled into the wallet of account {attempt.account_id}, which has spent of it",
                field="account_id",
                code="spent",
            )
        wallet.on_its_way_nano += attempt.amount_nano
        wallet.changed = True
    claims.end(claimed)
    return claimed


def _propose_write_off(
    work: Work, debts: Debts, payer: Payer, command: ProposeWriteOff, book: Book, transfers: Transfers
) -> None:
    _need_finance(command)
    invoice = _open(debts, command)
    invoice.write_off_proposed_by, invoice.write_off_note = command.actor, command.note
    debts.touch(invoice)
    payer.tell(
        work, "write_off_proposed", amount_nano=invoice.open_nano, invoice=invoice.standing(),
        command_id=command.command_id, message=f"{format_nano(invoice.open_nano)} is open; a second person approves",
    )  # fmt: skip


def _approve_write_off(
    work: Work, debts: Debts, payer: Payer, command: ApproveWriteOff, book: Book, transfers: Transfers
) -> None:
    _need_finance(command)
    invoice = _open(debts, command)
    if invoice.write_off_proposed_by is None:
        raise Refused("nobody has proposed to write this invoice off", field="invoice", code="not_proposed")
    if invoice.write_off_proposed_by == command.actor:
        raise NotPermitted(
            f"{command.actor} proposed it, so another person has to approve it", field="actor", code="second_person"
        )
    note = f"proposed by {invoice.write_off_proposed_by}: {invoice.write_off_note}"
    shares = debts.write_off(work, payer, invoice, command_id=command.command_id, message=note[:2000])
    book.post(
        work, "write_off", str(invoice.invoice_id), payer.currency, ledger.write_off(payer.group_id, shares),
        actor=command.actor, note=note,
    )  # fmt: skip


_CARRY_OUT: dict[type[Any], Callable[[Work, Debts, Payer, Any, Book, Transfers], None]] = {
    RecordPayment: _record_payment,
    ProposeWriteOff: _propose_write_off,
    ApproveWriteOff: _approve_write_off,
}


def _need_finance(command: Command) -> None:
    if command.role != "finance":
        raise NotPermitted(f"{command.kind} needs the role finance", field="role")


def _invoice(debts: Debts, command: Command) -> Receivable:
    reference = _names(command) or ""
    found = debts.find(command.group_id, reference)
    if found is None:
        raise InvalidInput(f"no invoice {reference} of group {command.group_id}", field="invoice")
    return found


def _open(debts: Debts, command: PayByCard | ProposeWriteOff | ApproveWriteOff) -> Receivable:
    invoice = _invoice(debts, command)
    if invoice.open_nano <= 0:
        raise Refused(
            f"nothing of invoice {invoice.number} is open: it is {invoice.state}", field="invoice", code="not_open"
        )
    return invoice


def _refuse(work: Work, payer: Payer, command: Command, error: TollbookError) -> None:
    payer.tell(
        work, "command_refused", command_id=command.command_id, reason=error.code, field=error.field,
        message=error.message,
    )  # fmt: skip


def _logged(work: Work, command: Command, content: bytes, refused: TollbookError | None) -> dict[str, Any]:
    return {
        "group_id": command.group_id,
        "command_id": command.command_id,
        "content": content,
        "kind": command.kind,
        "actor": command.actor,
        "role": command.role,
        "at": work.now,
        "accepted": refused is None,
        "reason": None if refused is None else refused.code,
    }
