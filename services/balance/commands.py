"""Commands to wallets: decoded, carried out once by (account, command id), answered on `balance.events`.

What cannot be read is quarantined with the field that is wrong. A command for an account that the registry has not told
yet waits for it. After `WAIT_MAX` it is shown in quarantine as `unknown_account`; when the account appears, it runs by
itself all the same. Those that come after it wait too, so an account's commands keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic_core import to_json

from contracts.balance import (
    ApproveCredit,
    CancelPayment,
    DeleteMethod,
    GrantCredit,
    GrantGoodwill,
    OpenBalance,
    Pay,
    RecordTransfer,
    RedeemCode,
    RefundPayment,
    ResumeAccount,
    SaveMethod,
    SetLevels,
    SetLimits,
    SetPreferences,
    SetSchedule,
    SuspendAccount,
    balance_command,
)
from services.balance import daily_spend, ledger, levels, paying, payments, recharge, store
from services.balance.book import Book
from services.balance.credits import ALONE_NANO_MAX
from services.balance.decoding import decode
from services.balance.evaluation import Tell, evaluate, load
from services.balance.promotions import PromotionCommand, Promotions
from services.balance.transfers import Transfer, Transfers, check_bank, check_money
from services.balance.wallets import Wallet
from services.kernel.cards import redacted, refuse_card_number, without_card_numbers
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput, NotPermitted, Refused, TollbookError
from services.kernel.ids import content_digest
from services.kernel.money import PAYMENT_NANO_MAX, WALLET_NANO_MAX, format_nano, parse_amount
from services.runtime import parking
from services.runtime.parking import Parked
from services.runtime.records import Record
from services.runtime.work import Work

WAIT_MAX = timedelta(seconds=60)  # the registry is seconds behind as a rule; after that a person should look at the id

UNKNOWN_ACCOUNT = "unknown_account"
RUNS_BY_ITSELF = frozenset({"waiting", UNKNOWN_ACCOUNT, "unknown_group", "unknown_invoice"})
"""Why a good command is parked: it runs when what it names appears."""

_USED_AGAIN = Refused(
    "this id was used for another command of the account; give each command an id of its own",
    field="command_id",
    code="idempotency_conflict",
)

Command = (
    payments.PaymentCommand
    | OpenBalance
    | GrantGoodwill
    | RecordTransfer
    | SaveMethod
    | DeleteMethod
    | SetPreferences
    | SetLimits
    | SetLevels
    | GrantCredit
    | ApproveCredit
    | RedeemCode
    | SuspendAccount
    | ResumeAccount
)


async def commands(work: Work, records: list[Record], *, tell: Tell) -> None:
    """Carry out a batch of commands, each account's in the order they came."""
    asked = [(record, command) for record in records if (command := _read(work, record)) is not None]
    asked = await _without_those_that_wait(work, asked)
    if not asked:
        return
    wallets = await load(work, {command.account_id for _, command in asked})
    done = await store.carried_out(work, {(command.account_id, command.command_id) for _, command in asked})
    till = await _till(work, [command for _, command in asked])
    transfers = await _transfers(work, [command for _, command in asked], wallets, done)
    book = Book()
    promotions = await Promotions.of(work, [command for _, command in asked], wallets)
    limits: dict[tuple[str, str], store.SpendLimit] = {}
    chosen: dict[str, list[int]] = {}
    not_counted = {account_id for account_id, wallet in wallets.items() if not wallet.spend_counted}
    log: list[dict[str, Any]] = []
    funded: set[str] = set()
    for _, command in asked:
        key = (command.account_id, command.command_id)
        content = content_digest(to_json(command.data()))
        wallet = wallets[command.account_id]
        if key in done:
            if done[key] != content:
                _refuse(work, wallet, command, _USED_AGAIN)
            continue
        done[key] = content
        refused: TollbookError | None = None
        try:
            _refuse_card_numbers(command)
            if isinstance(command, payments.PaymentCommand):
                payments.CARRY_OUT[type(command)](work, wallet, command, till)
            elif isinstance(command, RecordTransfer):
                _record_transfer(work, wallet, command, book, transfers)
            elif isinstance(command, PromotionCommand):
                promotions.carry_out(work, wallet, command, book)
            else:
                _CARRY_OUT[type(command)](work, wallet, command, book)
            if isinstance(command, OpenBalance | GrantGoodwill | RecordTransfer | PromotionCommand):
                funded.add(wallet.account_id)
            if isinstance(command, SetLimits):
                limit = _limit_of(command)
                limits[limit.account_id, limit.outbound_profile] = limit
            if isinstance(command, SetLevels):
                chosen[command.account_id] = _levels_of(command)
        except TollbookError as error:
            refused = error
            _refuse(work, wallet, command, error)
        log.append(_logged(work, command, content, refused))
    if log:
        await store.append_commands(work, log)
    await promotions.write(work)
    await book.write(work)
    await till.write(work)
    if limits:
        await daily_spend.limit(work, wallets, limits.values(), not_counted & {account_id for account_id, _ in limits})
    if chosen:
        await store.forget_levels(work, chosen)
        rows = [(account_id, nano) for account_id, nanos in chosen.items() for nano in nanos]
        if rows:
            await store.append_levels(work, rows)
    await evaluate(work, wallets, funds_of=funded, tell=tell)


