"""Credit notes on a real database: two persons, one number series, one document, told once."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import ProgrammingError

from services.invoices import api, credit_note_store, handler
from services.invoices import credit_note_api as notes
from services.invoices.credit_notes import Asked
from services.invoices.documents import sha256_of
from services.invoices.tables import credit_note, credit_note_document
from services.kernel.errors import Corrupt, InvalidInput, NotFound, NotPermitted, Refused
from services.kernel.money import NANO
from services.runtime import faults
from services.runtime.database import transaction
from services.runtime.room import Tick
from tests.invoices.neighbours import Neighbours, neighbours
from tests.invoices.test_room import close_the_month, close_two_invoices, engine

CENT = NANO // 100
WEST = [Asked("west", "voice.outbound", 5 * CENT)]


@pytest.fixture
async def around(database):
    made = await neighbours(database)
    await close_two_invoices(made)
    yield made
    await made.rooms.__aexit__()


def number_of(around: Neighbours, group_id: str = "northwind") -> str:
    (event,) = [
        each for each in around.log.data("invoices.events") if (each["group_id"], each["kind"]) == (group_id, "closed")
    ]
    return str(event["number"])


def told(around: Neighbours) -> list[dict[str, Any]]:
    return [each for each in around.log.data("invoices.events") if each["kind"] == "credit_note"]


async def proposed(around: Neighbours, lines: list[Asked] | None, group_id: str = "northwind") -> UUID:
    made = await notes.propose(engine(around), number_of(around, group_id), "wrong price", "ann", "finance", lines)
    assert made.state == "proposed"
    return made.credit_note_id


async def issued(around: Neighbours, lines: list[Asked] | None, group_id: str = "northwind") -> notes.KeptNote:
    note_id = await proposed(around, lines, group_id)
    await notes.approve(engine(around), note_id, "bob", "finance")
    await around.settle()
    return await notes.credit_note(engine(around), note_id)


async def audited(around: Neighbours) -> tuple[str, ...]:
    return (await api.audit(engine(around))).findings


async def test_a_note_is_proposed_approved_numbered_and_told(around):
    made = await notes.propose(engine(around), number_of(around), "wrong price", "ann", "finance", WEST)
    assert (made.net_nano, made.tax_nano, made.total_nano, made.lines) == (5 * CENT, CENT, 6 * CENT, tuple(WEST))
    await around.settle()
    assert told(around) == []  # one person decides nothing
    approved = await notes.approve(engine(around), made.credit_note_id, "bob", "finance")
    assert (approved.state, approved.number) == ("approved", None)
    await around.settle()
    note = await notes.credit_note(engine(around), made.credit_note_id)
    assert (note.state, note.number, note.voids) == ("issued", "TB-000003", False)
    assert (note.proposed_by, note.decided_by) == ("ann", "bob")
    (event,) = told(around)
    assert (event["number"], event["invoice_number"], event["net"], event["tax"], event["total"]) == (
        "TB-000003", number_of(around), "0.05", "0.01", "0.06",
    )  # fmt: skip
    assert event["postings"] == [{"account_id": "west", "wallet": "0", "owed": "0.06"}]
    shown = await notes.show(engine(around), "TB-000003")
    assert sha256_of(shown.body) == shown.sha256 == event["sha256"]
    assert shown.document["invoice"]["sha256"] == (await api.show(engine(around), number_of(around))).sha256
    assert "CREDIT NOTE TB-000003" in shown.text
    invoice = await api.show(engine(around), number_of(around))
    assert "TB-000003: wrong price" in invoice.text
    assert "West: 0.06 off what is owed" in invoice.text
    assert await audited(around) == ()


async def test_all_of_an_invoice_voids_it_and_nothing_is_left_for_another_note(around):
    await issued(around, WEST)
    rest = await issued(around, None)
    assert (rest.number, rest.total_nano, rest.voids, rest.lines) == ("TB-000004", 66 * CENT, True, None)
    rows = await api.list_invoices(engine(around), standings={"void"})
    assert [row.number for row in rows] == [number_of(around)]
    shown = await api.show(engine(around), number_of(around))
    assert shown.standing == "void"
    assert "it is void" in shown.text
    with pytest.raises(Refused, match="credited already"):
        await proposed(around, None)
    assert await audited(around) == ()


async def test_a_prepaid_invoice_is_given_back_to_the_balance(around):
    note = await issued(around, None, "lakeside")
    (event,) = told(around)
    assert event["postings"] == [{"account_id": "frontdesk", "wallet": "0.03", "owed": "0"}]
    assert (event["products"], event["rounding"]) == ([{"product": "voice.outbound", "exact": "0.028"}], "0.002")
    assert note.voids
    assert "0.03 back to the balance" in (await notes.show(engine(around), str(note.credit_note_id))).text


async def test_two_persons_decide_and_one_note_at_a_time(around):
    note_id = await proposed(around, WEST)
    with pytest.raises(NotPermitted, match="actor: ann proposed it, so another person has to approve it"):
        await notes.approve(engine(around), note_id, "ann", "finance")
    with pytest.raises(NotPermitted, match="role: credit notes need the role finance"):
        await notes.approve(engine(around), note_id, "bob", "operator")
    with pytest.raises(Refused, match=r"a credit note of invoice .* is under way: approve or withdraw it first"):
        await proposed(around, None)
    withdrawn = await notes.withdraw(engine(around), note_id, "ann", "finance")
    assert (withdrawn.state, withdrawn.decided_by, withdrawn.withdrawn_by) == ("withdrawn", None, "ann")
    with pytest.raises(Refused, match="ann has withdrawn it; propose it anew"):
        await notes.approve(engine(around), note_id, "bob", "finance")
    await around.settle()
    assert told(around) == []
    again = await issued(around, WEST)
    assert (await notes.approve(engine(around), again.credit_note_id, "carl", "finance")).decided_by == "bob"
    with pytest.raises(Refused, match="it is issued with number TB-000003: it stays"):
        await notes.withdraw(engine(around), again.credit_note_id, "ann", "finance")
    assert [each.state for each in await notes.credit_notes(engine(around), group_id="northwind")] == [
        "withdrawn", "issued",
    ]  # fmt: skip


async def test_what_is_asked_wrongly_names_the_field(around):
    number = number_of(around)
    for arguments, error, sentence in (
        ((number, " ", "ann", "finance"), InvalidInput, "reason: say why"),
        ((number, "two\nlines", "ann", "finance"), InvalidInput, "one line"),
        ((number, "x" * 501, "ann", "finance"), InvalidInput, "reason: say why"),
        ((number, "card 4111 1111 1111 1111", "ann", "finance"), InvalidInput, "reason"),
        (("TB-9", "why", "ann", "finance"), NotFound, "invoice: no closed invoice"),
        ((number, "why", "ann", "finance", []), InvalidInput, "line: must name 1 to 1000 lines"),
        ((number, "why", "ann", "owner", WEST), NotPermitted, "role"),
    ):
        with pytest.raises(error, match=sentence):
            await notes.propose(engine(around), *arguments)
    for wrong in ("TB-9", str(UUID(int=9))):
        with pytest.raises(NotFound, match="credit_note: no issued credit note"):
            await notes.show(engine(around), wrong)
    with pytest.raises(NotFound, match="credit_note: no credit note has the id"):
        await notes.approve(engine(around), UUID(int=9), "bob", "finance")


async def test_of_many_who_propose_at_once_one_does(around):
    async def ask() -> bool:
        try:
            await proposed(around, WEST)
        except Refused:
            return False
        return True

    assert sum(await asyncio.gather(*(ask() for _ in range(8)))) == 1


async def test_two_rooms_that_issue_at_once_give_each_note_one_number(around):
    for group_id in ("northwind", "lakeside"):
        await notes.approve(engine(around), await proposed(around, None, group_id), "bob", "finance")
    processor = around.rooms.processors["invoices"]
    issuers = [Tick(f"credit_notes.{number}", handler.issue_credit_notes) for number in range(3)]
    await asyncio.gather(*(processor.tick(each) for each in issuers))
    await around.settle()
    assert sorted(each["number"] for each in told(around)) == ["TB-000003", "TB-000004"]
    assert await audited(around) == ()


async def test_who_proposes_while_a_note_is_issued_knows_of_it(around, monkeypatch):
    await notes.approve(engine(around), await proposed(around, None), "bob", "finance")
    reached, go = asyncio.Event(), asyncio.Event()
    save = credit_note_store.save_document

    async def slow(*arguments: Any) -> None:
        await save(*arguments)
        reached.set()
        await go.wait()

    monkeypatch.setattr(credit_note_store, "save_document", slow)
    processor = around.rooms.processors["invoices"]
    issuing = asyncio.create_task(processor.tick(Tick("credit_notes", handler.issue_credit_notes)))
    await reached.wait()
    second = asyncio.create_task(proposed(around, WEST))
    await asyncio.sleep(0.2)
    go.set()
    await issuing
    with pytest.raises(Refused, match="credited already"):
        await second


async def test_who_decides_is_told_what_a_later_invoice_gives_back_as_well(around):
    """A publisher voids calls after the close."""
    first = await notes.propose(engine(around), number_of(around), "wrong price", "ann", "finance", None)
    assert first.warnings == ()
    late = first.credit_note_id
    around.charge("east", "-0.3000", period=first.period)
    around.charge("west", "0.1000", period=first.period)
    await around.settle()
    said = "a later invoice gives 0.3 of voice.outbound of account east back by itself as well"
    assert (await notes.show(engine(around), str(late))).warnings == (said,)
    await notes.withdraw(engine(around), late, "bob", "finance")
    number = number_of(around)
    for cents, warnings in ((6, ()), (7, (said,))):  # of 0.36
        line = [Asked("east", "voice.outbound", cents * CENT)]
        made = await notes.propose(engine(around), number, "wrong price", "ann", "finance", line)
        assert made.warnings == warnings
        await notes.withdraw(engine(around), made.credit_note_id, "bob", "finance")
    assert (await issued(around, None)).voids  # people decide
    assert await audited(around) == ()


async def test_who_approves_sees_what_each_account_gets_back(around):
    note_id = await proposed(around, WEST)
    draft = await notes.show(engine(around), str(note_id))
    assert (draft.document["number"], draft.sha256 == sha256_of(draft.body)) == ("DRAFT", True)
    assert "CREDIT NOTE DRAFT" in draft.text
    assert "West: 0.06 off what is owed" in draft.text
    await notes.withdraw(engine(around), note_id, "ann", "finance")
    with pytest.raises(NotFound, match=f"ann has withdrawn credit note {note_id}"):
        await notes.show(engine(around), str(note_id))


async def test_the_newest_notes_are_listed_and_actors_are_names(around, monkeypatch):
    for _ in range(3):
        newest = await proposed(around, WEST)
        await notes.withdraw(engine(around), newest, "bob", "finance")
    rows = await notes.credit_notes(engine(around), limit=2)
    assert (len(rows), rows[-1].credit_note_id) == (2, newest)
    assert rows[0].proposed_at < rows[1].proposed_at
    for actor in ("4111 1111 1111 1111", "two\nlines", ""):
        with pytest.raises(InvalidInput) as wrong:
            await notes.propose(engine(around), number_of(around), "wrong price", actor, "finance", WEST)
        assert wrong.value.field == "actor"


async def test_a_note_that_cannot_be_issued_is_told_of_once(around, database, caplog):
    broken = await proposed(around, WEST)
    async with database.connected() as owner:
        await owner.execute("update invoices.credit_note set asked = replace(asked, '0.05', '9')")
    await notes.approve(engine(around), broken, "bob", "finance")
    for _ in range(3):
        await around.settle()
    assert caplog.text.count("cannot be issued, withdraw it") == 1
    assert "at most 0.12 is left" in str((await notes.credit_note(engine(around), broken)).refused)


async def test_a_note_that_cannot_be_issued_holds_up_no_other_and_can_be_withdrawn(around, database):
    broken = await proposed(around, WEST)
    async with database.connected() as owner:
        await owner.execute("update invoices.credit_note set asked = replace(asked, '0.05', '9')")
    await notes.approve(engine(around), broken, "bob", "finance")
    await issued(around, None, "lakeside")
    assert [each["group_id"] for each in told(around)] == ["lakeside"]
    assert (await notes.withdraw(engine(around), broken, "bob", "finance")).state == "withdrawn"
    assert await audited(around) == ()


@pytest.mark.parametrize("step", ["invoices.credit_notes.numbered", "invoices.credit_notes.issued"])
async def test_a_death_on_the_way_leaves_no_gap_and_no_second_note(around, monkeypatch, step):
    await notes.approve(engine(around), await proposed(around, WEST), "bob", "finance")

    class Death(asyncio.CancelledError):
        """Nothing of its own cleans up after it."""

    def die(name: str) -> None:
        if name == step:
            raise Death

    with monkeypatch.context() as patch:
        patch.setattr(faults, "step", die)
        with pytest.raises(Death):
            await around.rooms.pump(ticks=True)
    assert told(around) == []
    await around.settle()
    assert [each["number"] for each in told(around)] == ["TB-000003"]
    assert await audited(around) == ()


async def test_the_audit_finds_what_was_changed_by_hand(around, database):
    note = await issued(around, WEST)
    async with database.connected() as owner:
        await owner.execute("update invoices.credit_note_document set body = replace(body, '0.06', '0.07')")
    first, second = await audited(around)
    assert "credit note TB-000003 of invoice" in first
    assert "when worked out again" in first
    assert "does not have the hash" in second
    async with database.connected() as owner:
        await owner.execute("delete from invoices.credit_note_document")
    (gone,) = await audited(around)
    assert gone.endswith("has no document")
    with pytest.raises(Corrupt, match="credit note TB-000003 is issued and has no document"):
        await proposed(around, None)  # it would credit the same again
    async with database.connected() as owner:
        await owner.execute("update invoices.credit_note set state = 'approved', number = null, issued_at = null")
    assert await audited(around) == ("numbers of billing entity seller: 3 were given out, 2 documents have one",)
    assert note.number == "TB-000003"


async def test_the_room_itself_cannot_change_or_drop_an_issued_note(around):
    await issued(around, WEST)
    for statement in (
        update(credit_note_document).values(body="{}"),
        text("delete from invoices.credit_note_document"),
        text("delete from invoices.credit_note"),
        text("truncate invoices.credit_note cascade"),
    ):
        with pytest.raises(ProgrammingError, match="permission denied"):
            async with transaction(engine(around)) as connection:
                await connection.execute(statement)


async def test_one_person_alone_cannot_have_approved_it_not_even_by_sql(around):
    note_id = await proposed(around, WEST)
    with pytest.raises(Exception, match="credit_note_has_two_persons"):
        async with transaction(engine(around)) as connection:
            await connection.execute(
                update(credit_note)
                .where(credit_note.c.credit_note_id == note_id)
                .values(state="approved", decided_by="ann", decided_at=around.now)
            )


async def test_an_invoice_below_zero_has_the_form_of_a_credit_note(database):
    made = await neighbours(database)
    made.group("northwind")
    made.charge("east", "2.00", plan="invoiced")
    made.charge("east", "-5.00", plan="invoiced", period="2026-09")
    await close_the_month(made)
    shown = await api.show(engine(made), number_of(made))
    assert (shown.document["type"], shown.document["totals"]["total"]) == ("credit_note", "-3.00")
    assert shown.text.startswith("CREDIT NOTE TB-000001")
    await made.rooms.__aexit__()
