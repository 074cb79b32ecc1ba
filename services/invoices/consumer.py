"""The room as the runtime runs it."""

from __future__ import annotations

from contracts.topics import (
    BALANCE_GROUP_EVENTS,
    BALANCE_POSTINGS,
    CLOSING_PROGRESS,
    GROUPS_ACCOUNTS,
    GROUPS_BILLING_GROUPS,
    USAGE_CHARGES,
)
from services.invoices import handler, store
from services.invoices.accumulation import READING
from services.invoices.closing import GRACE_DEFAULT
from services.runtime.database import transaction
from services.runtime.processor import Processor
from services.runtime.room import Input, Room, Tick
from services.runtime.settings import Settings

CHARGES_MAX = 20_000  # a batch is folded into few rows, so that large ones cost hardly more than small ones
CUT_SECONDS = 1.0
CLOSE_SECONDS = 0.25  # a bulk of 500 groups each time


def build(settings: Settings) -> Room:
    """Invoices: what is accumulated, and the ticks that cut, close and credit."""
    return Room(
        name="invoices",
        inputs=(
            Input("charges", (USAGE_CHARGES,), handler.charges, max_records=CHARGES_MAX, reading=READING),
            Input("postings", (BALANCE_POSTINGS,), handler.postings),
            Input("settlements", (BALANCE_GROUP_EVENTS,), handler.settlements),
            Input("groups", (GROUPS_BILLING_GROUPS, GROUPS_ACCOUNTS), handler.registry),
            Input("progress", (CLOSING_PROGRESS,), handler.progress),
        ),
        ticks=(
            Tick("cut", handler.cut, CUT_SECONDS),
            Tick("close", handler.close, CLOSE_SECONDS),
            Tick("credit_notes", handler.issue_credit_notes, CUT_SECONDS),
        ),
        started=_started,
    )


async def _started(processor: Processor) -> None:
    async with transaction(processor.engine) as connection:
        await store.install_terms(connection, GRACE_DEFAULT)
