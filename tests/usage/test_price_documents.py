"""Price files in JSON: the same prices as in CSV, and each bad entry named by its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.kernel.errors import InvalidInput
from services.kernel.money import NANO
from services.usage.books import PriceRow
from services.usage.price_documents import read_price_document
from services.usage.price_files import PriceFile, read_price_file, read_windows
from services.usage.tiers import Band, Schedule
from services.usage.windows import window_of

NIGHT = {"id": "night", "zone": "Europe/Berlin", "days": ["mon-thu", "sun"], "from": "22:00", "to": "06:00"}
DAY = {"id": "day", "zone": "Europe/Berlin", "days": ["mon-fri"], "from": "05:00", "to": "22:00"}
VOICE = {"product": "voice.outbound", "prefix": "+49", "price": "0.01"}


def read(*prices: Any, windows: Any = (), **more: Any) -> PriceFile:
    document = {"currency": "USD", "windows": list(windows), "prices": list(prices)} | more
    return read_price_document(json.dumps(document).encode())


def refusals(file: PriceFile) -> list[str]:
    return [str(refused) for refused in file.refused]


def test_a_document_gives_the_rows_that_the_same_csv_gives() -> None:
    csv = read_price_file(
        b"product,prefix,price,currency,per,minimum,increment,fee,unit,bill_on,window\n"
        b"voice.outbound,49,0.01,USD,,30,6,0.001,,,\n"
        b"voice.outbound,49,0.005,USD,,,,,,,night\n"
        b"message.sms.outbound,44,0.04,USD,,,,,,delivered,\n"
        b"data,,0.01,USD,1000000,1000000,1000000,,,,\n"
        b"number.rental,1,1.00,USD,,,,,,,\n"
        b"api.lookups,,0.40,USD,1000,,,,request,,\n",
        windows=read_windows(b"id,zone,days,from,to,holidays\nnight,Europe/Berlin,mon-thu sun,22:00,06:00,\n"),
    )
    document = read(
        VOICE | {"minimum": 30, "increment": 6, "fee": "0.001", "unit": None},
        VOICE | {"price": "0.005", "window": "night"},
        {"product": "message.sms.outbound", "prefix": "44", "price": "0.04", "bill_on": "delivered"},
        {"product": "data", "price": "0.01", "per": 10**6, "minimum": 10**6, "increment": 10**6, "unit": "byte"},
        {"product": "number.rental", "prefix": "1", "price": "1.00"},
        {"product": "api.lookups", "price": "0.40", "per": 1_000, "unit": "request"},
        windows=[NIGHT],
    )
    assert document == csv
    assert document.refused == ()
    assert document.windows == (window_of("night", "Europe/Berlin", "mon tue wed thu sun", "22:00", "06:00"),)


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        (VOICE | {"price": 0.01}, 'prices[1].price: must be a text such as "0.01", not a number'),
        (VOICE | {"price": "-0.01"}, "prices[1].price: must not be negative"),
        (VOICE | {"price": "99999999999"}, "prices[1].price: must be at most 1000000, the most that one charge may be"),
        (VOICE | {"fee": True}, 'prices[1].fee: must be a text such as "0.01", not something else'),
        (VOICE | {"per": "60"}, "prices[1].per: must be a whole number such as 60"),
        (VOICE | {"minimum": 1.5}, "prices[1].minimum: must be a whole number such as 60"),
        (VOICE | {"increment": True}, "prices[1].increment: must be a whole number such as 60"),
        (VOICE | {"increment": 0}, "prices[1].increment: must be a whole number from 1 to 1000000000000000"),
        (VOICE | {"prefix": "+0"}, 'prices[1].prefix: must be 1 to 15 digits of an E.164 number, such as "+1800", or * for any'),
        (VOICE | {"prefix": "+4"}, None),
        (VOICE, "prices[1].prefix: +49 has a price on prices[0] already; keep one"),
        (VOICE | {"window": "dusk"}, "prices[1].window: there is no usable window dusk; name it among the windows"),
        (VOICE | {"colour": "red"}, "prices[1].colour: is unknown; use bill_on, fee, increment, minimum, per, prefix, price, product, schedule, unit, window"),
        ({"product": "voice.outbound"}, "prices[1].price: is missing"),
        ({"price": "1"}, "prices[1].product: is missing"),
        ({"product": "api", "price": "1"}, "prices[1].unit: must be named for a product of your own, such as request"),
        ("voice.outbound", "prices[1]: must be an object"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_used_is_refused_by_its_place_and_the_others_go_on(
    entry: Any, refusal: str | None
) -> None:
    file = read(VOICE, entry, VOICE | {"prefix": "+33"})
    assert refusals(file) == ([refusal] if refusal else [])
    assert {row.prefix for row in file.rows} >= {"+49", "+33"}


LADDER = {
    "id": "s",
    "form": "volume",
    "per": 60,
    "bands": [{"up_to": 600, "price": "0"}, {"price": "0.01", "fee": "5"}],
}


def test_a_price_may_name_a_schedule_of_bands() -> None:
    rented = LADDER | {"id": "rented", "form": "graduated", "per": 1}
    file = read(
        {"product": "voice.outbound", "prefix": "+49", "schedule": "s", "minimum": 30, "increment": 6},
        {"product": "api.minutes", "unit": "second", "schedule": "s", "price": None},
        {"product": "number.rental", "prefix": "1", "schedule": "rented"},
        schedules=[LADDER, rented],
    )
    assert file.refused == ()
    assert file.rows == (
        PriceRow("voice.outbound", "+49", 0, 0, 30, 6, 60, "second", schedule="s"),
        PriceRow("api.minutes", "*", 0, 0, 0, 1, 60, "second", schedule="s"),
        PriceRow("number.rental", "+1", 0, 0, 0, 1, 1, "day", schedule="rented"),
    )
    bands = (Band(600, 0), Band(None, 10_000_000, 5 * NANO))
    assert file.schedules == (Schedule("s", "volume", 60, bands), Schedule("rented", "graduated", 1, bands))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"id": "s!"}, "schedules[0].id: must be letters, digits"),
        ({"id": None}, "schedules[0].id: is missing"),
        ({"per": "60"}, "schedules[0].per: must be a whole number such as 60"),
        ({"per": None}, "schedules[0].per: is missing"),
        ({"form": "stairs"}, "schedules[0].form: must be graduated or volume"),
        ({"form": 1}, "schedules[0].form: must be a text, not a number"),
        ({"bands": {}}, "schedules[0].bands: must be a list"),
        ({"bands": []}, "schedules[0].bands: must be 1 to 100"),
        ({"bands": [{"up_to": 5, "price": "1"}]}, "schedules[0].bands[0].up_to: must be null in the last band"),
        ({"bands": [{"up_to": "5", "price": "1"}, {"price": "1"}]}, "schedules[0].bands[0].up_to: must be a whole number"),
        ({"bands": [{"price": 0.5}]}, 'schedules[0].bands[0].price: must be a decimal string such as "10.00", not a JSON number'),
        ({"bands": [{"up_to": 5}, {"price": "1"}]}, "schedules[0].bands[0].price: must be a decimal string"),
        ({"bands": [{"price": "1", "fee": "x"}]}, "schedules[0].bands[0].fee: must be a decimal string"),
        ({"bands": [{"price": "99999999999"}]}, "schedules[0].bands[0].price: must be at most 1000000, the most that one charge may be"),
        ({"bands": [{"price": "1", "fee": "1000001"}]}, "schedules[0].bands[0].fee: must be at most 1000000"),
        ({"bands": [{"price": "1", "from": 0}]}, "schedules[0].bands[0].from: is unknown; use fee, price, up_to"),
        ({"bands": ["1"]}, "schedules[0].bands[0]: must be an object"),
        ({"steps": 1}, "schedules[0].steps: is unknown; use bands, form, id, per"),
    ],
)  # fmt: skip
def test_a_schedule_that_is_none_is_refused_with_the_prices_that_name_it(changes: Any, refusal: str) -> None:
    file = read(VOICE, {"product": "voice.outbound", "prefix": "+33", "schedule": "s"}, schedules=[LADDER | changes])
    first, second = refusals(file)
    assert first.startswith(refusal)
    assert second == "prices[1].schedule: there is no usable schedule s; name it among the schedules"
    assert file.schedules == ()


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        ({"product": "voice.outbound", "prefix": "+1", "price": "1"}, "price: is said by the schedule; leave it out"),
        ({"product": "voice.outbound", "prefix": "+1", "fee": "1"}, "fee: is said by the schedule; leave it out"),
        ({"product": "voice.outbound", "prefix": "+1", "per": 60}, "per: is said by the schedule; leave it out"),
        ({"product": "number.rental", "prefix": "+1"}, "schedule: a rental's bands have prices a month; give s per 1"),
        ({"product": "data"}, "schedule: counts second for prices[0]; give byte one of its own"),
    ],
)
def test_what_does_not_fit_a_schedule_is_refused_by_its_field(entry: Any, refusal: str) -> None:
    prices = [VOICE | {"price": None, "schedule": "s"}, entry | {"schedule": "s"}]
    file = read(*prices, schedules=[LADDER, LADDER])
    assert refusals(file) == ["schedules[1].id: there is a schedule s already; keep one", f"prices[1].{refusal}"]


@pytest.mark.parametrize(
    ("window", "refusal"),
    [
        (NIGHT | {"zone": "Berlin"}, "windows[0].zone: 'Berlin' is no IANA time zone"),
        (NIGHT | {"days": "mon"}, "windows[0].days: must be a list of texts"),
        (NIGHT | {"days": ["mon", 2]}, "windows[0].days[1]: must be a text, not a number"),
        (NIGHT | {"holidays": ["2026-13-01"]}, "windows[0].holidays: '2026-13-01' is no date"),
        (NIGHT | {"until": "06:00"}, "windows[0].until: is unknown; use days, from, holidays, id, to, zone"),
        (NIGHT | {"from": None}, 'windows[0].from: must be a time such as "08:00"'),
    ],
)
def test_a_window_that_is_none_is_refused_with_the_prices_that_name_it(window: Any, refusal: str) -> None:
    file = read(VOICE, VOICE | {"window": "night"}, windows=[window])
    first, second = refusals(file)
    assert first.startswith(refusal)
    assert second.startswith("prices[1].window: there is no usable window night")
    assert file.rows == (PriceRow("voice.outbound", "+49", 10_000_000),)


def test_overlapping_windows_of_one_prefix_are_refused_by_name() -> None:
    file = read(VOICE | {"window": "day"}, VOICE | {"window": "night"}, windows=[NIGHT, DAY])
    assert refusals(file) == [
        "prices[1].window: night and day, which +49 has on prices[0], overlap (Mon 05:00); end one where the other begins"
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "price file: is no JSON"),
        (b"[]", "price file: must be an object"),
        (b'{"currency": "USD", "currency": "EUR"}', "price file: the name 'currency' stands twice"),
        (b'{"currency": "USD", "tiers": []}', "tiers: is unknown"),
        (b'{"prices": []}', "currency: must be an ISO 4217 code"),
        (b'{"currency": "XXX", "prices": []}', "currency: "),
        (b'{"currency": "USD", "prices": {}}', "prices: must be a list"),
        (b'{"currency": "USD", "prices": []}', "price file: holds no line that gives a price"),
        (
            b'{"currency": "USD", "prices": [5]}',
            r"price file: holds no line that gives a price; prices\[0\]: must be an object",
        ),
        (b"[" * 100_000, "price file: is nested too deeply"),
        (b'{"currency": "\xff"}', "price file: line 1 is not UTF-8"),
    ],
)
def test_a_document_that_is_no_price_list_is_refused_as_a_whole(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read_price_document(data)
