"""What a processor answers to a request: the port, and the built-in `sandbox` whose outcomes follow from the token.

| token | answer |
|---|---|
| `tok_ok` | settled at once |
| `tok_declined` | failed, declined |
| `tok_error` | failed, error: nothing was charged |
| `tok_silent` | none |
| `tok_twice` | settled, and the same result a second time |
| `tok_late_5s` | settled after five seconds |

Any other token, and any other processor, is failed as an error with the reason, which never repeats the token. Pure: delays
are values.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, Protocol

from services.kernel.cards import looks_like_card_number

AT_ONCE = timedelta(0)
LATE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Answer:
    """One result to give after a delay. ``result_id`` is unique per attempt once the attempt id is put before it."""

    delay: timedelta
    kind: Literal["settled", "failed"]
    result_id: str
    failure: Literal["declined", "error"] | None = None
    reason: str | None = None


def settled(delay: timedelta = AT_ONCE) -> Answer:
    return Answer(delay, "settled", "settled")


def failed(failure: Literal["declined", "error"], reason: str) -> Answer:
    return Answer(AT_ONCE, "failed", failure, failure, reason)


SANDBOX: dict[str, tuple[Answer, ...]] = {
    "tok_ok": (settled(),),
    "tok_declined": (failed("declined", "the card was declined"),),
    "tok_error": (failed("error", "the processor is not available"),),
    "tok_silent": (),
    "tok_twice": (settled(), settled()),
    "tok_late_5s": (settled(LATE),),
}


def sandbox(token: str) -> tuple[Answer, ...]:
    """The sandbox's answers to a charge of this token.

    >>> [answer.kind for answer in sandbox("tok_twice")]
    ['settled', 'settled']
    """
    known = ", ".join(SANDBOX)
    return SANDBOX.get(token, (failed("error", f"the sandbox knows no such token; use one of {known}"),))


class Processor(Protocol):
    """The port to a processor: what it answers to a charge of a token. A new one is a file and a line in `PROCESSORS`."""

    def __call__(self, token: str) -> tuple[Answer, ...]: ...


PROCESSORS: dict[str, Processor] = {"sandbox": sandbox}


def planned_answers(processor: str, token: str) -> tuple[Answer, ...]:
    """What a processor will answer to a charge of this token; a processor that is not here fails the attempt.

    A token that looks like a card number is never passed on.

    >>> planned_answers("acme", "tok_ok")[0].reason
    'no adapter for the processor acme; use one of sandbox'
    """
    answers = PROCESSORS.get(processor)
    if answers is None:
        return (failed("error", f"no adapter for the processor {processor}; use one of {', '.join(PROCESSORS)}"),)
    if looks_like_card_number(token):
        return (failed("error", "the token looks like a card number; save a method with a processor's token instead"),)
    return answers(token)
