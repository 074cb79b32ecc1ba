"""What changes between two versions of price books, price by price, before anybody is billed by it.

Pure. Source: domain, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from msgspec import Struct

from services.kernel.errors import InvalidInput
from services.kernel.money import divide_half_even
from services.usage.books import ANY, SHORT_CODE, BookVersion, PriceRow

Kind = Literal["added", "removed", "raised", "lowered", "changed"]
_FIELDS = {
    "price_nano": "price", "per": "per", "connection_fee_nano": "fee", "minimum": "minimum", "increment": "increment",
    "unit": "unit", "delivered_only": "bill_on", "schedule": "schedule",
}  # fmt: skip
_Key = tuple[str, str, str]  # product, prefix, window


class Change(Struct, frozen=True):
    """One price that differs. ``raised`` and ``lowered``: no use costs less, or more, than before; ``changed``: it depends on
    the use. ``percent`` is of the price for one unit. Of a prefix that is ``added`` or ``removed``, ``covered_by`` is the price
    without a window that holds for its numbers in the other version."""

    kind: Kind
    product: str
    prefix: str
    window: str
    old: PriceRow | None
    new: PriceRow | None
    fields: tuple[str, ...] = ()
    percent: str | None = None
    covered_by: PriceRow | None = None


def compare(old: BookVersion, new: BookVersion) -> tuple[Change, ...]:
    """The prices that differ, by product, prefix and window. Two currencies cannot be compared: `InvalidInput`.

    >>> from datetime import UTC, datetime
    >>> old, new = (BookVersion("list", n, "USD", datetime(2026, 1, n, tzinfo=UTC),
    ...     (PriceRow("voice.outbound", "+49", price),)) for n, price in ((1, 80_000_000), (2, 90_000_000)))
    >>> [(change.kind, change.prefix, change.percent, change.fields) for change in compare(old, new)]
    [('raised', '+49', '12.50', ('price',))]
    """
    if old.currency != new.currency:
        raise InvalidInput(f"{new.currency} cannot be compared with {old.currency}", field="currency")
    was, is_now = _by_key(old), _by_key(new)
    redefined = _redefined(old, new)
    changes: list[Change] = []
    for key in sorted(was.keys() | is_now.keys()):
        before, after = was.get(key), is_now.get(key)
        if before is None:
            changes.append(Change("added", *key, None, after, covered_by=_covering(was, key)))
        elif after is None:
            changes.append(Change("removed", *key, before, None, covered_by=_covering(is_now, key)))
        else:
            fields = tuple(name for field, name in _FIELDS.items() if getattr(before, field) != getattr(after, field))
            fields += tuple(
                what for what, name in (("window", key[2]), ("schedule", after.schedule)) if (what, name) in redefined
            )
            if fields:
                kind = _kind(before, after, fields)
                changes.append(Change(kind, *key, before, after, fields, _percent(before, after)))
    return tuple(changes)


def _by_key(version: BookVersion) -> dict[_Key, PriceRow]:
    return {(row.product, row.prefix, row.window): row for row in version.rows}


def _redefined(old: BookVersion, new: BookVersion) -> set[tuple[str, str]]:
    """The windows and schedules that have another meaning under the same name."""
    windows = {window.window_id: window for window in old.windows}
    schedules = {schedule.schedule_id: schedule for schedule in old.schedules}
    found = {("window", each.window_id) for each in new.windows if windows.get(each.window_id, each) != each}
    return found | {
        ("schedule", each.schedule_id) for each in new.schedules if schedules.get(each.schedule_id, each) != each
    }


def _covering(rows: Mapping[_Key, PriceRow], key: _Key) -> PriceRow | None:
    product, prefix, _ = key
    shortest = len(prefix) if prefix.startswith(SHORT_CODE) else 1  # of a short code no part has numbers
    # From the whole one on: it covers itself where only a window is added or removed.
    lengths = range(len(prefix), shortest - 1, -1)
    return next(
        (row for each in (*[prefix[:length] for length in lengths], ANY) if (row := rows.get((product, each, "")))),
        None,
    )


def _kind(old: PriceRow, new: PriceRow, fields: tuple[str, ...]) -> Kind:
    if {"unit", "bill_on", "schedule", "window"} & set(fields):
        return "changed"
    dearer = [
        Fraction(new.price_nano, new.per) > Fraction(old.price_nano, old.per),
        new.connection_fee_nano > old.connection_fee_nano,
    ]
    cheaper = [
        Fraction(new.price_nano, new.per) < Fraction(old.price_nano, old.per),
        new.connection_fee_nano < old.connection_fee_nano,
    ]
    if (old.minimum, old.increment) != (new.minimum, new.increment):
        coarser, finer = _is_coarser(new, old), _is_coarser(old, new)
        if not coarser and not finer:
            return "changed"
        dearer.append(coarser)
        cheaper.append(finer)
    if any(dearer) == any(cheaper):
        return "changed"
    return "raised" if any(dearer) else "lowered"


def _is_coarser(row: PriceRow, than: PriceRow) -> bool:
    """Whether every quantity that one bills is one that the other bills too, so that it never bills less.

    >>> rows = [PriceRow("voice.outbound", "+1", 1, minimum=m, increment=i) for m, i in ((60, 60), (60, 6), (30, 6), (1, 60))]
    >>> [_is_coarser(rows[0], row) for row in rows]
    [True, True, True, False]
    """
    return (
        row.increment % than.increment == 0
        and row.minimum >= than.minimum
        and (row.minimum - than.minimum) % than.increment == 0
    )


def _percent(old: PriceRow, new: PriceRow) -> str | None:
    """By how much the price for one unit differs, half-even to two decimals; None where it cannot be said."""
    if not old.price_nano or old.unit != new.unit or old.schedule or new.schedule:
        return None
    ratio = Fraction(new.price_nano * old.per, new.per * old.price_nano) - 1
    hundredths = divide_half_even(ratio.numerator * 10_000, ratio.denominator)
    whole, rest = divmod(abs(hundredths), 100)
    return f"{'-' if hundredths < 0 else ''}{whole}.{rest:02d}"
