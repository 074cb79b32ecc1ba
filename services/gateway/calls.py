"""Calls over HTTP: quoted by usage, authorised, renewed, settled and released by balance.

The key of all of it is (account, call leg): the same request again is answered as before, so whoever has lost an answer asks
again. A refusal is an answer, not an error.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from contracts.cloudevents import Attribute
from contracts.usage import CALL_SECONDS_MAX
from contracts.words import E164, Id
from services.balance.api import Holds
from services.balance.calls import Again, Answer, Authorize, Ended, Grant, Release, Renew, Settle
from services.balance.holding import SLICE_S_MAX, Rate
from services.balance.spending import CallAsked, RefusalReason, Refused
from services.gateway.bodies import ERRORS, BodyRoute
from services.gateway.errors import Codes, of_path
from services.kernel.errors import Corrupt, NotFound
from services.kernel.errors import Refused as Unpriced
from services.kernel.ids import content_digest
from services.kernel.money import format_nano
from services.usage.api import Quote, Quotes

Seconds = Annotated[
    int, Field(ge=1, le=CALL_SECONDS_MAX, description=f"asked for; at most {SLICE_S_MAX} are granted at once")
]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class _OfCall(_Body):
    account_id: Id
    call_leg_id: Annotated[Attribute, Field(description="of yours; its usage event must name the same")]


class CallPlan(_Body):
    """What a call will be: all that its price depends on."""

    account_id: Id
    direction: Literal["outbound", "inbound"] = "outbound"
    called: E164
    caller: E164 | None = None
    outbound_profile: Id | None = None


class AuthorizeCall(CallPlan):
    """A call wants to start."""

    call_leg_id: Annotated[Attribute, Field(description="of yours; its usage event must name the same")]
    seconds: Seconds = SLICE_S_MAX


class RenewCall(_OfCall):
    """A call wants to go on."""

    number: Annotated[int, Field(ge=1, description="of the renewal: 1, 2, 3 and so on")]
    seconds: Seconds = SLICE_S_MAX


class SettleCall(_OfCall):
    """A call has ended; its usage event is to come."""

    seconds: Annotated[int, Field(ge=0, le=CALL_SECONDS_MAX, description="billable, as its usage event will say")]


class ReleaseCall(_OfCall):
    """A call was never answered; no usage event will cost anything."""


class Granted(BaseModel):
    """The call may go on for `granted_s` seconds, until it is `total_s` long; renew it before `expires_at`."""

    decision: Literal["granted"] = "granted"
    hold_id: UUID
    number: Annotated[int, Field(description="of the renewal; 0: the authorisation")]
    granted_s: int
    total_s: Annotated[int, Field(description="from the start of the call to the end of this slice")]
    max_s: Annotated[int, Field(description="how long it could become by what is available now")]
    held: str
    currency: str
    expires_at: datetime


class NotGranted(BaseModel):
    """The call must not start, or must end when what was granted is used up."""

    decision: Literal["refused"] = "refused"
    reason: RefusalReason
    message: str


class CallEnded(BaseModel):
    """How the call ended, and what it holds until its charge comes or until `expires_at`."""

    hold_id: UUID
    ended_by: Literal["settle", "release", "charge"]
    held: str
    currency: str
    expires_at: datetime


class Quoted(BaseModel):
    """What a call costs now; amounts in `currency`."""

    product: str
    currency: str
    price_per_minute: str
    connection_fee: str
    minimum_s: int
    increment_s: int
    book_id: str
    book_version: int
    matched: str
    window: str | None
    by_tiers: bool
    at: datetime


UNPRICED: Codes = {
    404: ("unknown_account", "no_price"),
    409: ("account_closed", "no_price", "wrong_currency"),
}
UNKNOWN: Codes = {404: ("unknown_account", "unknown_call"), 503: ("busy",)}
AUTHORIZED: Codes = {
    409: ("idempotency_conflict", "call_ended", "out_of_order"),
    422: ("wrong_currency",),
    503: ("busy",),
}
RENEWED: Codes = {409: ("idempotency_conflict", "call_ended", "out_of_order", "call_too_long")}
SETTLED: Codes = {409: ("idempotency_conflict",)}


def routes(quotes: Quotes, holds: Holds) -> APIRouter:
    """The paths below /v1/calls."""
    router = APIRouter(prefix="/v1/calls", tags=["calls"], route_class=BodyRoute)

    async def quoted(plan: CallPlan) -> Quote:
        return await quotes.quote(
            plan.account_id, plan.called, direction=plan.direction, caller=plan.caller, profile=plan.outbound_profile
        )

    @router.post("/quote", responses=of_path(ERRORS, UNPRICED))
    async def quote(plan: CallPlan) -> Quoted:
        """What a call would cost now; starts nothing and promises nothing."""
        found = await quoted(plan)
        return Quoted(
            product=found.product, currency=found.currency, price_per_minute=format_nano(found.price_nano),
            connection_fee=format_nano(found.connection_fee_nano), minimum_s=found.minimum_s,
            increment_s=found.increment_s, book_id=found.book_id, book_version=found.book_version,
            matched=found.matched, window=found.window, by_tiers=found.by_tiers, at=found.at,
        )  # fmt: skip

    @router.post("/authorize", responses=of_path(ERRORS, UNPRICED, AUTHORIZED))
    async def authorize(plan: AuthorizeCall) -> Granted | NotGranted:
        """Ask whether a call may start, and for its first slice."""
        content = content_digest(
            to_json([plan.direction, plan.called, plan.caller, plan.outbound_profile, plan.seconds])
        )
        try:
            found = await quoted(plan)
        except (NotFound, Unpriced) as error:
            return _decided(await holds.ask(Again(plan.account_id, plan.call_leg_id, content, error)))
        asked = CallAsked(
            plan.account_id, plan.outbound_profile, found.price_nano, found.currency,
            tuple(Rate(*each) for each in found.rates), found.maximum_nano, found.maximum_profile,
        )  # fmt: skip
        return _decided(await holds.ask(Authorize(asked, plan.call_leg_id, plan.seconds, content)))

    @router.post("/renew", responses=of_path(ERRORS, UNKNOWN, RENEWED))
    async def renew(body: RenewCall) -> Granted | NotGranted:
        """Ask for the next slice of a call."""
        return _decided(await holds.ask(Renew(body.account_id, body.call_leg_id, body.number, body.seconds)))

    @router.post("/settle", responses=of_path(ERRORS, UNKNOWN, SETTLED))
    async def settle(body: SettleCall) -> CallEnded:
        """Say how long a call was; it then holds its exact cost until its charge comes. Debits nothing."""
        return _ended(await holds.ask(Settle(body.account_id, body.call_leg_id, body.seconds)))

    @router.post("/release", responses=of_path(ERRORS, UNKNOWN))
    async def release(body: ReleaseCall) -> CallEnded:
        """Say that a call was never answered; it then holds nothing."""
        return _ended(await holds.ask(Release(body.account_id, body.call_leg_id)))

    return router


def _decided(answer: Answer) -> Granted | NotGranted:
    match answer:
        case Grant():
            return Granted(
                hold_id=answer.hold_id, number=answer.number, granted_s=answer.granted_s, total_s=answer.total_s,
                max_s=answer.max_s, held=format_nano(answer.held_nano), currency=answer.currency,
                expires_at=answer.expires_at,
            )  # fmt: skip
        case Refused():
            return NotGranted(reason=answer.reason, message=answer.message)
    raise Corrupt("an authorisation was answered by an end")


def _ended(answer: Answer) -> CallEnded:
    if not isinstance(answer, Ended) or answer.ended_by is None:
        raise Corrupt("an end was answered by a grant")
    return CallEnded(
        hold_id=answer.hold_id, ended_by=answer.ended_by, held=format_nano(answer.held_nano), currency=answer.currency,
        expires_at=answer.expires_at,
    )  # fmt: skip
