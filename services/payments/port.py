"""The port to payment processors: what one is asked, and what it may answer. Values and one protocol, nothing else.

A processor is spoken to over a network: an operation may take seconds, fail, time out after it had its effect, and be
repeated. So each is carried out outside of any transaction, at least once, always with the same idempotency key; and what
is heard later, by a webhook, is handed in by `Hear`. Source: domain, section 4; designs/recharge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol
from uuid import UUID

from contracts.payments import MethodKind, ResultKind

AT_ONCE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt. ``attempt_id`` is the idempotency key of its charge; amounts are decimal strings of the contract.

    ``token`` and ``method_kind`` are None when only an inquiry or a cancel ever came for the attempt. ``origin`` is `auto`,
    `manual` or `scheduled`: only with `manual` a person is there. ``reference`` is what the processor itself calls the
    attempt, as an earlier operation returned it.
    """

    attempt_id: UUID
    account_id: str
    amount: str
    currency: str
    requested_at: datetime
    token: str | None = None
    method_kind: MethodKind | None = None
    origin: str = "auto"
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Refund:
    """A part of an attempt, or all of it, to give back. ``refund_id`` is the idempotency key."""

    refund_id: UUID
    amount: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that a processor says of an attempt.

    ``result_id`` is unique per processor, and the same whenever the same thing is said again. ``amount`` and ``currency``
    are those of the attempt where they are None (of the refund, for what answers one); who answers by `Hear` names both.
    ``delay`` is for processors that are simulated. A reason never repeats a token.
    """

    kind: ResultKind
    result_id: str
    failure: Literal["declined", "error"] | None = None
    reason: str | None = None
    amount: str | None = None
    currency: str | None = None
    refund_id: UUID | None = None
    dispute_id: str | None = None
    delay: timedelta = AT_ONCE


@dataclass(frozen=True, slots=True)
class Heard:
    """What an operation brought: any number of answers, none when the result comes later, and a reference to remember."""

    answers: tuple[Answer, ...] = ()
    reference: str | None = None


Hear = Callable[[Sequence[tuple[UUID, Answer]]], Awaitable[None]]
"""Takes what a processor says by itself, of attempts by id. When it returns, it is kept for good: only then acknowledge."""


class Processor(Protocol):
    """A payment processor. Every operation may be repeated with the same key, by two processes at once too.

    Raise `kernel.errors.Unavailable` (or let a timeout or an OSError through) when it is not known what became of it: it is
    tried again. Return a `failed` answer only when nothing was charged and nothing can be any more by this key.
    """

    async def charge(self, order: Order) -> Heard:
        """Charge the token once for this key; a repeat says what became of it. `settled`, `failed`, or nothing yet."""
        ...

    async def inquire(self, order: Order, number: int) -> Heard:
        """Say what became of an attempt, and charge nothing. `never_seen` only if the key is not known there; nothing at
        all while it is under way. ``number`` counts the inquiries of the attempt from 1."""
        ...

    async def cancel(self, order: Order) -> Heard:
        """Give up what is not settled: `cancelled` when it is sure that nothing is charged any more, else what it became."""
        ...

    async def refund(self, order: Order, refund: Refund) -> Heard:
        """Give back: `refunded`, `refund_failed`, or nothing yet. Each with the refund's id."""
        ...

    async def start(self, hear: Hear) -> None:
        """Open connections and doors; ``hear`` may be called from now on."""
        ...

    async def stop(self) -> None:
        """Close them."""
        ...
