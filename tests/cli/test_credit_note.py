"""`tollbook credit-note`: from proposal to the document that was published, and who may do what."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests.cli.conftest import Tollbook
from tests.invoices.neighbours import SOON, Neighbours, neighbours
from tests.support.servers import Database

GRACE = timedelta(hours=48)
NOBODYS = "6f0a3c52-7f0e-8d0b-9a55-2b6c3a1f4e77"


@pytest.fixture
async def office(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Neighbours]:
    """Northwind's invoice TB-000001 of 19.00 + 20 % tax: east used 10.00 of voice on invoice and 4.00 of sms, half of it
    prepaid; west used 5.00 of voice, prepaid."""
    for name, value in database.environment().items():
        monkeypatch.setenv(name, value)
    made = await neighbours(database)
    boundary = made.period.end
    made.group("northwind", tax_rate="0.20")
    made.account("east", "East", "northwind", made.period.start)
    made.account("west", "West", "northwind", made.period.start)
    made.charge("east", "10")
    made.charge("east", "2", product="sms")
    made.charge("east", "2", product="sms", plan="payg")
    made.charge("west", "5", plan="payg")
    await made.settle()
    await made.move_to(boundary + GRACE + SOON)
    await made.settle()
    made.all_covered(boundary)
    await made.settle()
    yield made
    await made.rooms.__aexit__()


async def proposed(tollbook: Tollbook, *what: str, by: str = "ann") -> Any:
    """A note against TB-000001 that one person has proposed, as programs read it."""
    ran = await tollbook(
        "credit-note", "propose", "TB-000001", "--reason", "too dear", *what, "--actor", by, "-o", "json"
    )
    assert ran.code == 0, ran.err
    return ran.json


async def issued(tollbook: Tollbook, office: Neighbours, *what: str) -> Any:
    """A note that two persons decided and the room has numbered, as it is told."""
    note_id = (await proposed(tollbook, *what))["credit_note_id"]
    assert (await tollbook("credit-note", "approve", note_id, "--actor", "bob")).code == 0
    await office.rooms.pump(ticks=True)
    told = [each for each in office.log.data("invoices.events") if each["kind"] == "credit_note"]
    return next(each for each in told if each["credit_note_id"] == note_id)


async def test_a_note_is_proposed_by_one_person_and_approved_by_another(office: Neighbours, tollbook: Tollbook) -> None:
    assert (await tollbook("credit-note", "list", "-o", "json")).json == []
    assert (await tollbook("credit-note", "list")).out == "no credit note yet\n"
    lines = ("--line", "east:voice.outbound=4.00", "--line", "west:voice.outbound=1")
    said = await tollbook("credit-note", "propose", "TB-000001", "--reason", "late", *lines, "--actor", "ann")
    assert (said.code, said.err) == (0, "")
    found = re.fullmatch(
        r"credit note (\S+) is proposed: 2 lines of invoice TB-000001, net 5\.00 \+ tax 1\.00 = 6\.00 USD;"
        r" another person approves it: tollbook credit-note approve \1; what each account gets back: tollbook credit-note show"
        r" \1\n",
        said.out,
    )
    assert found, said.out
    note_id = found[1]
    own = await tollbook("credit-note", "approve", note_id, "--actor", "ann")
    assert (own.code, own.err) == (1, "actor: ann proposed it, so another person has to approve it\n")
    owner = await tollbook("credit-note", "approve", note_id, "--actor", "bob", "--role", "owner")
    assert (owner.code, owner.err) == (1, "role: credit notes need the role finance\n")
    second = await tollbook("credit-note", "propose", "TB-000001", "--reason", "again", "--all", "--actor", "bob")
    sentence = "invoice: a credit note of invoice TB-000001 is under way: approve or withdraw it first\n"
    assert (second.code, second.err) == (1, sentence)
    draft = await tollbook("credit-note", "show", note_id)
    assert (draft.code, draft.out.startswith("CREDIT NOTE DRAFT ")) == (0, True)
    nobodys = await tollbook("credit-note", "show", "TB-000099")
    assert (nobodys.code, nobodys.err) == (1, "credit_note: no issued credit note has the number or id 'TB-000099'\n")
    approved = await tollbook("credit-note", "approve", note_id, "--actor", "bob")
    assert approved.code == 0, approved.err
    assert "is approved: 2 lines of invoice TB-000001, net 5.00 + tax 1.00 = 6.00 USD; it is numbered" in approved.out
    await office.rooms.pump(ticks=True)
    late = await tollbook("credit-note", "withdraw", note_id, "--actor", "ann")
    assert (late.code, late.err) == (1, "credit_note: it is issued with number TB-000002: it stays\n")
    again = await tollbook("credit-note", "approve", note_id, "--actor", "bob")
    assert again.out.endswith("; it is number TB-000002\n"), again.out
    (row,) = (await tollbook("credit-note", "list", "-o", "json")).json
    names = ("credit_note_id", "state", "number", "invoice_number", "group_id", "proposed_by", "decided_by", "reason")
    assert [row[name] for name in names] == [
        note_id, "issued", "TB-000002", "TB-000001", "northwind", "ann", "bob", "late",
    ]  # fmt: skip
    assert (row["net"], row["tax"], row["total"], row["currency"], row["voids"]) == ("5", "1", "6", "USD", False)
    assert [(each["account_id"], each["product"], each["amount"], each["prepaid"]) for each in row["lines"]] == [
        ("east", "voice.outbound", "4", None), ("west", "voice.outbound", "1", None),
    ]  # fmt: skip
    table = (await tollbook("credit-note", "list", "--group", "northwind", "--state", "issued")).out
    assert re.search(r"TB-000002\s+TB-000001\s+northwind\s+5\s+1\s+6\s+USD\s+ann\s+bob\s+late", table), table
    assert (await tollbook("credit-note", "list", "--group", "southwind", "-o", "json")).json == []


async def test_a_note_that_is_withdrawn_moves_nothing_and_makes_room_for_another(
    office: Neighbours, tollbook: Tollbook
) -> None:
    made = await proposed(tollbook, "--all")
    assert (made["state"], made["net"], made["tax"], made["total"], made["voids"], made["lines"]) == (
        "proposed", "19", "3.8", "22.8", True, None,
    )  # fmt: skip
    given_up = await tollbook("credit-note", "withdraw", made["credit_note_id"], "--actor", "ann")
    assert given_up.out.endswith(
        "is withdrawn: all that is left of invoice TB-000001, net 19.00 + tax 3.80 = 22.80 USD; nothing moves\n"
    ), given_up.out
    gone = await tollbook("credit-note", "approve", made["credit_note_id"], "--actor", "bob")
    assert (gone.code, gone.err) == (1, "credit_note: ann has withdrawn it; propose it anew\n")
    other = await proposed(tollbook, "--line", "east:sms:prepaid=0.50", by="bob")
    assert (other["net"], other["tax"], other["total"], other["lines"][0]["prepaid"]) == ("0.5", "0.1", "0.6", True)
    await office.rooms.pump(ticks=True)
    states = {each["state"] for each in (await tollbook("credit-note", "list", "-o", "json")).json}
    assert states == {"withdrawn", "proposed"}
    assert [each["kind"] for each in office.log.data("invoices.events")] == ["closed"]


async def test_an_issued_note_is_a_page_and_the_json_whose_hash_was_published(
    office: Neighbours, tollbook: Tollbook
) -> None:
    some = await issued(tollbook, office, "--line", "east:voice.outbound=4.00", "--line", "west:voice.outbound=1")
    assert (some["number"], some["net"], some["tax"], some["total"], some["voids"]) == (
        "TB-000002", "5.00", "1.00", "6.00", False,
    )  # fmt: skip
    page = (await tollbook("credit-note", "show", "TB-000002")).out
    assert page.startswith("CREDIT NOTE TB-000002 ")
    for said in (r"Tollbook Inc\.", r"For invoice TB-000001 of ", r"Reason: too dear", r"net +5\.00", r"tax 20 % +1\.00",
                 r"CREDITED USD +6\.00", r"East: 4\.80 off what is owed", r"West: 1\.20 back to the balance"):  # fmt: skip
        assert re.search(said, page), page
    for name in ("TB-000002", some["credit_note_id"]):
        body = (await tollbook("credit-note", "show", name, "-o", "json")).out.removesuffix("\n")
        assert hashlib.sha256(body.encode()).hexdigest() == some["sha256"]
    document = json.loads(body)
    assert (document["number"], document["invoice"]["number"], document["voids"]) == ("TB-000002", "TB-000001", False)
    invoice = (await tollbook("invoice", "show", "TB-000001")).out
    assert invoice.startswith("INVOICE TB-000001 ")
    below = invoice.partition("\nCredit notes:\n")[2]
    assert re.search(
        r"^  \S+ TB-000002: too dear +6\.00\n    East: 4\.80 off what is owed\n    West: 1\.20 back", below
    )
    assert (await tollbook("invoice", "list", "--state", "void", "-o", "json")).json == []

    rest = await issued(tollbook, office, "--all")
    assert (rest["number"], rest["net"], rest["tax"], rest["total"], rest["voids"]) == (
        "TB-000003", "14.00", "2.80", "16.80", True,
    )  # fmt: skip
    assert ", which is void by it" in (await tollbook("credit-note", "show", "TB-000003")).out
    assert "nothing is left of the invoice: it is void" in (await tollbook("invoice", "show", "TB-000001")).out
    (voided,) = (await tollbook("invoice", "list", "--state", "void", "-o", "json")).json
    assert (voided["number"], voided["standing"], voided["state"]) == ("TB-000001", "void", "closed")
    assert re.search(r"northwind +void +TB-000001", (await tollbook("invoice", "list", "--state", "void")).out)
    nothing = await tollbook("credit-note", "propose", "TB-000001", "--reason", "more", "--all")
    assert (nothing.code, nothing.err) == (1, "invoice: all of invoice TB-000001 is credited already\n")


async def test_what_cannot_be_credited_names_the_field_and_how_much_can(office: Neighbours, tollbook: Tollbook) -> None:
    voice = ("--line", "east:voice.outbound=4.00")
    for invoice, arguments, code, sentence in (
        ("TB-9", voice, 1, "invoice: no closed invoice has the number or id 'TB-9'"),
        (NOBODYS, voice, 1, f"invoice: no closed invoice has the number or id '{NOBODYS}'"),
        ("TB-000001", ("--line", "east:voice.outbound=10.01"), 1,
         "line: at most 10 is left of voice.outbound of account east on invoice TB-000001"),
        ("TB-000001", (*voice, "--role", "operator"), 1, "role: credit notes need the role finance"),
        ("TB-000001", ("--line", "east:data=1"), 2, "line: invoice TB-000001 has no line of data of account east"),
        ("TB-000001", ("--line", "west:voice.outbound:postpaid=1"), 2,
         "line: invoice TB-000001 has no line of voice.outbound of account west"),
        ("TB-000001", ("--line", "east:sms=1"), 2,
         "line: sms of account east was paid in both ways: say prepaid or postpaid"),
        ("TB-000001", (*voice, *voice), 2,
         "line: voice.outbound of account east is named twice; name it once, with the sum"),
        ("TB-000001", ("--line", "east:voice.outbound=0.001"), 2,
         "line: 0.001 of voice.outbound of account east must be above 0, with at most 2 decimals"),
        ("TB-000001", (*voice, "--reason", " "), 2,
         "reason: say why, in 1 to 500 characters and one line: it stands on the document"),
        ("TB-000001", (*voice, "--reason", "card 4111 1111 1111 1111"), 2, "reason: "),
    ):  # fmt: skip
        ran = await tollbook("credit-note", "propose", invoice, "--reason", "wrong", *arguments)
        assert (ran.code, ran.err.startswith(sentence), ran.out) == (code, True, ""), ran.err
    for command in ("approve", "withdraw"):
        ran = await tollbook("credit-note", command, NOBODYS, "--actor", "bob")
        assert (ran.code, ran.err) == (1, f"credit_note: no credit note has the id {NOBODYS}\n")
    ran = await tollbook("credit-note", "show", "TB-000001")
    assert (ran.code, ran.err) == (1, "credit_note: no issued credit note has the number or id 'TB-000001'\n")
    assert (await tollbook("credit-note", "list", "-o", "json")).json == []


PROPOSE = ("propose", "TB-1", "--reason", "late")
EITHER = "line: give either --line, once for each line to credit, or --all\n"
TYPED = "must be ACCOUNT:PRODUCT=AMOUNT, with :prepaid or :postpaid before the = where both are billed\n"
DECIMAL = 'must be a decimal string of ASCII digits such as "10.00", at most 12 before and 9 after the point\n'


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (PROPOSE, EITHER),
        ((*PROPOSE, "--line", "east:sms=1", "--all"), EITHER),
        ((*PROPOSE, "--line", "east:sms"), f"line: 'east:sms' {TYPED}"),
        ((*PROPOSE, "--line", "east=1"), f"line: 'east=1' {TYPED}"),
        ((*PROPOSE, "--line", ":sms=1"), f"line: ':sms=1' {TYPED}"),
        ((*PROPOSE, "--line", "east:sms:later=1"), f"line: 'east:sms:later=1' {TYPED}"),
        ((*PROPOSE, "--line", "east:sms:prepaid:now=1"), f"line: 'east:sms:prepaid:now=1' {TYPED}"),
        ((*PROPOSE, "--line", "east:sms=4,00"), f"line: {DECIMAL}"),
        ((*PROPOSE, "--line", "east:sms=-4"), "line: must not be negative\n"),
        (("approve", "7"), "ID: must be the id of a credit note; `tollbook credit-note list` shows them\n"),
        (("withdraw", "7"), "ID: must be the id of a credit note; `tollbook credit-note list` shows them\n"),
        (("list", "--state", "lost"), "state: must be one of proposed, approved, issued, withdrawn\n"),
    ],
)
async def test_a_wrong_command_line_names_the_field_without_any_server(
    tollbook: Tollbook, arguments: tuple[str, ...], sentence: str
) -> None:
    ran = await tollbook("credit-note", *arguments)
    assert (ran.code, ran.err, ran.out) == (2, sentence, "")
