"""Promotional credit: which credit pays for a charge, in which order, and what a reversal gives back.

Pure; nanos. A credit is restricted to one account or shared by the accounts of a payer group. It is spent before the wallet
and the credit limit, by charges whose event time lies in its validity. Source: domain, section 5; designs/ledger, section 3.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from services.kernel.money import NANO

ALONE_NANO_MAX = (
    1_000 * NANO
)  # what one person may promise in one credit, or by all redemptions of a code; more needs a second
CODE_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # no I, L, O, U: a code is read out loud and typed
CODE_LENGTH = 20  # 100 bits: nobody guesses one, so a digest without salt keeps it
_ALIKE = str.maketrans("OIL", "011", "- ")
_FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(slots=True)
class Credit:
    """A credit in hand: its row is locked by this transaction. ``account_id`` is None for one that a group shares."""

    credit_id: UUID
    account_id: str | None
    group_id: str | None
    currency: str
    remaining_nano: int
    breakage_nano: int
    valid_from: datetime
    expires_at: datetime | None
    expired_at: datetime | None
    created_at: datetime
    held_nano: int = 0
    held_by: MutableMapping[str, int] = field(default_factory=dict)  # of it: by calls of the accounts in hand
    displaced: MutableMapping[str, int] = field(default_factory=dict)  # what charges of these took of that

    def is_of(self, use: Use) -> bool:
        """Whether the account or payer group whose it is uses."""
        return self.group_id == use.group_id if self.account_id is None else self.account_id == use.account_id

    def payable_nano(self, use: Use) -> int:
        """What it may pay for a use now: of the right account or group, valid at the event time, all that is left but for what
        calls of other accounts hold."""
        if self.remaining_nano <= 0 or not self.is_of(use):
            return 0
        if use.at < self.valid_from or (self.expires_at is not None and use.at >= self.expires_at):
            return 0
        return self.remaining_nano - self.held_nano + self.held_by.get(use.account_id, 0)

    def pay(self, account_id: str, nano: int) -> None:
        """So much is used up by a charge. What it takes of what the account's own calls hold is displaced: no more is ever held
        than is left."""
        self.remaining_nano -= nano
        over = self.held_nano - self.remaining_nano
        if over > 0:
            self.held_nano -= over
            self.held_by[account_id] -= over
            self.displaced[account_id] = self.displaced.get(account_id, 0) + over

    @property
    def free_nano(self) -> int:
        """What no call holds of it."""
        return 0 if self.expired_at is not None else self.remaining_nano - self.held_nano

    @property
    def turn(self) -> tuple[bool, datetime, datetime, UUID]:
        """Restricted before shared, then the earliest expiry, then creation, then id."""
        return (self.account_id is None, self.expires_at or _FOREVER, self.created_at, self.credit_id)


class Use(NamedTuple):
    """A charge as far as credits are concerned; below zero it takes ``reverses`` back, if that is known. After a re-rate
    or a move it stands in the place of ``replaces``, a charge of the same account."""

    charge_id: str
    account_id: str
    group_id: str | None
    bill_to: str | None
    unbilled: bool
    at: datetime
    nano: int
    reverses: str | None
    replaces: str | None = None


class Part(NamedTuple):
    """What a credit pays of a charge (above zero), or gets back by its reversal (below zero), in order of ``place``.

    ``charge_nano`` is the whole amount of the charge or reversal, which takes ``reverses`` back.
    """

    charge_id: str
    place: int
    credit_id: UUID
    nano: int
    charge_nano: int
    reverses: str | None = None


@dataclass(slots=True)
class Funded:
    """What credits paid of one account's charges; amounts above zero relieve the wallet or the unbilled amount."""

    wallet_nano: int = 0
    unbilled_nano: int = 0
    by_credit: MutableMapping[UUID, int] = field(default_factory=lambda: defaultdict(int))
    by_invoice: MutableMapping[tuple[str | None, str | None, bool], int] = field(
        default_factory=lambda: defaultdict(int)
    )


@dataclass(slots=True)
class Funding:
    """What follows for the charges of one batch: its rows, and the sums by account."""

    parts: list[Part] = field(default_factory=list)
    accounts: dict[str, Funded] = field(default_factory=dict)


