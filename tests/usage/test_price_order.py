"""Which price holds: the order of the books for every kind of product, prices of zero, and versions that come while it runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.usage import DATA, MESSAGE, PRODUCT, RENTAL
from services.kernel.errors import InvalidInput
from services.kernel.period import instant_text
from services.usage import api, store
from services.usage.books import UNITS
from services.usage.price_files import PriceFile, read_price_file
from tests.support.usage_registry import LONG_AGO, SOURCE, leg
from tests.support.usage_room import Usage

NOW = datetime.now(UTC).replace(microsecond=0)
AT = instant_text(NOW)
OWN = "api.lookups"
SURCHARGE = "voice.toll_free.surcharge"
PRODUCTS = (*(product for product in UNITS if product != SURCHARGE), OWN)


def book(price: str) -> PriceFile:
    """Every product for any destination, the surcharge of toll-free legs too, at one price."""
    lines = [f"{product},*,{price},USD," for product in UNITS] + [f"{OWN},,{price},USD,request"]
    file = read_price_file("\n".join(["product,prefix,price,currency,unit", *lines]).encode())
    assert file.refused == ()
    return file


def everything_used(account_id: str) -> dict[str, dict[str, Any]]:
    """One event of every product, by its id, which names the product and the account."""

    def event(kind: str, named: str, /, **data: Any) -> dict[str, Any]:
        return {
            "specversion": "1.0", "id": f"{account_id}/{named}", "source": SOURCE, "type": kind,
            "data": {"account_id": account_id, **data},
        }  # fmt: skip

    called = {"outbound": "+12485550101", "inbound": "+12484329407", "toll_free": "+18778874413"}
    used = {
        f"voice.{name}": leg(
            f"{account_id}/voice.{name}", NOW, account_id, called=number,
            direction="outbound" if name == "outbound" else "inbound",
        )
        for name, number in called.items()
    }  # fmt: skip
    for product in PRODUCTS:
        if product.startswith("message."):
            _, channel, direction = product.split(".")
            used[product] = event(
                MESSAGE, product, direction=direction, channel=channel, sender=None, recipient="+12485550101", segments=1,
                outcome="accepted", sent_at=AT,
            )  # fmt: skip
    used["data"] = event(DATA, "data", bytes=1, started_at=AT, ended_at=AT)
    used["number.rental"] = event(RENTAL, "number.rental", number="+12484329407", month=AT[:7], days=1, starts_at=AT)
    used[OWN] = event(PRODUCT, OWN, product=OWN, quantity=1, unit="request", used_at=AT)
    assert used.keys() == set(PRODUCTS)
    return used


async def test_every_product_is_priced_by_account_then_model_then_organization_then_default(usage: Usage) -> None:
    send = usage.send
    send.publisher(organizations=("lakeside", "northwind"))
    send.account("of-account", organization="northwind", pricing_model="wholesale")
    send.account("of-model", organization="northwind", pricing_model="wholesale")
    send.account("of-organization", organization="northwind")
    send.account("of-nobody")
    await usage.rooms.pump()
    for number, name in enumerate(("own", "wholesale", "house", "list"), start=1):
        await api.import_prices(usage.engine, name, book(str(number)), LONG_AGO)
    await api.set_book_of(usage.engine, "account", "of-account", "own")
    await api.set_book_of(usage.engine, "organization", "northwind", "house")
    accounts = {"of-account": "own", "of-model": "wholesale", "of-organization": "house", "of-nobody": "list"}
    await usage.take(*[event for account in accounts for event in everything_used(account).values()])
    assert {charge["event_id"]: charge["book_id"] for charge in usage.charges} == {
        f"{account}/{product}": book_id for account, book_id in accounts.items() for product in PRODUCTS
    }
    surcharges = {
        charge["account_id"]: charge["surcharge"]["book_id"] for charge in usage.charges if "surcharge" in charge
    }
    assert surcharges == accounts


@pytest.mark.parametrize("book_id", ["carrier 2026", "carrier/a", "", "a" * 65])
async def test_a_book_that_no_charge_could_name_is_refused(usage: Usage, book_id: str) -> None:
    with pytest.raises(InvalidInput, match="letters, digits") as refused:
        await api.import_prices(usage.engine, book_id, book("1"), LONG_AGO)
    assert refused.value.field == "book"
    assert {each.book_id for each in await api.books(usage.engine)} == {"list"}


async def test_a_book_without_the_product_leaves_it_to_the_next_one(usage: Usage) -> None:
    """The account's book knows one product each time, and the default one answers for all others."""
    await api.import_prices(usage.engine, "list", book("4"), LONG_AGO)
    await api.set_book_of(usage.engine, "account", "sales", "own")
    for number, product in enumerate(PRODUCTS, start=1):
        unit = "request" if product == OWN else ""
        file = read_price_file(
            f"product,price,currency,unit,prefix\n{product},1,USD,{unit},{'' if product == OWN else '*'}\n".encode()
        )
        await api.import_prices(usage.engine, "own", file, LONG_AGO)
        events = everything_used("sales")
        for event in events.values():
            event["id"] += f"#{number}"
        before = len(usage.charges)
        await usage.take(*events.values())
        found = {charge["product"]: charge["book_id"] for charge in usage.charges[before:]}
        assert found == {each: "own" if each == product else "list" for each in PRODUCTS}


