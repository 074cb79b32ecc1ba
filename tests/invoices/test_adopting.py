"""After a restore from a backup: a number that was told names one document for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import TypeAdapter

from contracts.closing import Cutoff
from contracts.invoices import CreditNoteIssued, InvoiceEvent
from contracts.topics import BALANCE_POSTINGS, USAGE_CHARGES
from services.invoices import api, store
from services.kernel.ids import cutoff_id
from services.kernel.period import period_named
from services.runtime.database import transaction
from tests.invoices.neighbours import Neighbours, neighbours, posting
from tests.invoices.test_room import close_the_month, engine

EVENT: TypeAdapter[InvoiceEvent] = TypeAdapter(InvoiceEvent)
AMOUNTS = (("east", "0.3630"), ("west", "0.1244"), ("offshore", "0.1080"))


@pytest.fixture
async def lives(servers):
    """Makes installations that hear the same of the registry, each at the same instant of the month."""

    @asynccontextmanager
    async def life() -> AsyncIterator[Neighbours]:
        async with servers.fresh_database() as database:
            made = await neighbours(database)
            made.group("northwind", tax_rate="0.20")
            for account_id, _ in AMOUNTS:
                made.account(account_id, account_id.title(), "northwind", made.period.start)
            try:
                yield made
            finally:
                await made.rooms.__aexit__()

    return life


def again(around: Neighbours, charges):
    """The same charges in another life."""
    for each in charges:
        around.publish("usage:events/usage.events.switch/0", USAGE_CHARGES, each["account_id"], each)
        around.publish("balance:charges/usage.charges/0", BALANCE_POSTINGS, "northwind", posting(each))


async def adopted(around: Neighbours, told, cutoffs=()):
    await around.settle()
    async with transaction(engine(around)) as connection:
        return await api.adopt(connection, [EVENT.validate_python(each, strict=False) for each in told], cutoffs, "ann")


def closed(around: Neighbours):
    return [each for each in around.log.read("invoices.events") if each["data"]["kind"] == "closed"]


async def undone_close(lives):
    """The charges of a month and what was told of its close."""
    async with lives() as before:
        charges = [before.charge(*each) for each in AMOUNTS]
        await close_the_month(before)
        return charges, closed(before)


async def numbers(around: Neighbours):
    async with transaction(engine(around)) as connection:
        return await store.number_ranges(connection)


async def test_a_month_that_closes_to_the_same_is_issued_again_with_its_number_day_and_event(lives):
    charges, (told,) = await undone_close(lives)
    async with lives() as after:
        what = await adopted(after, [told["data"]])
        assert (what.documents, what.numbers, what.unnumbered) == (1, {"seller": 1}, ())
        again(after, charges)
        await close_the_month(after)
        (once_more,) = closed(after)
        assert once_more["id"] == told["id"]
        assert once_more["data"] | {"sha256": ""} == told["data"] | {"sha256": ""}
        document = (await api.show(engine(after), "TB-000001")).document
        assert (document["issued_on"], "replaces" in document) == (told["data"]["issued_on"], False)
        assert await numbers(after) == [("seller", 1, 1)]


async def test_a_month_that_closes_to_something_else_replaces_what_was_told(lives):
    charges, (told,) = await undone_close(lives)
    async with lives() as after:
        await adopted(after, [told["data"]])
        again(after, charges)
        after.charge("east", "0.01")
        await close_the_month(after)
        (other,) = closed(after)
        assert (other["data"]["number"], other["data"]["replaces"]) == ("TB-000002", "TB-000001")
        assert other["id"] != told["id"]
        shown = await api.show(engine(after), "TB-000002")
        assert shown.document["replaces"] == "TB-000001"
        assert "In place of TB-000001, which is cancelled" in shown.text
        assert await numbers(after) == [("seller", 2, 2)]


async def test_the_same_sum_of_other_charges_is_another_document(lives):
    _, (told,) = await undone_close(lives)
    async with lives() as after:
        await adopted(after, [told["data"]])
        for each in AMOUNTS:
            after.charge(*each)
        await close_the_month(after)
        (other,) = closed(after)
        assert other["data"]["replaces"] == "TB-000001"
        assert other["data"]["total"] == told["data"]["total"]


@pytest.mark.parametrize("taken_back", [True, False])
async def test_where_nothing_is_left_to_bill_a_document_over_nothing_replaces_what_was_told(lives, taken_back):
    _, (told,) = await undone_close(lives)
    async with lives() as after:
        await adopted(after, [told["data"]])
        if taken_back:
            made = after.charge("east", "0.01")
            back = made | {
                "charge_id": made["charge_id"][::-1].replace("-", "0", 4)[:36],
                "reverses": made["charge_id"],
            }
            again(after, [back | {"amount": "-0.01", "quantity": -60}])
        await close_the_month(after)
        (other,) = closed(after)
        assert (other["data"]["replaces"], other["data"]["total"], other["data"]["due"]) == (
            "TB-000001",
            "0.00",
            "0.00",
        )


async def test_of_several_lives_the_last_document_counts_and_no_number_comes_back(lives):
    charges, (told,) = await undone_close(lives)
    async with lives() as after:
        second = told["data"] | {"number": "TB-000002", "series_no": 2, "replaces": "TB-000001", "charges": 99}
        await adopted(after, [told["data"], second])
        assert (await adopted(after, [told["data"], second])).numbers == {"seller": 2}  # killed, and run again
        again(after, charges)
        await close_the_month(after)
        (other,) = closed(after)
        assert (other["data"]["number"], other["data"]["replaces"]) == ("TB-000003", "TB-000002")
        assert await numbers(after) == [("seller", 3, 3)]


async def test_an_older_record_gives_its_place_by_its_group_and_a_stranger_is_told(lives):
    _, (told,) = await undone_close(lives)
    older = told["data"] | {"billing_entity_id": None, "series_no": None, "xor": None, "number": "TB-000041"}
    async with lives() as after:
        what = await adopted(after, [older, older | {"group_id": "nobody", "number": "XX-7"}])
        assert (what.numbers, what.unnumbered) == ({"seller": 41}, ("XX-7",))


async def test_the_number_of_a_credit_note_is_not_used_again(lives):
    charges, _ = await undone_close(lives)
    async with lives() as after:
        note = CreditNoteIssued.model_construct(
            number="TB-000007", group_id="northwind", period="2026-10", series_no=7, billing_entity_id="seller"
        )
        await after.settle()
        async with transaction(engine(after)) as connection:
            await api.adopt(connection, [note], (), "ann")
        again(after, charges)
        await close_the_month(after)
        (made,) = closed(after)
        assert (made["data"]["number"], made["data"]["replaces"]) == ("TB-000008", None)


async def test_a_period_that_a_person_had_named_is_named_again(lives):
    async with lives() as after:
        named = period_named(f"{after.period.start.year - 1}-{after.period.start.month:02d}")
        cutoff = Cutoff(cutoff_id=cutoff_id(named.end), boundary=named.end)
        assert (await adopted(after, (), [cutoff])).periods == (named.name,)
        async with transaction(engine(after)) as connection:  # killed, and run again
            assert (await api.adopt(connection, (), [cutoff], "ann")).periods == (named.name,)
        await after.settle()
        assert str(cutoff.cutoff_id) in [each["cutoff_id"] for each in after.log.data("closing.cutoffs")]
