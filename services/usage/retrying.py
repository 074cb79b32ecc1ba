"""Records that had no price are tried again by themselves when prices change. Source: domain, section 3."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime import parking
from services.runtime.parking import Parked
from services.usage.tables import RUNTIME

BY_ITSELF = "usage"  # who asked, where nobody did
NO_PRICE = "no_price"


async def prices_changed(connection: AsyncConnection) -> None:
    """Try all that had no price; what still has none goes back to quarantine without a word.

    The caller holds the state alone, so no batch is under way that knows the old prices and not yet the new.
    """
    await parking.ask(connection, RUNTIME, "replaying", BY_ITSELF, reason=NO_PRICE)


def is_no_news(item: Parked) -> bool:
    """It was tried by itself and still has no price: its publisher has been told."""
    return item.record.asked_by == BY_ITSELF and item.reason == item.record.parked_reason == NO_PRICE