def fund(
    uses: Iterable[Use], credits: Sequence[Credit], paid_before: Mapping[str, Sequence[Part]] | None = None
) -> Funding:
    """Let credits pay for charges one by one, in the order they came; changes what the credits have left.

    ``paid_before`` are the parts of charges of earlier batches that are reversed here, and of reversals of what is replaced
    here. Any split into batches gives the same, since each charge is decided by what those before it left.

    >>> day = datetime(2026, 3, 1, tzinfo=UTC)
    >>> summer = Credit(UUID(int=1), "desk", None, "USD", 2, 0, day, None, None, day)
    >>> charge = Use("c", "desk", None, None, False, day, 5, None)
    >>> fund([charge], [summer]).accounts["desk"].wallet_nano, summer.remaining_nano
    (2, 0)
    >>> back = fund([charge._replace(charge_id="r", nano=-5, reverses="c")], [summer], {"c": [Part("c", 0, summer.credit_id, 2, 5)]})
    >>> back.accounts["desk"].wallet_nano, summer.remaining_nano
    (-2, 2)
    """
    turns = sorted(credits, key=lambda credit: credit.turn)
    by_id = {credit.credit_id: credit for credit in credits}
    paid: dict[str, Sequence[Part]] = dict(paid_before or {})
    given_back = {parts[0].reverses: parts for parts in paid.values()}
    funding = Funding()
    for use in uses:
        if use.nano > 0:
            parts = _spend_again(use, given_back.get(use.replaces, ()), by_id) if use.replaces is not None else []
            parts += _spend(use, turns, parts)
        else:
            parts = _give_back(use, paid.get(use.reverses or "", ()), by_id)
        if not parts:
            continue
        paid[use.charge_id] = given_back[use.reverses] = parts
        funding.parts += parts
        funded = funding.accounts.setdefault(use.account_id, Funded())
        nano = sum(part.nano for part in parts)
        if use.unbilled:
            funded.unbilled_nano += nano
        else:
            funded.wallet_nano += nano
        funded.by_invoice[use.group_id, use.bill_to, use.unbilled] += nano
        for part in parts:
            funded.by_credit[part.credit_id] += part.nano
    return funding


def _spend(use: Use, turns: Sequence[Credit], before: Sequence[Part]) -> list[Part]:
    """What is left to pay after the parts ``before``, by each credit in its turn."""
    parts: list[Part] = []
    left = use.nano - sum(part.nano for part in before)
    for credit in turns:
        if left == 0:
            break
        nano = min(left, credit.payable_nano(use))
        if nano > 0:
            credit.pay(use.account_id, nano)
            left -= nano
            parts.append(Part(use.charge_id, len(before) + len(parts), credit.credit_id, nano, use.nano))
    return parts


def _spend_again(use: Use, given_back: Sequence[Part], by_id: Mapping[UUID, Credit]) -> list[Part]:
    """What the reversal of the charge that this one replaces gave back to credits that have expired: only what is not used
    again stays breakage, or a correction of a price after the end of a credit would cost cash. What a group shared pays for
    no other group: a charge that was moved is paid by the credits of who pays now."""
    parts: list[Part] = []
    left = use.nano
    for part in reversed(given_back):
        credit = by_id[part.credit_id]
        nano = min(left, -part.nano)
        if credit.expired_at is not None and credit.is_of(use) and nano > 0:
            credit.breakage_nano -= nano
            left -= nano
            parts.append(Part(use.charge_id, len(parts), credit.credit_id, nano, use.nano))
    return parts


def _give_back(use: Use, paid: Sequence[Part], by_id: Mapping[UUID, Credit]) -> list[Part]:
    """The reverse order of funding: first what the wallet paid, then the credits from the last one back. A reversal of what
    tiers priced may give back less than was charged.

    What goes back to a credit that has expired is breakage at once, never cash.
    """
    parts: list[Part] = []
    by_credits = sum(part.nano for part in paid)
    by_wallet = paid[0].charge_nano - by_credits if paid else 0
    left = min(-use.nano - by_wallet, by_credits)
    for part in sorted(paid, key=lambda part: -part.place):
        nano = min(left, part.nano)
        if nano <= 0:
            break
        left -= nano
        credit = by_id[part.credit_id]
        if credit.expired_at is None:
            credit.remaining_nano += nano
        else:
            credit.breakage_nano += nano
        parts.append(Part(use.charge_id, len(parts), credit.credit_id, -nano, use.nano, use.reverses))
    return parts


# ---- codes ---------------------------------------------------------------------------------------------------------


def new_code() -> str:
    """A voucher code that nobody has seen: four groups of five letters."""
    letters = "".join(secrets.choice(CODE_LETTERS) for _ in range(CODE_LENGTH))
    return "-".join(letters[at : at + 5] for at in range(0, CODE_LENGTH, 5))


def digest_of_code(code: str) -> bytes:
    """What is kept of a code: never the code itself. Case, spaces and dashes do not matter, nor O for 0, I or L for 1.

    >>> digest_of_code("0abcd-efgh1 jkmnp") == digest_of_code("OABCDEFGHLJKMNP")
    True
    """
    letters = code.upper().translate(_ALIKE)
    return sha256(letters.encode()).digest()


def needs_second_person(nano: int, times: int = 1) -> bool:
    """Whether this much promotional money is more than one person may promise alone.

    >>> needs_second_person(1_000 * NANO), needs_second_person(10 * NANO, 101)
    (False, True)
    """
    return nano * times > ALONE_NANO_MAX