async def test_an_explicit_price_of_zero_is_a_price_of_every_product(usage: Usage) -> None:
    await api.import_prices(usage.engine, "list", book("0"), LONG_AGO)
    await usage.take(*everything_used("sales").values())
    assert {charge["product"]: charge["amount"] for charge in usage.charges} == dict.fromkeys(PRODUCTS, "0")
    assert {charge["product"]: charge["unit_price"] for charge in usage.charges} == dict.fromkeys(PRODUCTS, "0")
    assert await usage.classes() == {"rated": len(PRODUCTS)}


# ---- versions that come while it runs --------------------------------------------------------------------------------


def versions(usage: Usage) -> dict[str, int]:
    return {charge["event_id"]: charge["book_version"] for charge in usage.charges}


async def test_a_version_dated_ahead_holds_from_its_instant_on_and_nothing_starts_again(usage: Usage) -> None:
    await usage.take(leg("before", NOW))
    ahead = NOW + timedelta(minutes=5)
    await api.import_prices(usage.engine, "list", book("9"), ahead)
    second = timedelta(seconds=1)
    await usage.take(
        leg("just-before", ahead - second), leg("at", ahead), leg("after", ahead + second), leg("now", NOW)
    )
    assert versions(usage) == {"before": 1, "just-before": 1, "at": 2, "after": 2, "now": 1}


async def test_a_version_dated_back_rates_what_comes_from_then_on_and_changes_no_charge(usage: Usage) -> None:
    day = timedelta(days=1)
    await usage.take(leg("charged", NOW - day))
    charged = usage.charges
    await api.import_prices(usage.engine, "list", book("9"), NOW - 2 * day)
    await usage.take(leg("old", NOW - 3 * day), leg("late", NOW - day), leg("charged", NOW - day))
    assert versions(usage) == {"charged": 1, "old": 1, "late": 2}
    assert usage.charges[:1] == charged
    await api.import_prices(usage.engine, "list", book("8"), NOW - 4 * day)
    await usage.take(leg("older", NOW - 3 * day), leg("later", NOW - day))
    assert (versions(usage)["older"], versions(usage)["later"]) == (3, 2), "version 2 begins later than version 3"


async def test_versions_that_come_between_and_beside_batches_are_seen_at_once(usage: Usage) -> None:
    """Each batch is rated by the versions that are committed when it begins; the import waits for one that runs, or it for the
    import."""
    imported: list[int] = []

    async def import_three() -> None:
        for price in ("1", "2", "3"):
            imported.append(await api.import_prices(usage.engine, "list", book(price), LONG_AGO))
            await asyncio.sleep(0)

    for number in range(600):
        usage.send.leg(leg(f"e{number}", NOW))
    await asyncio.gather(usage.rooms.pump(), import_three())
    await usage.take(leg("last", NOW))
    rated = [charge["book_version"] for charge in usage.charges]
    assert (len(rated), imported) == (601, [2, 3, 4])
    assert rated == sorted(rated), "a batch never goes back to an older version"
    assert rated[-1] == 4


async def test_charging_goes_on_while_the_lines_of_a_version_are_written(
    usage: Usage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tens of thousands of them take half a second, and several lists may come at once."""
    append = store.append_book_prices
    beside: list[str] = []

    async def append_slowly(connection: AsyncConnection, book_id: str, *more: Any) -> None:
        await append(connection, book_id, *more)
        if not beside:
            beside.append(book_id)
            async with asyncio.timeout(10):
                await usage.take(leg("beside", NOW))
                assert await api.import_prices(usage.engine, "other", book("8"), LONG_AGO) == 1

    monkeypatch.setattr(store, "append_book_prices", append_slowly)
    assert await api.import_prices(usage.engine, "list", book("9"), LONG_AGO) == 2
    await usage.take(leg("after", NOW))
    assert versions(usage) == {"beside": 1, "after": 2}


async def test_imports_at_once_into_one_book_are_versions_one_after_the_other(usage: Usage) -> None:
    imported = await asyncio.gather(
        *(api.import_prices(usage.engine, "new", book(str(price)), LONG_AGO, is_default=True) for price in range(1, 4))
    )
    assert sorted(imported) == [1, 2, 3]
    await usage.take(leg("e1", NOW))
    listed = await api.books(usage.engine)
    assert sorted(each.version for each in listed if each.book_id == "new") == [1, 2, 3]
    assert {each.prices for each in listed if each.book_id == "new"} == {len(book("1").rows)}