async def _till(work: Work, asked: Sequence[Command]) -> payments.Till:
    """What the payment commands among these look at; nothing is read when there are none."""
    payers = {command.account_id for command in asked if isinstance(command, Pay)}
    ids = {command.attempt_id for command in asked if isinstance(command, RefundPayment | CancelPayment)}
    return await payments.Till.load(work, payers, ids)


# ---- reading -------------------------------------------------------------------------------------------------------


def _read(work: Work, record: Record) -> Command | None:
    try:
        command: Command = decode(balance_command, record.value)
        if isinstance(
            command,
            OpenBalance
            | GrantGoodwill
            | RecordTransfer
            | GrantCredit
            | SetPreferences
            | SetLimits
            | SetLevels
            | Pay
            | SetSchedule,
        ):
            currency(command.currency)
        return command
    except InvalidInput as error:
        reason = "invalid_command" if error.code == "invalid" else error.code
        work.quarantine(record, reason, error.message, field=error.field)
        return None


async def _without_those_that_wait(work: Work, asked: Sequence[tuple[Record, Command]]) -> list[tuple[Record, Command]]:
    if not asked:
        return []
    accounts = {command.account_id for _, command in asked}
    known = await store.known_accounts(work, accounts)
    waiting = await store.accounts_waiting(work, accounts)
    ready = []
    for record, command in asked:
        account_id = command.account_id
        if account_id in known and (record.replayed or account_id not in waiting):
            ready.append((record, command))
        elif record.was_waiting and account_id not in known:
            work.quarantine(
                record,
                UNKNOWN_ACCOUNT,
                f"the registry knows no account {account_id}; this runs when it is created; discard it if the id is wrong",
                field="account_id",
                account_id=account_id,
            )
        elif (refused := _card_number_in(command)) is not None:
            work.quarantine(record, refused.code, refused.message, field=refused.field)
        else:
            work.wait(record, f"waits until the registry tells account {account_id}", account_id=account_id)
    return ready


async def look_at_waiting(work: Work) -> None:
    """Tick: let commands run whose account is known by now, and quarantine those that have waited long."""
    ids = await store.waiting_to_run(work, work.now - WAIT_MAX)
    if ids:
        states = ("waiting", "quarantined")
        await parking.ask(work.connection, work.tables, "replaying", "balance", ids=ids, states=states)


async def forget_card_numbers(work: Work, parked: Sequence[Parked]) -> None:
    """What is kept of a refused record never holds a card number.

    A command that only waits for its account was looked through and has to run as it was written: an id of digits alone may
    look like a card number too.
    """
    for item in parked:
        record = item.record
        if item.reason not in RUNS_BY_ITSELF:
            record.value = redacted(record.value)
        record.key = redacted(record.key)
        record.headers = tuple((without_card_numbers(name), redacted(value)) for name, value in record.headers)
        item.field = item.field and without_card_numbers(item.field)
        item.message = without_card_numbers(item.message)


def _card_number_in(command: Command) -> InvalidInput | None:
    try:
        _refuse_card_numbers(command)
    except InvalidInput as refused:
        return refused
    return None


_NOTED = (GrantGoodwill, RecordTransfer, GrantCredit, RefundPayment, SuspendAccount, ResumeAccount)


def _refuse_card_numbers(command: Command) -> None:
    texts = {"actor": command.actor}
    if isinstance(command, SaveMethod | Pay) and command.token is not None:
        texts["token"] = command.token
    if isinstance(command, RecordTransfer):
        texts["reference"] = command.reference
    if isinstance(command, _NOTED):
        texts["note"] = command.note
    for field, text in texts.items():
        refuse_card_number(text, field=field)


# ---- carrying out --------------------------------------------------------------------------------------------------


def _open_balance(work: Work, wallet: Wallet, command: OpenBalance, book: Book) -> None:
    _need_role(command, "operator")
    if wallet.opened_at is not None:
        raise Refused("the opening balance was taken over before; it is taken over once", code="already_opened")
    amount = _amount(wallet, command.amount, command.currency, WALLET_NANO_MAX, signed=True)
    book.post(
        work,
        "opening",
        wallet.account_id,
        wallet.currency,
        ledger.opening(wallet.account_id, amount),
        actor=command.actor,
    )
    wallet.wallet_nano += amount
    wallet.opened_at = work.now
    wallet.tell(work, "balance_opened", amount_nano=amount, command_id=command.command_id)


