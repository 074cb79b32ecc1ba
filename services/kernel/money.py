"""Money: integers of 10^-9 of the currency unit (nano), and decimal strings on every wire. No float, anywhere.

Amounts travel as strings of ASCII digits (``"0.0140"``), are stored as bigint nanos, and are rounded half-even exactly
where the domain page says so. Source: domain, section 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from services.kernel.errors import AmountError

NANO = 1_000_000_000
CHARGE_NANO_MAX = 10**6 * NANO  # one charge
PAYMENT_NANO_MAX = 10**7 * NANO  # one payment
WALLET_NANO_MAX = 4 * 10**9 * NANO  # a wallet, either sign; leaves room in a bigint for sums of a batch

_AMOUNT = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?", re.ASCII)


def parse_amount(text: object, *, field: str = "amount", signed: bool = False) -> int:
    """Nanos of a decimal string: ASCII digits, at most 12 before and 9 after the point, no exponent, no sign unless
    ``signed``. Raises `AmountError` naming the field for everything else, JSON numbers included.

    >>> parse_amount("0.0140")
    14000000
    >>> parse_amount("-2.5", signed=True)
    -2500000000
    >>> parse_amount(0.5)
    Traceback (most recent call last):
    services.kernel.errors.AmountError: amount: must be a decimal string such as "10.00", not a JSON number
    """
    if not isinstance(text, str):
        kind = "a JSON number" if isinstance(text, int | float) and not isinstance(text, bool) else type(text).__name__
        raise AmountError(f'must be a decimal string such as "10.00", not {kind}', field=field)
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise AmountError(
            'must be a decimal string of ASCII digits such as "10.00", at most 12 before and 9 after the point',
            field=field,
        )
    sign, units, decimals = match.groups()
    if sign and not signed:
        raise AmountError("must not be negative", field=field)
    nano = int(units) * NANO + int((decimals or "").ljust(9, "0"))
    return -nano if sign else nano


@lru_cache(maxsize=65_536)  # the same few prices and amounts are written again and again
def format_nano(nano: int, *, decimals_min: int = 0) -> str:
    """The shortest decimal string of these nanos with at least ``decimals_min`` decimals; exact.

    >>> format_nano(14_000_000), format_nano(-2_500_000_000, decimals_min=2), format_nano(0)
    ('0.014', '-2.50', '0')
    """
    units, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(decimals_min, "0")
    text = f"{units}.{decimals}" if decimals else str(units)
    return f"-{text}" if nano < 0 else text


def divide_half_even(numerator: int, denominator: int) -> int:
    """Integer quotient rounded half-even. ``denominator`` > 0.

    >>> [divide_half_even(n, 2) for n in (1, 3, 5, -1, -3)]
    [0, 2, 2, 0, -2]
    """
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    if twice > denominator or (twice == denominator and quotient & 1):
        quotient += 1
    return quotient


def format_fraction(numerator_nano: int, denominator: int) -> str:
    """A part of nanos, not negative, as it is before rounding: exact to 12 decimals, then a sign that digits follow.

    >>> format_fraction(10**9, 4), format_fraction(1, 1_000), format_fraction(10**9, 3)
    ('0.25', '0.000000000001', '0.333333333333…')
    """
    thousandths, rest = divmod(numerator_nano * 1_000, denominator)
    if not rest and thousandths % 1_000 == 0:
        return format_nano(thousandths // 1_000)
    units, decimals = divmod(thousandths, 10**12)
    digits = f"{decimals:012d}"
    return f"{units}.{digits}…" if rest else f"{units}.{digits.rstrip('0')}"


def round_minor(nano: int, exponent: int) -> int:
    """Half-even to the currency's minor unit; still in nanos.

    >>> format_nano(round_minor(595_400_000, 2)), format_nano(round_minor(5_000_000, 2))
    ('0.6', '0')
    """
    step: int = 10 ** (9 - exponent)
    return divide_half_even(nano, step) * step


def ceil_minor(nano: int, exponent: int) -> int:
    """Up to the minor unit: what must be charged so that nothing is missing.

    >>> format_nano(ceil_minor(50_008_000_000, 2))
    '50.01'
    """
    step: int = 10 ** (9 - exponent)
    return -(-nano // step) * step


def floor_minor(nano: int, exponent: int) -> int:
    """Down to the minor unit: what may still be charged under a limit.

    >>> format_nano(floor_minor(9_999_000_000, 2))
    '9.99'
    """
    step: int = 10 ** (9 - exponent)
    return nano // step * step


@dataclass(frozen=True, slots=True, order=False)
class Money:
    """An exact amount in one currency. Adding or comparing two currencies is an error, never a conversion."""

    nano: int
    currency: str

    @classmethod
    def of(cls, text: str, currency: str) -> Money:
        return cls(parse_amount(text, signed=True), currency)

    def _same(self, other: Money) -> None:
        if self.currency != other.currency:
            raise AmountError(f"cannot mix {self.currency} with {other.currency}", field="currency")

    def __add__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.nano + other.nano, self.currency)

    def __sub__(self, other: Money) -> Money:
        self._same(other)
        return Money(self.nano - other.nano, self.currency)

    def __neg__(self) -> Money:
        return Money(-self.nano, self.currency)

    def __lt__(self, other: Money) -> bool:
        self._same(other)
        return self.nano < other.nano

    def __le__(self, other: Money) -> bool:
        self._same(other)
        return self.nano <= other.nano

    def __gt__(self, other: Money) -> bool:
        return other < self

    def __ge__(self, other: Money) -> bool:
        return other <= self

    @property
    def amount(self) -> str:
        """The decimal string that travels.

        >>> Money.of("10.50", "USD").amount
        '10.5'
        """
        return format_nano(self.nano)

    def __repr__(self) -> str:
        return f"Money({self.amount!r}, {self.currency!r})"


def usd(text: str) -> Money:
    """Short form for US dollars in examples and tests."""
    return Money.of(text, "USD")
