"""The judge of holds: every call is kept, and what is available is added up again each time it is asked.

Written from the design page alone, as `model.py` is; it imports nothing of `services` or `contracts`. Amounts are nanos, times
seconds. What may be granted is found by trying every length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

SLICE, GRACE, KEPT = 300, 30, 3600


@dataclass
class Price:
    """A price a minute, a connection fee, and what is billed."""

    minute: int
    fee: int
    minimum: int
    increment: int

    def cost(self, seconds: int) -> int:
        if seconds == 0:
            return 0
        billed = self.minimum
        while billed < seconds:
            billed += self.increment
        return round(self.fee + Fraction(self.minute * billed, 60))


@dataclass
class Call:
    price: Price
    until: float
    held: int
    seconds: int
    number: int = 0
    last: int = 0  # of the last slice
    ended: str | None = None
    settled: int | None = None


@dataclass
class Holds:
    """One prepaid account. Answers are (word, seconds granted in all, held) or a word of refusal."""

    wallet: int = 0
    now: float = 0.0
    calls: dict[str, Call] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return sum(call.held for call in self.calls.values() if call.until > self.now)

    @property
    def available(self) -> int:
        return self.wallet - self.held

    @property
    def suspended(self) -> bool:
        return self.wallet <= 0

    def authorize(self, name: str, price: Price, asked: int) -> tuple[object, ...]:
        call = self.calls.get(name)
        if call is not None and call.ended:
            return ("call_ended",)
        if call is not None and call.until > self.now:
            return ("out_of_order",) if call.number else ("granted", call.seconds, call.held)
        if self.suspended:
            return ("suspended",)
        return self._grant(name, price, 0, asked, 0)

    def renew(self, name: str, number: int, asked: int) -> tuple[object, ...]:
        call = self.calls.get(name)
        if call is None:
            return ("unknown_call",)
        if call.ended:
            return ("call_ended",)
        again = number == call.number > 0
        if again and call.until > self.now:
            return ("granted", call.seconds, call.held)
        if not again and number != call.number + 1:
            return ("out_of_order",)
        if self.suspended:
            return ("suspended",)
        return self._grant(name, call.price, call.seconds - (call.last if again else 0), asked, number)

    def settle(self, name: str, seconds: int) -> tuple[object, ...]:
        call = self.calls.get(name)
        if call is None:
            return ("unknown_call",)
        if call.ended == "settle" and call.settled != seconds:
            return ("idempotency_conflict",)
        if call.ended is None:
            held = call.held if call.until > self.now else 0
            call.held = min(held, call.price.cost(seconds))
            call.ended, call.settled = "settle", seconds
            if call.held:
                call.until = self.now + KEPT
        return ("ended", call.ended, call.held if call.until > self.now else 0)

    def release(self, name: str) -> tuple[object, ...]:
        call = self.calls.get(name)
        if call is None:
            return ("unknown_call",)
        if call.ended is None:
            call.ended, call.held = "release", 0
        return ("ended", call.ended, call.held if call.until > self.now else 0)

    def charge(self, name: str, amount: int) -> None:
        self.wallet -= amount
        if name in self.calls:
            self.calls[name].held, self.calls[name].ended = 0, "charge"

    def _grant(self, name: str, price: Price, before: int, asked: int, number: int) -> tuple[object, ...]:
        old = self.calls.get(name)
        runs = old is not None and old.until > self.now
        spendable = self.available + (old.held if old is not None and runs else 0)
        lengths = [length for length in range(1, min(asked, SLICE) + 1) if price.cost(before + length) <= spendable]
        if not lengths:
            return ("insufficient_credit",)
        length = max(lengths)
        until = self.now + length + GRACE
        if old is not None and runs:
            until = max(until, old.until + length)
        self.calls[name] = Call(price, until, price.cost(before + length), before + length, number, length)
        return ("granted", before + length, price.cost(before + length))