def _grant_goodwill(work: Work, wallet: Wallet, command: GrantGoodwill, book: Book) -> None:
    _need_role(command, "operator", "finance")
    amount = _amount(wallet, command.amount, command.currency, PAYMENT_NANO_MAX)
    if amount == 0:
        raise InvalidInput("must be above zero", field="amount", code="invalid_amount")
    if amount > ALONE_NANO_MAX:
        raise Refused(
            f"more than {format_nano(ALONE_NANO_MAX)} needs a second person: grant a promotional credit, which another one"
            " approves",
            field="amount",
            code="needs_approval",
        )
    ref = f"{wallet.account_id}/{command.command_id}"
    book.post(
        work, "goodwill", ref, wallet.currency, ledger.goodwill(wallet.account_id, amount),
        actor=command.actor, note=command.note,
    )  # fmt: skip
    wallet.wallet_nano += amount
    wallet.tell(work, "goodwill_granted", amount_nano=amount, command_id=command.command_id)


async def _transfers(
    work: Work, asked: Sequence[Command], wallets: Mapping[str, Wallet], done: Mapping[tuple[str, str], bytes]
) -> Transfers:
    """The transfers among these commands that may be recorded; nothing is read when there are none."""
    first = {(each.account_id, each.command_id): each for each in reversed(asked)}
    return await Transfers.of(
        work,
        [
            _transfer(each)
            for each in asked
            if isinstance(each, RecordTransfer)
            and (key := (each.account_id, each.command_id)) not in done
            and first[key] is each
            and _transfer_refusal(wallets[each.account_id], each) is None
        ],
    )


def _transfer(command: RecordTransfer) -> Transfer:
    return Transfer(
        command.bank, command.reference, parse_amount(command.amount), command.currency, command.actor, command.note,
        account_id=command.account_id,
    )  # fmt: skip


def _transfer_refusal(wallet: Wallet, command: RecordTransfer) -> TollbookError | None:
    """Why a transfer cannot be recorded, whatever was recorded before."""
    try:
        _refuse_card_numbers(command)
        _need_role(command, "finance")
        check_bank(command.bank)
        check_money(parse_amount(command.amount), command.currency, wallet.currency, "the wallet is in")
    except TollbookError as error:
        return error
    return None


def _record_transfer(work: Work, wallet: Wallet, command: RecordTransfer, book: Book, transfers: Transfers) -> None:
    if (refused := _transfer_refusal(wallet, command)) is not None:
        raise refused
    transfer = _transfer(command)
    about: dict[str, Any] = {"reference": command.reference, "command_id": command.command_id}
    if not transfers.take(transfer):
        message = "was recorded before; nothing is changed"
        wallet.tell(work, "transfer_known", amount_nano=transfer.nano, message=message, **about)
        return
    book.post(
        work, "transfer", str(transfer.payment_id), wallet.currency,
        ledger.payment(wallet.account_id, command.bank, transfer.nano), actor=command.actor, note=command.reference,
    )  # fmt: skip
    wallet.wallet_nano += transfer.nano
    wallet.tell(work, "transfer_recorded", amount_nano=transfer.nano, **about)


def _save_method(work: Work, wallet: Wallet, command: SaveMethod, book: Book) -> None:
    paying.check_method(command.processor, command.method_kind)
    if wallet.method_token is not None:
        raise Refused("a payment method is saved; delete it first", field="token", code="method_saved")
    wallet.save_method(command.processor, command.method_kind, command.token)
    wallet.tell(work, "method_saved", command_id=command.command_id)


def _delete_method(work: Work, wallet: Wallet, command: DeleteMethod, book: Book) -> None:
    if wallet.method_token is None:
        raise Refused("no payment method is saved", code="no_method")
    wallet.forget_method()
    wallet.tell(work, "method_deleted", command_id=command.command_id)


def _set_preferences(work: Work, wallet: Wallet, command: SetPreferences, book: Book) -> None:
    _need_currency(wallet, command.currency)
    threshold = _within_bounds(parse_amount(command.threshold, field="threshold"), WALLET_NANO_MAX, "threshold")
    recharge_nano = _within_bounds(parse_amount(command.recharge, field="recharge"), PAYMENT_NANO_MAX, "recharge")
    if command.enabled:
        row = currency(wallet.currency)
        recharge.check_preferences(mode=command.mode, threshold_nano=threshold, recharge_nano=recharge_nano, row=row)
    wallet.recharge_enabled, wallet.recharge_mode = command.enabled, command.mode
    if command.enabled and wallet.paused_by in ("refund", "dispute"):
        # A person has looked at it, and wants it; a method that was declined so often is declined all the same.
        wallet.paused_by = "declines" if wallet.decline_streak >= recharge.DECLINES_MAX else None
    wallet.threshold_nano, wallet.recharge_nano = threshold, recharge_nano
    wallet.tell(work, "preferences_set", command_id=command.command_id)


