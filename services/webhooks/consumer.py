"""The room as the runtime runs it."""

from __future__ import annotations

from contracts.topics import BALANCE_EVENTS, BALANCE_GROUP_EVENTS, GROUPS_ACCOUNTS, INVOICES_EVENTS
from services.runtime.room import Input, Job, Room, Tick
from services.runtime.settings import Settings
from services.webhooks import handler
from services.webhooks.calling import Caller, allowed_by
from services.webhooks.courier import Courier
from services.webhooks.safe import safe_of

LOOK_S = 0.25  # how soon a new event is on its way
FORGET_S = 10.0


def build(settings: Settings) -> Room:
    """Webhooks, calling what the settings allow."""
    return room(Courier(Caller(allowed_by(settings)), safe=safe_of(settings)))


def room(courier: Courier) -> Room:
    """What it reads, and the courier that looks for deliveries beside that."""
    return Room(
        name="webhooks",
        inputs=(
            Input("accounts", (GROUPS_ACCOUNTS,), handler.accounts),
            Input("balance", (BALANCE_EVENTS, BALANCE_GROUP_EVENTS), handler.events),
            Input("invoices", (INVOICES_EVENTS,), handler.events),
        ),
        ticks=(Tick("forget", handler.forget, seconds=FORGET_S),),
        jobs=(Job("deliver", courier.look, seconds=LOOK_S),),
        started=courier.check,
        stopped=courier.stop,
    )
