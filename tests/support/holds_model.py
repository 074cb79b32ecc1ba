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
class Credit:
    """A credit that the accounts of the one group share, in the order in which they are spent."""

    remaining: int
    expires: float | None = None
    expired: bool = False


@dataclass
class Call:
    price: Price
    until: float
    own: int
    shared: dict[int, int]  # by the place of the credit
    seconds: int
    number: int = 0
    last: int = 0  # of the last slice
    ended: str | None = None
    settled: int | None = None

    @property
    def held(self) -> int:
        return self.own + sum(self.shared.values())


@dataclass
class Holds:
    """Prepaid accounts of one payer group. Answers are (word, seconds granted in all, held) or a word of refusal.

    What a call holds of a shared credit when its lease is over is others' again when the tick has come, or its own account has
    asked for more than it has alone, or about that call.
    """

    wallets: dict[str, int] = field(default_factory=dict)
    credits: list[Credit] = field(default_factory=list)
    now: float = 0.0
    calls: dict[tuple[str, str], Call] = field(default_factory=dict)

    # ---- what there is ----

    def _valid(self, until: float = 0.0) -> list[int]:
        return [
            place
            for place, credit in enumerate(self.credits)
            if not credit.expired
            and (credit.expires is None or (credit.expires > self.now and credit.expires >= until))
        ]

    def _of(self, account: str) -> list[Call]:
        return [call for key, call in sorted(self.calls.items()) if key[0] == account]

    def _taken(self, place: int) -> int:
        """Of a credit, by whomever, as it is written."""
        return sum(call.shared.get(place, 0) for call in self.calls.values())

    def _alone(self, account: str) -> int:
        return self.wallets[account] - sum(call.own for call in self._of(account) if call.until > self.now)

    def held(self, account: str) -> int:
        """By calls whose leases run; what they hold of credits that have expired is nothing."""
        running = [call for call in self._of(account) if call.until > self.now]
        return sum(call.own + sum(call.shared.get(place, 0) for place in self._valid()) for call in running)

    def available(self, account: str) -> int:
        running = [call for call in self.calls.values() if call.until > self.now]
        shared = sum(
            self.credits[place].remaining - sum(call.shared.get(place, 0) for call in running)
            for place in self._valid()
        )
        return self._alone(account) + shared

    def suspended(self, account: str) -> bool:
        return self.wallets[account] + sum(self.credits[place].remaining for place in self._valid()) <= 0

    # ---- what time does ----

    def tick(self) -> None:
        for account in self.wallets:
            self._give_back(account)

    def rest(self) -> None:
        """Until nothing moves any more: also what has expired is gone, and what is long over forgotten."""
        self.tick()
        for credit in self.credits:
            if credit.expires is not None and credit.expires <= self.now:
                credit.remaining, credit.expired = 0, True
        for key, call in list(self.calls.items()):
            if call.until < self.now - KEPT and not call.held:
                del self.calls[key]

    def _give_back(self, account: str) -> None:
        for call in self._of(account):
            if call.until <= self.now:
                call.own, call.shared = 0, {}

    # ---- what is asked ----

    def _called(self, account: str, name: str) -> Call | None:
        call = self.calls.get((account, name))
        if call is not None and call.shared and call.until <= self.now:
            self._give_back(account)
        return call

    def authorize(self, account: str, name: str, price: Price, asked: int) -> tuple[object, ...]:
        call = self._called(account, name)
        if call is not None and call.ended:
            return ("call_ended",)
        if call is not None and call.until > self.now:
            return ("out_of_order",) if call.number else ("granted", call.seconds, call.held)
        if self.suspended(account):
            return ("suspended",)
        return self._grant(account, name, price, 0, asked, 0)

    def renew(self, account: str, name: str, number: int, asked: int) -> tuple[object, ...]:
        call = self._called(account, name)
        if call is None:
            return ("unknown_call",)
        if call.ended:
            return ("call_ended",)
        again = number == call.number > 0
        if again and call.until > self.now:
            return ("granted", call.seconds, call.held)
        if not again and number != call.number + 1:
            return ("out_of_order",)
        if self.suspended(account):
            return ("suspended",)
        return self._grant(account, name, call.price, call.seconds - (call.last if again else 0), asked, number)

    def settle(self, account: str, name: str, seconds: int) -> tuple[object, ...]:
        call = self._called(account, name)
        if call is None:
            return ("unknown_call",)
        if call.ended == "settle" and call.settled != seconds:
            return ("idempotency_conflict",)
        if call.ended is None:
            self._shrink(call, call.price.cost(seconds) if call.until > self.now else 0)
            call.ended, call.settled = "settle", seconds
            if call.held:
                call.until = self.now + KEPT
        return ("ended", call.ended, call.held if call.until > self.now else 0)

    def release(self, account: str, name: str) -> tuple[object, ...]:
        call = self._called(account, name)
        if call is None:
            return ("unknown_call",)
        if call.ended is None:
            self._shrink(call, 0)
            call.ended = "release"
        return ("ended", call.ended, call.held if call.until > self.now else 0)

    def charge(self, account: str, name: str, amount: int) -> None:
        """The call's hold goes back, then the credits pay what others do not hold, then the wallet."""
        if (account, name) in self.calls:
            call = self.calls[account, name]
            call.own, call.shared, call.ended = 0, {}, "charge"
        for place in self._valid():
            credit = self.credits[place]
            mine = sum(call.shared.get(place, 0) for call in self._of(account))
            paid = min(amount, credit.remaining - self._taken(place) + mine)
            credit.remaining -= paid
            amount -= paid
            for call in self._of(account):  # what it took of its own calls' is held of the account's own money
                part = min(call.shared.get(place, 0), max(0, self._taken(place) - credit.remaining))
                if part:
                    call.shared[place] -= part
                    call.own += part if call.until > self.now else 0
        self.wallets[account] -= amount

    def _shrink(self, call: Call, nano: int) -> None:
        """What is shared goes back first, of what has expired before others, then the last one in turn."""
        gone = [place for place in call.shared if self.credits[place].expired]
        for place in gone + sorted(set(call.shared) - set(gone), reverse=True):
            back = min(call.shared[place], max(0, call.held - nano))
            call.shared[place] -= back
        call.own = min(call.own, nano)

    def _grant(self, account: str, name: str, price: Price, before: int, asked: int, number: int) -> tuple[object, ...]:
        old = self.calls.get((account, name))
        if old is not None and old.until <= self.now:
            old.own = 0
        runs = old is not None and old.until > self.now
        own, parts = (old.own, old.shared) if old is not None and runs else (0, {})
        alone = self._alone(account) + own
        whole = min(asked, SLICE)
        if parts or price.cost(before + whole) > alone or alone < 0:
            self._give_back(account)

        def until(length: int) -> float:
            ends = self.now + length + GRACE
            return max(ends, old.until + length) if old is not None and runs else ends

        def there(place: int) -> int:
            return self.credits[place].remaining - self._taken(place) + parts.get(place, 0)

        lengths = [
            length
            for length in range(1, whole + 1)
            if price.cost(before + length) <= alone + sum(map(there, self._valid(until(length))))
            and alone + sum(map(there, self._valid(until(length)))) >= 0
        ]
        if not lengths:
            return ("insufficient_credit",)
        length = max(lengths)
        usable = self._valid(until(length))
        kept = {place: parts.get(place, 0) for place in usable}
        left = price.cost(before + length) - sum(kept.values())
        mine = max(own, min(alone, left))
        left -= mine
        for place in usable:
            more = min(left, there(place) - kept[place])
            kept[place] += more
            left -= more
        assert left == 0
        seconds = before + length
        self.calls[account, name] = Call(price, until(length), mine, kept, seconds, number, length)
        return ("granted", seconds, self.calls[account, name].held)
