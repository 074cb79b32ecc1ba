"""The per-currency table: minor unit, minimum payment and top-up limit. A currency without a row cannot be used.

Source: domain, section 2; designs/recharge, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.kernel.errors import InvalidInput
from services.kernel.money import NANO, floor_minor


@dataclass(frozen=True, slots=True)
class Currency:
    """``exponent`` is the number of decimals of the minor unit; the limits are in nanos."""

    code: str
    exponent: int
    payment_min_nano: int
    topup_first_day_nano: int
    topup_rise_per_day_nano: int


CURRENCIES = {"USD": Currency("USD", 2, 10 * NANO, 100 * NANO, 50 * NANO)}


def check_decimals(nano: int, code: str, *, field: str = "amount") -> None:
    """Refuse what no bank and no processor can send: a part of a minor unit.

    >>> check_decimals(10_010_000_000, "USD")
    >>> check_decimals(10_001_000_000, "USD")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: amount: must have at most 2 decimals in USD
    """
    exponent = currency(code).exponent
    if floor_minor(nano, exponent) != nano:
        raise InvalidInput(f"must have at most {exponent} decimals in {code}", field=field)


def currency(code: str, *, field: str = "currency") -> Currency:
    """The row of an ISO 4217 code.

    >>> currency("USD").exponent
    2
    >>> currency("XXX")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: currency: XXX has no row in the currency table; use one of USD
    """
    row = CURRENCIES.get(code)
    if row is None:
        known = ", ".join(sorted(CURRENCIES))
        raise InvalidInput(
            f"{code} has no row in the currency table; use one of {known}", field=field, code="unknown_currency"
        )
    return row