def _set_limits(work: Work, wallet: Wallet, command: SetLimits, book: Book) -> None:
    if command.daily_spend is not None:
        _need_currency(wallet, command.currency)
    limit = _limit_of(command)
    wallet.spend_counted = True
    wallet.tell(
        work,
        "limits_set",
        command_id=command.command_id,
        outbound_profile=command.outbound_profile,
        limit=None if limit.daily_spend_nano is None else format_nano(limit.daily_spend_nano),
        calls_max=limit.calls_max,
    )


def _set_levels(work: Work, wallet: Wallet, command: SetLevels, book: Book) -> None:
    _need_currency(wallet, command.currency)
    nanos = _levels_of(command)
    # A level that available credit does not exceed now is told of when it has risen above it and comes back.
    wallet.set_marks(levels.marks(nanos, wallet.available_nano))
    wallet.tell(work, "levels_set", command_id=command.command_id, levels=tuple(format_nano(nano) for nano in nanos))


def _levels_of(command: SetLevels) -> list[int]:
    """The highest first, each once."""
    nanos = {_within_bounds(parse_amount(text, field="levels"), WALLET_NANO_MAX, "levels") for text in command.levels}
    return sorted(nanos, reverse=True)


def _suspend(work: Work, wallet: Wallet, command: SuspendAccount, book: Book) -> None:
    _need_role(command, "operator")
    if not wallet.add_reason(work, "operator", command_id=command.command_id, message=command.note or None):
        raise Refused("the account is suspended by an operator already", code="already_suspended")


def _resume(work: Work, wallet: Wallet, command: ResumeAccount, book: Book) -> None:
    _need_role(command, "operator")
    if not wallet.lift_reason(work, "operator", command_id=command.command_id, message=command.note or None):
        raise Refused("the account is not suspended by an operator", code="not_suspended")


def _limit_of(command: SetLimits) -> store.SpendLimit:
    """`InvalidInput` when the daily spend is more than a wallet can ever hold."""
    nano = None
    if command.daily_spend is not None:
        nano = _within_bounds(parse_amount(command.daily_spend, field="daily_spend"), WALLET_NANO_MAX, "daily_spend")
    return store.SpendLimit(command.account_id, command.outbound_profile or daily_spend.WHOLE, nano, command.calls_max)


_CARRY_OUT: dict[type[Any], Callable[[Work, Wallet, Any, Book], None]] = {
    OpenBalance: _open_balance,
    GrantGoodwill: _grant_goodwill,
    SaveMethod: _save_method,
    DeleteMethod: _delete_method,
    SetPreferences: _set_preferences,
    SetLimits: _set_limits,
    SetLevels: _set_levels,
    SuspendAccount: _suspend,
    ResumeAccount: _resume,
}


def _need_role(command: Command, *roles: str) -> None:
    if command.role not in roles:
        raise NotPermitted(f"{command.kind} needs the role {' or '.join(roles)}", field="role")


def _amount(wallet: Wallet, text: str, code: str, nano_max: int, *, signed: bool = False) -> int:
    _need_currency(wallet, code)
    amount = _within_bounds(parse_amount(text, signed=signed), nano_max, "amount")
    ledger.check_wallet(wallet.wallet_nano + amount)
    return amount


def _need_currency(wallet: Wallet, code: str) -> None:
    if code != wallet.currency:
        raise InvalidInput(f"the wallet is in {wallet.currency}", field="currency", code="wrong_currency")


def _within_bounds(nano: int, nano_max: int, field: str) -> int:
    if abs(nano) > nano_max:
        raise InvalidInput(f"must be at most {format_nano(nano_max)}", field=field)
    return nano


def _refuse(work: Work, wallet: Wallet, command: Command, error: TollbookError) -> None:
    wallet.tell(
        work,
        "command_refused",
        command_id=command.command_id,
        reason=error.code,
        field=error.field,
        message=error.message,
    )


def _logged(work: Work, command: Command, content: bytes, refused: TollbookError | None) -> dict[str, Any]:
    return {
        "account_id": command.account_id,
        "command_id": command.command_id,
        "content": content,
        "kind": command.kind,
        "actor": without_card_numbers(command.actor),
        "role": command.role,
        "at": work.now,
        "accepted": refused is None,
        "reason": None if refused is None else refused.code,
        "note": without_card_numbers(getattr(command, "note", "")) or None,
    }
