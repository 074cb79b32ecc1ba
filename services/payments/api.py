"""What others ask of the room while it stands still."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.payments import PaymentRequest
from services.payments import adopting


async def adopt_requests(engine: AsyncEngine, requests: Sequence[PaymentRequest]) -> int:
    """After a restore, while no room runs: every request of `payments.requests` from the positions of this room's lanes on, of
    whatever life, those that hold too. No charge among them, or of the backup, is put to a processor any more: its account asks
    what became of it. A second run changes nothing. Returns how many charges this room had not noted."""
    return await adopting.adopt(engine, requests)
