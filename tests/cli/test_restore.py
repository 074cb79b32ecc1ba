"""What a restore says: what was undone, and what people must do again."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

import msgspec
import pytest

from contracts.invoices import CreditNoteIssued
from services.cli.restore import Found, Report, _to_do, restore, show
from services.invoices.api import Adopted
from services.kernel.errors import InvalidInput
from services.runtime.restoring import Told

RAN_UNTIL = datetime(2026, 11, 20, tzinfo=UTC)


def told(topic, data, *, undone=True) -> Told:
    raw = msgspec.Raw(json.dumps(data, separators=(",", ":")).encode())
    return Told("1", "t", "", "l", 1, 0, raw, topic, 0, 0, undone)


def found(*records) -> Found:
    made = Found()
    for each in records:
        made.take(each)
    return made


def to_do(made, *, missing=(), waiting=(), events=(), unnumbered=()):
    adopted = Adopted(0, {}, unnumbered, ())
    return [(each.what, each.about) for each in _to_do(made, missing, set(waiting), events, adopted, None)]


CHARGE = {"book_id": "list", "book_version": 2, "amount": "1"}


def test_of_undone_charges_the_prices_are_kept_and_of_others_nothing():
    surcharge = {"book_id": "callers", "book_version": 7}
    made = found(
        told("usage.charges", CHARGE | {"surcharge": surcharge, "replaces": "c1"}),
        told("usage.charges", CHARGE | {"book_version": 9}, undone=False),
    )
    assert made.books == {("list", 2), ("callers", 7)}
    assert (made.counts, made.replacing) == (Counter({"usage.charges": 1}), 1)


def test_the_highest_version_that_was_told_of_any_object_of_a_room_is_found():
    made = found(
        told("balance.events", {"account_id": "a", "kind": "suspended", "version": 41, "message": '"version":99'}),
        told("balance.group_events", {"kind": "payment", "version": 7, "invoice": {"version": 43}}),
        told("groups.accounts", {"account_id": "a", "version": 5}),
        told("balance.events", {"account_id": "b", "kind": "restored", "version": 90}, undone=False),
    )
    assert made.versions == {"balance": 43, "groups": 5}
    assert made.suspensions == {"a"}


def test_people_hear_what_they_must_decide_again():
    rejection = {
        "topic": "usage.events.switch", "partition": 3, "offset": 8, "source": "pbx/1", "event_id": "e1", "message": "given up",
    }  # fmt: skip
    answer = {"kind": "move_accounts", "message": "moved", "accepted": True}
    made = found(
        told("usage.rejections.switch", rejection | {"action": "discarded"}),
        told("usage.rejections.switch", rejection | {"action": "quarantined"}),
        told("groups.events", answer | {"command_id": "read again"}),
        told("groups.events", answer | {"command_id": "from quarantine"}),
        told("groups.events", answer | {"command_id": "refused", "accepted": False}),
        told("usage.charges", CHARGE | {"replaces": "c1"}),
    )
    note = CreditNoteIssued.model_construct(number="TB-7", invoice_number="TB-1", total="3.00", currency="USD")
    assert to_do(made, missing=[("list", 2)], waiting=["read again"], events=[note], unnumbered=["XX-1"]) == [
        ("price book", "list version 2"),
        ("discarded record", "usage.events.switch/3 offset 8 pbx/1 e1: given up"),
        ("command", "move_accounts from quarantine: moved"),
        ("credit note", "TB-7 against TB-1, 3.00 USD"),
        ("number", "XX-1"),
        ("corrected charges", "1"),
    ]


def test_the_page_says_what_was_undone(capsys):
    report = Report(3, RAN_UNTIL, {"usage.charges": 5}, (RAN_UNTIL,), 2, ("2026-10",), (), (), ())
    show(report, is_done=False)
    said = capsys.readouterr().out
    assert "epoch 3 would begin on the backup of 2026-11-20T00:00:00Z; undone: 5 records" in said
    assert "adopted: 1 cuts, 2 numbered documents" in said
    assert "nothing is to be done again by people" in said


def test_a_restore_without_a_reason_is_refused():
    with pytest.raises(InvalidInput, match="say why"):
        restore(reason=" ")
