"""The built-in processor `sandbox`: every outcome follows from the token, so that each can be tried.

| token | a charge | an inquiry | a cancel |
|---|---|---|---|
| `tok_ok` | settled at once | settled | settled |
| `tok_declined` | failed, declined | the same | the same |
| `tok_error` | failed, error: nothing was charged | the same | the same |
| `tok_silent` | no answer, ever | no answer | cancelled |
| `tok_silent_settled` | no answer, though it was charged | settled | settled |
| `tok_silent_declined` | no answer | failed, declined | the same |
| `tok_never_seen` | lost on its way | never seen | cancelled |
| `tok_twice` | settled, and the same result a second time | settled | settled |
| `tok_late_5s` | settled after 5 seconds | settled | settled |
| `tok_late_40m` | settled after 40 minutes | no answer yet | no answer |
| `tok_late_25h` | settled after 25 hours | no answer yet | no answer |
| `tok_declined_settled` | declined, settled 5 seconds later: it contradicts itself | settled | settled |
| `tok_settled_declined` | settled, declined 5 seconds later: the same the other way round | settled | settled |
| `tok_short` | settled with 0.01: another amount than was asked for | the same | the same |
| `tok_refunded` | settled, all of it refunded by the processor after 5 seconds | settled | settled |
| `tok_refund_first` | refunded, settled 5 seconds later: in the wrong order | settled | settled |
| `tok_disputed` | settled, disputed after 5 seconds | settled | settled |
| `tok_dispute_won` | as before, won 5 seconds later | settled | settled |
| `tok_dispute_lost` | as before, lost instead | settled | settled |
| `tok_refund_fails` | settled; a refund that is asked for fails | settled | settled |

A refund that is asked for is given at once by all others. Any other token is failed as an error with the reason, which never
repeats the token. Pure: delays are values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

from services.payments.port import AT_ONCE, Answer, Hear, Heard, Order, Refund

LATE = timedelta(seconds=5)
LATER = timedelta(seconds=10)


def settled(delay: timedelta = AT_ONCE, amount: str | None = None) -> Answer:
    return Answer("settled", "settled", amount=amount, delay=delay)


def failed(failure: Literal["declined", "error"], reason: str, delay: timedelta = AT_ONCE) -> Answer:
    return Answer("failed", failure, failure, reason, delay=delay)


def disputed(kind: Literal["disputed", "dispute_won", "dispute_lost"], delay: timedelta) -> Answer:
    return Answer(kind, kind, dispute_id="dispute", delay=delay)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a token answers. ``found`` is what an inquiry finds, and ``given_up`` what a cancel is told."""

    charge: tuple[Answer, ...]
    found: tuple[Answer, ...] = (settled(),)
    given_up: tuple[Answer, ...] = (settled(),)
    refunds: bool = True


def _sure(*answers: Answer) -> Plan:
    """A charge whose end an inquiry and a cancel repeat."""
    return Plan(answers, answers, answers)


DECLINED = failed("declined", "the card was declined")
CANCELLED = Answer("cancelled", "cancelled")
NEVER_SEEN = Answer("never_seen", "never_seen")
REFUNDED = Answer("refunded", "refunded")

SANDBOX: dict[str, Plan] = {
    "tok_ok": _sure(settled()),
    "tok_declined": _sure(DECLINED),
    "tok_error": _sure(failed("error", "the processor is not available")),
    "tok_silent": Plan((), (), (CANCELLED,)),
    "tok_silent_settled": Plan(()),
    "tok_silent_declined": Plan((), (DECLINED,), (DECLINED,)),
    "tok_never_seen": Plan((), (NEVER_SEEN,), (CANCELLED,)),
    "tok_twice": Plan((settled(), settled())),
    "tok_late_5s": Plan((settled(LATE),)),
    "tok_late_40m": Plan((settled(timedelta(minutes=40)),), (), ()),
    "tok_late_25h": Plan((settled(timedelta(hours=25)),), (), ()),
    "tok_declined_settled": Plan((DECLINED, settled(LATE))),
    "tok_settled_declined": Plan((settled(), replace(DECLINED, delay=LATE))),
    "tok_short": _sure(settled(amount="0.01")),
    "tok_refunded": Plan((settled(), replace(REFUNDED, delay=LATE))),
    "tok_refund_first": Plan((REFUNDED, settled(LATE))),
    "tok_disputed": Plan((settled(), disputed("disputed", LATE))),
    "tok_dispute_won": Plan((settled(), disputed("disputed", LATE), disputed("dispute_won", LATER))),
    "tok_dispute_lost": Plan((settled(), disputed("disputed", LATE), disputed("dispute_lost", LATER))),
    "tok_refund_fails": Plan((settled(),), refunds=False),
}


def plan_of(token: str | None) -> Plan:
    """What the sandbox does with a token.

    >>> [answer.kind for answer in plan_of("tok_twice").charge]
    ['settled', 'settled']
    """
    if token is None:
        return Plan((), (NEVER_SEEN,), (CANCELLED,))
    known = ", ".join(SANDBOX)
    return SANDBOX.get(token) or _sure(failed("error", f"the sandbox knows no such token; use one of {known}"))


class Sandbox:
    """The processor that is built in. It keeps nothing: what it says follows from the order alone."""

    async def charge(self, order: Order) -> Heard:
        return self._of(order, plan_of(order.token).charge)

    async def inquire(self, order: Order, number: int) -> Heard:
        return self._of(order, plan_of(order.token).found)

    async def cancel(self, order: Order) -> Heard:
        return self._of(order, plan_of(order.token).given_up)

    async def refund(self, order: Order, refund: Refund) -> Heard:
        if plan_of(order.token).refunds:
            answer = Answer("refunded", f"refund:{refund.refund_id}")
        else:
            answer = Answer("refund_failed", f"refund_failed:{refund.refund_id}", reason="the bank gives nothing back")
        return self._of(order, (replace(answer, amount=refund.amount, refund_id=refund.refund_id),))

    async def start(self, hear: Hear) -> None:
        """Nothing to open: it never speaks by itself."""

    async def stop(self) -> None:
        """Nothing to close."""

    def _of(self, order: Order, answers: tuple[Answer, ...]) -> Heard:
        """Ids that no other attempt has."""
        named = (replace(answer, result_id=f"{order.attempt_id}:{answer.result_id}") for answer in answers)
        return Heard(
            tuple(
                replace(answer, dispute_id=f"{order.attempt_id}:{answer.dispute_id}") if answer.dispute_id else answer
                for answer in named
            )
        )
