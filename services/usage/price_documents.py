"""Price files in JSON: one document with all that a version of a price book holds.

    {"currency": "USD",
     "windows": [{"id": "night", "zone": "Europe/Berlin", "days": ["mon-fri", "holiday"], "from": "22:00", "to": "06:00",
                  "holidays": ["2026-12-25"]}],
     "prices": [{"product": "voice.outbound", "prefix": "+49", "price": "0.01", "minimum": 60, "increment": 6},
                {"product": "voice.outbound", "prefix": "+49", "price": "0.005", "window": "night"},
                {"product": "message.sms.outbound", "prefix": "*", "schedule": "messages"}],
     "schedules": [{"id": "messages", "form": "graduated", "per": 1,
                    "bands": [{"up_to": 1000, "price": "0"}, {"price": "0.008", "fee": "5"}]}]}

The names, what may be left out, and what each means are those of a CSV file by product (`price_files`). A price that names a
schedule has neither price nor fee nor per (`tiers`). Amounts are texts, quantities are numbers. An entry that cannot be used is refused by its place, such as ``prices[3].price``, and the others go
on. Pure: bytes in, rows out. Source: domain, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from contracts.words import ID_PATTERN
from services.kernel.currency import currency as currency_row
from services.kernel.errors import InvalidInput
from services.usage.books import RENTAL
from services.usage.price_files import (
    NoPrices,
    PriceFile,
    PriceRows,
    RefusedPrice,
    add_window,
    check_product,
    check_steps,
    price_nano,
    product_terms,
    text_of,
)
from services.usage.tiers import Band, Schedule
from services.usage.windows import Window

_TEXTS = frozenset({"product", "prefix", "price", "unit", "fee", "bill_on", "window", "schedule"})
_QUANTITIES = frozenset({"per", "minimum", "increment"})
_WINDOW_TEXTS, _WINDOW_LISTS = frozenset({"id", "zone", "from", "to"}), frozenset({"days", "holidays"})
_SCHEDULE, _BAND = frozenset({"id", "form", "per", "bands"}), frozenset({"up_to", "price", "fee"})
_SECTIONS = ("currency", "windows", "schedules", "prices")


def read_price_document(data: bytes, *, minimum_s: int = 60, increment_s: int = 60) -> PriceFile:
    """Reads a price file in JSON; the defaults hold for voice where an entry has none. Raises `InvalidInput` where the document
    as a whole is no price list.

    >>> file = read_price_document(b'{"currency": "USD", "prices": [{"product": "data", "price": 0.01}, {"product": "data", "price": "0"}]}')
    >>> [(row.prefix, row.price_nano) for row in file.rows]
    [('*', 0)]
    >>> print(file.refused[0])
    prices[0].price: must be a text such as "0.01", not a number
    """
    check_steps(minimum_s, increment_s)
    document = _document(data)
    currency = document.get("currency")
    if not isinstance(currency, str):
        raise InvalidInput('must be an ISO 4217 code such as "USD"', field="currency")
    code = currency_row(currency).code
    refused: list[RefusedPrice] = []
    windows: dict[str, Window] = {}
    for place, entry in _entries(document, "windows"):
        try:
            add_window(windows, _window_texts(entry))
        except InvalidInput as error:
            refused.append(_refusal(place, error))
    schedules: dict[str, Schedule] = {}
    for place, entry in _entries(document, "schedules"):
        try:
            schedule = _schedule(entry)
            if schedule.schedule_id in schedules:
                raise InvalidInput(f"there is a schedule {schedule.schedule_id} already; keep one", field="id")
        except InvalidInput as error:
            refused.append(_refusal(place, error))
        else:
            schedules[schedule.schedule_id] = schedule
    units: dict[str, tuple[str, str]] = {}
    found = PriceRows(windows.values())
    for place, entry in _entries(document, "prices"):
        try:
            fields = _priced(_price_texts(entry), schedules)
            product = fields["product"]
            check_product(product, by_product=True)
            terms = product_terms({**fields, "currency": code}, minimum_s, increment_s)
            if terms.schedule:
                unit, where = units.setdefault(terms.schedule, (terms.unit, place))
                if unit != terms.unit:
                    raise InvalidInput(f"counts {unit} for {where}; give {terms.unit} one of its own", field="schedule")
            found.add(place, product, fields.get("prefix", ""), fields.get("window", ""), terms)
        except InvalidInput as error:
            refused.append(_refusal(place, error))
    if not found.rows:
        raise NoPrices(refused)
    return PriceFile(code, tuple(found.rows), tuple(refused), tuple(windows.values()), tuple(schedules.values()))


def _document(data: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidInput(f"the name {twice!r} stands twice in one object; keep one", field="price file")
        return found

    try:
        document = json.loads(text_of(data), object_pairs_hook=once)
    except ValueError as error:
        raise InvalidInput(f"is no JSON: {error}", field="price file") from None
    except RecursionError:
        raise InvalidInput("is nested too deeply for a price file", field="price file") from None
    if not isinstance(document, dict):
        raise InvalidInput('must be an object with "currency" and "prices"', field="price file")
    _check_names(document, _SECTIONS)
    return document


def _entries(document: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    """The entries of a list, each with its place."""
    entries = document.get(section)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidInput("must be a list", field=section)
    return [(f"{section}[{number}]", entry) for number, entry in enumerate(entries)]


def _check_names(entry: Mapping[str, Any], known: frozenset[str] | tuple[str, ...]) -> None:
    for name in entry:
        if name not in known:
            raise InvalidInput(f"is unknown; use {', '.join(sorted(known))}", field=name)


def _object(entry: Any, known: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise InvalidInput("must be an object", field="")
    _check_names(entry, known)
    return entry


def _price_texts(entry: Any) -> dict[str, str]:
    """The fields as they would stand in CSV; what is absent and what is null are the same."""
    fields: dict[str, str] = {}
    for name, value in _object(entry, _TEXTS | _QUANTITIES).items():
        if value is None:
            continue
        if name in _QUANTITIES:
            fields[name] = str(_whole(value, name))
        else:
            fields[name] = _text(value, name, "0.01" if name in ("price", "fee") else None)
    for name in ("product",) if "schedule" in fields else ("product", "price"):
        if name not in fields:
            raise InvalidInput("is missing", field=name)
    return fields


def _priced(fields: dict[str, str], schedules: Mapping[str, Schedule]) -> dict[str, str]:
    """The fields, completed by the schedule that they may name."""
    name = fields.get("schedule")
    if name is None:
        return fields
    if name not in schedules:
        raise InvalidInput(f"there is no usable schedule {name}; name it among the schedules", field="schedule")
    for twice in ("price", "fee", "per"):
        if twice in fields:
            raise InvalidInput("is said by the schedule; leave it out", field=twice)
    per = schedules[name].per
    if fields["product"] == RENTAL:
        if per != 1:
            raise InvalidInput(f"a rental's bands have prices a month; give {name} per 1", field="schedule")
        return fields | {"price": "0"}
    return fields | {"price": "0", "per": str(per)}


def _schedule(entry: Any) -> Schedule:
    fields = _object(entry, _SCHEDULE)
    for name in sorted(_SCHEDULE):
        if fields.get(name) is None:
            raise InvalidInput("is missing", field=name)
    identifier = _text(fields["id"], "id")
    if re.fullmatch(ID_PATTERN, identifier) is None:
        raise InvalidInput("must be letters, digits, dots, dashes, at most 64", field="id")
    form = _text(fields["form"], "form")
    return Schedule(
        identifier,
        form,  # type: ignore[arg-type]  # it is checked there
        _whole(fields["per"], "per"),
        tuple(_band(band, f"bands[{number}]") for number, (_, band) in enumerate(_entries(fields, "bands"))),
    )


def _band(entry: Any, place: str) -> Band:
    try:
        fields = _object(entry, _BAND)
        up_to = fields.get("up_to")
        return Band(
            None if up_to is None else _whole(up_to, "up_to"),
            price_nano(fields.get("price"), field="price"),
            price_nano(fields.get("fee") or "0", field="fee"),
        )
    except InvalidInput as error:
        raise InvalidInput(error.message, field=f"{place}.{error.field}" if error.field else place) from None


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidInput("must be a whole number such as 60", field=name)
    return value


def _window_texts(entry: Any) -> dict[str, str]:
    fields = dict.fromkeys(_WINDOW_TEXTS | _WINDOW_LISTS, "")
    for name, value in _object(entry, _WINDOW_TEXTS | _WINDOW_LISTS).items():
        if value is None:
            continue
        if name in _WINDOW_TEXTS:
            fields[name] = _text(value, name)
        elif isinstance(value, list):
            fields[name] = " ".join(_text(each, f"{name}[{number}]") for number, each in enumerate(value))
        else:
            raise InvalidInput("must be a list of texts", field=name)
    return fields


def _text(value: Any, name: str, example: str | None = None) -> str:
    if isinstance(value, str):
        return value
    kind = "a number" if isinstance(value, int | float) and not isinstance(value, bool) else "something else"
    like = f' such as "{example}"' if example else ""
    raise InvalidInput(f"must be a text{like}, not {kind}", field=name)


def _refusal(place: str, error: InvalidInput) -> RefusedPrice:
    return RefusedPrice(None, f"{place}.{error.field}" if error.field else place, error.message, error.code)
