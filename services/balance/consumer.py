"""The room as the runtime runs it."""

from __future__ import annotations

from functools import partial

from contracts.topics import (
    BALANCE_COMMANDS,
    BALANCE_GROUP_COMMANDS,
    CLOSING_PROGRESS,
    GROUPS_ACCOUNTS,
    INVOICES_EVENTS,
    PAYMENTS_RESULTS,
    USAGE_CHARGES,
)
from services.balance import (
    api,
    calls,
    closing,
    commands,
    debts,
    drift,
    evaluation,
    funding,
    handler,
    orders,
    payments,
    promotions,
    receivables,
    registry,
    results,
    sealing,
    silence,
    store,
)
from services.balance.refuse_fast import RefuseFast
from services.runtime.processor import Processor
from services.runtime.room import Input, Room, Tick
from services.runtime.settings import Settings

CHARGES_MAX = 20_000
# A batch costs by its accounts more than by its charges, and all of their wallets are locked for as long as all of them take:
# a call that wants to start waits for the neighbours on its own lane, and for others only as long as all are no more than these.
ACCOUNTS_MAX = 250


def build(settings: Settings) -> Room:
    """Balance with its refuse-fast set in the Valkey of the settings, which need not be there."""
    return room(RefuseFast(lambda: settings.valkey_url, prefix=settings.topic_prefix))


def room(refuse_fast: RefuseFast) -> Room:
    """Balance: what it reads and looks at, and in which order it is woken."""
    tell = refuse_fast.tell

    async def started(processor: Processor) -> None:
        await refuse_fast.start(lambda: api.suspended_accounts(processor.engine))

    return Room(
        name="balance",
        inputs=(
            Input("registry", (GROUPS_ACCOUNTS,), partial(registry.accounts, tell=tell)),
            Input(
                "commands",
                (BALANCE_COMMANDS,),
                partial(commands.commands, tell=tell),
                parked=commands.forget_card_numbers,
            ),
            Input(
                "charges",
                (USAGE_CHARGES,),
                partial(handler.charges, tell=tell),
                max_records=CHARGES_MAX,
                max_keys=ACCOUNTS_MAX,
                reading=handler.READING,
            ),
            Input(
                "results", (PAYMENTS_RESULTS,), partial(results.results, tell=tell), parked=commands.forget_card_numbers
            ),
            Input(
                "group_commands",
                (BALANCE_GROUP_COMMANDS,),
                partial(receivables.commands, tell=tell),
                parked=commands.forget_card_numbers,
            ),
            Input("progress", (CLOSING_PROGRESS,), closing.progress),
            Input("invoices", (INVOICES_EVENTS,), partial(closing.invoices, tell=tell)),
        ),
        ticks=(
            Tick("covered", partial(closing.cover, tell=tell)),
            Tick("waiting", commands.look_at_waiting),
            Tick("lease_end", partial(calls.end_leases, tell=tell)),
            Tick("waiting_groups", receivables.look_at_waiting),
            Tick("forget", calls.forget, seconds=60.0),
            Tick("overlooked", partial(promotions.look_for_overlooked, tell=tell), seconds=60.0),
            Tick("sums", partial(drift.watch, tell=tell), seconds=5.0),
            Tick("sealed_day", sealing.seal_day, seconds=60.0),
        ),
        timers={
            orders.RESULT_TIMEOUT: partial(silence.unknown, tell=tell),
            silence.INQUIRY: partial(silence.inquire, tell=tell),
            silence.ABANDON: partial(silence.abandon, tell=tell),
            evaluation.CAP_OPEN: partial(evaluation.look_again, tell=tell),
            evaluation.BACKOFF_OVER: partial(evaluation.look_again, tell=tell),
            evaluation.LIMIT_DAY: partial(evaluation.look_again, tell=tell),
            payments.SCHEDULE: partial(payments.scheduled, tell=tell),
            results.GROUP_PAID: partial(receivables.card_settled, tell=tell),
            results.REFUND_FITS: results.refunds_that_may_fit,
            debts.WALLET_PAYS: partial(receivables.wallets_pay, tell=tell),
            debts.OVERDUE: partial(receivables.look_at_overdue, tell=tell),
            registry.GROUP_CHANGE: partial(registry.change_groups, tell=tell),
            promotions.CREDIT_EXPIRES: partial(promotions.expire, tell=tell),
            funding.GROUP_CREDIT: partial(promotions.look_at_groups, tell=tell),
        },
        started=started,
        stopped=refuse_fast.stop,
        warmed=store.UNDER_WALLET_LOCKS,
    )
