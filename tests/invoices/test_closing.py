"""When a boundary is cut, when an invoice may close, and when closing is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from uuid import UUID, uuid4

import pytest
from pydantic_core import to_json

from contracts.closing import Covered, Mark, SilentSource
from contracts.invoices import ClosingPosting
from contracts.topics import AROUND_BYTES_MAX, INVOICES_EVENTS
from services.invoices import documents
from services.invoices.accumulation import InvoiceKey, Tally, fold_postings
from services.invoices.closing import (
    ACCOUNTS_MAX,
    Coverage,
    Mismatch,
    NothingToBill,
    OpenInvoice,
    Terms,
    amounts,
    boundaries_due,
    check_request,
    decide,
    periods_ending,
)
from services.invoices.rounding import Bill
from services.kernel.errors import InvalidInput, Refused
from services.kernel.money import NANO
from tests.invoices.neighbours import billing_group, charge, fold_charges, posting, sums_to_zero

KEY = InvoiceKey("northwind", "2026-10")
BOUNDARY = datetime(2026, 11, 1, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


# ---- the cut ---------------------------------------------------------------------------------------------------------


def test_a_boundary_is_due_when_the_grace_is_over():
    terms = Terms(datetime(2026, 10, 5, tzinfo=UTC))
    zones = {"UTC": LONG_AGO}
    assert boundaries_due(terms, zones, (), BOUNDARY + timedelta(hours=48) - timedelta(microseconds=1)) == set()
    assert boundaries_due(terms, zones, (), BOUNDARY + timedelta(hours=48)) == {BOUNDARY}


def test_each_zone_has_boundaries_of_its_own():
    terms = Terms(datetime(2026, 10, 5, tzinfo=UTC))
    zones = {"UTC": LONG_AGO, "Europe/Paris": LONG_AGO, "America/Detroit": LONG_AGO}
    due = boundaries_due(terms, zones, (), datetime(2026, 11, 4, tzinfo=UTC))
    assert due == {BOUNDARY - HOUR, BOUNDARY, BOUNDARY + 4 * HOUR}


def test_periods_before_the_installation_are_cut_only_when_named():
    terms = Terms(datetime(2026, 11, 1, tzinfo=UTC))
    now = datetime(2026, 11, 10, tzinfo=UTC)
    assert boundaries_due(terms, {"UTC": LONG_AGO}, (), now) == set()
    assert boundaries_due(terms, {"UTC": LONG_AGO}, ["2026-10"], now) == {BOUNDARY}


def test_a_zone_has_no_boundaries_before_a_group_of_it_existed():
    terms = Terms(LONG_AGO)
    now = datetime(2026, 11, 10, tzinfo=UTC)
    assert boundaries_due(terms, {"UTC": datetime(2026, 10, 20, tzinfo=UTC)}, (), now) == {BOUNDARY}
    assert len(boundaries_due(terms, {"UTC": LONG_AGO}, (), now)) == 10


def test_naming_a_period_is_refused_with_the_instant_from_which_it_can_be_named():
    terms = Terms(LONG_AGO)
    with pytest.raises(Refused, match="only a period that has ended") as early:
        check_request("2026-10", ["UTC"], terms, BOUNDARY - HOUR)
    assert early.value.code == "period_not_ended"
    with pytest.raises(Refused, match="2026-11-03T04:00:00Z") as in_grace:
        check_request("2026-10", ["UTC", "America/New_York"], terms, BOUNDARY + timedelta(hours=49))
    assert in_grace.value.code == "in_grace"
    with pytest.raises(Refused, match="no billing group"):
        check_request("2026-10", [], terms, BOUNDARY + timedelta(hours=49))
    with pytest.raises(InvalidInput, match="must be a month"):
        check_request("October", ["UTC"], terms, BOUNDARY)
    assert check_request("2026-10", ["UTC"], terms, BOUNDARY + timedelta(hours=48)) == (BOUNDARY,)


def test_a_boundary_ends_the_period_of_the_zones_that_have_it():
    assert periods_ending(BOUNDARY, ["UTC", "Europe/Paris", "Europe/Lisbon"]) == {
        "UTC": "2026-10",
        "Europe/Lisbon": "2026-10",
    }


# ---- the gate --------------------------------------------------------------------------------------------------------


def covered(room, last_seq, *, group_id=None, held=(), topic=None):
    topic = topic or {"groups": "groups.billing_groups", "usage": "usage.charges", "balance": "balance.postings"}[room]
    mark = Mark(link=f"{room}:lane", topic=topic, partition=0, last_seq=last_seq)
    return Covered(
        cutoff_id=UUID(int=1), boundary=BOUNDARY, room=room, group_id=group_id, marks=(mark,), held=tuple(held)
    )


RECEIVED = {
    ("groups:lane", "groups.billing_groups", 0): 5,
    ("usage:lane", "usage.charges", 0): 80,
    ("balance:lane", "balance.postings", 0): 20,
}


def test_the_gate_opens_when_every_room_has_covered_and_every_record_is_here():
    said = [covered("groups", 5), covered("usage", 80), covered("balance", 20)]
    assert Coverage.of(said).waits_for(RECEIVED) is None
    assert Coverage.of(said[1:]).waits_for(RECEIVED) == "groups"
    assert Coverage.of(said[:2]).waits_for(RECEIVED) == "balance"
    assert Coverage.of([said[0], covered("usage", 81), said[2]]).waits_for(RECEIVED) == "records of usage"
    assert Coverage.of([covered("groups", 6), *said[1:]]).waits_for(RECEIVED) == "records of groups"


def test_marks_on_topics_that_others_read_hold_nothing():
    said = [covered("groups", 9, topic="groups.assignments"), covered("usage", 80), covered("balance", 20)]
    assert Coverage.of(said).waits_for(RECEIVED) is None


def test_a_held_group_waits_for_usage_and_balance_to_cover_it_too():
    whole = [covered("groups", 5), covered("usage", 80, held=["support"]), covered("balance", 20)]
    coverage = Coverage.of(whole)
    assert coverage.group_waits_for("support", RECEIVED) == "quarantine"
    assert coverage.group_waits_for("northwind", RECEIVED) is None
    coverage = Coverage.of([*whole, covered("usage", 80, group_id="support")])
    assert coverage.group_waits_for("support", RECEIVED) == "balance"
    coverage = Coverage.of(
        [*whole, covered("usage", 81, group_id="support"), covered("balance", 20, group_id="support")]
    )
    assert coverage.group_waits_for("support", RECEIVED) == "records of usage"
    assert coverage.still_held(RECEIVED) == {"support"}
    coverage = Coverage.of(
        [*whole, covered("usage", 80, group_id="support"), covered("balance", 20, group_id="support")]
    )
    assert coverage.still_held(RECEIVED) == set()


def test_of_a_repeated_statement_the_first_holds():
    said = [covered("groups", 5), covered("usage", 80), covered("balance", 20), covered("usage", 99)]
    assert Coverage.of(said).waits_for(RECEIVED) is None


def test_silent_sources_hold_nothing_and_stand_in_the_evidence():
    named = (SilentSource(publisher_id="switch", source="pbx/1"), SilentSource(publisher_id="switch", source="pbx/2"))
    usage = covered("usage", 80).model_copy(update={"silent_sources": named, "silent_sources_count": 5})
    coverage = Coverage.of([covered("groups", 5), usage, covered("balance", 20)])
    assert coverage.waits_for(RECEIVED) is None
    assert coverage.silent_sources == ("switch pbx/1", "switch pbx/2", "and 3 more")
    told = documents.cutoff_evidence(UUID(int=1), BOUNDARY, coverage)
    assert told["silent_sources"] == [
        {"publisher_id": "switch", "source": "pbx/1"},
        {"publisher_id": "switch", "source": "pbx/2"},
    ]
    assert told["silent_sources_count"] == 5


# ---- the close -------------------------------------------------------------------------------------------------------


def open_invoice(*charges, group=None):
    folded = fold_charges(charges)
    return OpenInvoice(
        KEY,
        group or billing_group(tax_rate="0.20"),
        folded.lines.get(KEY, ()),
        folded.tallies.get(KEY, Tally(0, 0, 0)),
        fold_postings(map(posting, charges)).get(KEY, ()),
    )


NORTHWIND = (charge("east", "0.3630"), charge("west", "0.1244"), charge("offshore", "0.1080"))


def test_equal_sums_are_billed():
    decision = decide(open_invoice(*NORTHWIND))
    assert isinstance(decision, Bill)
    assert decision.due_nano == 720_000_000


def test_without_any_charge_there_is_nothing_to_bill():
    assert decide(open_invoice()) == NothingToBill()


def taken_back(one):
    return one | {"charge_id": str(uuid4()), "amount": f"-{one['amount']}", "quantity": -one["quantity"]}


def test_charges_that_take_each_other_back_leave_nothing_to_bill():
    east = charge("east", "0.3630")
    assert decide(open_invoice(east, taken_back(east))) == NothingToBill()
    counted = charge(
        "east", "9", unit_price=None, tier={"schedule": "list/1/s", "form": "graduated", "before": 0, "after": 60}
    )
    assert decide(open_invoice(counted, taken_back(counted))) == NothingToBill()


def test_a_line_that_was_taken_back_is_not_shown_and_its_charges_are_counted():
    east, west = charge("east", "0.3630"), charge("west", "0.1244")
    invoice = open_invoice(east, west, taken_back(west))
    document = documented(invoice)
    assert [line["account_id"] for line in document["lines"]] == ["east"]
    assert document["evidence"]["charges"] == 3
    assert documents.disagreements(document, invoice) == []


def test_what_is_taken_back_from_a_closed_month_is_below_zero_on_the_next_invoice():
    late = [each | {"period": "2026-09"} for each in NORTHWIND]
    invoice = open_invoice(*map(taken_back, late))
    decision = decide(invoice)
    assert isinstance(decision, Bill)
    assert (decision.net_nano, decision.tax_nano, decision.due_nano) == (-600_000_000, -120_000_000, -720_000_000)
    document = documented(invoice)
    assert documents.disagreements(document, invoice) == []


def test_a_nano_of_difference_refuses_the_close():
    invoice = open_invoice(*NORTHWIND)
    paid = invoice.paid[0]
    tally = invoice.tally
    line = invoice.lines[0]
    mistakes = [
        replace(invoice, tally=replace(tally, exact_nano=tally.exact_nano + 1)),
        replace(invoice, tally=replace(tally, charges=tally.charges + 1)),
        replace(invoice, lines=(replace(line, exact_nano=line.exact_nano - 1), *invoice.lines[1:])),
        replace(invoice, lines=invoice.lines[1:]),
        replace(invoice, paid=invoice.paid[1:]),
        replace(invoice, paid=(replace(paid, unbilled_nano=paid.unbilled_nano + 1), *invoice.paid[1:])),
        replace(
            invoice,
            paid=(
                replace(paid, unbilled_nano=paid.unbilled_nano + 1, charged_nano=paid.charged_nano + 1),
                *invoice.paid[1:],
            ),
        ),
        replace(invoice, paid=(replace(paid, wallet_nano=paid.unbilled_nano, unbilled_nano=0), *invoice.paid[1:])),
        replace(invoice, paid=(replace(paid, account_id="west"), *invoice.paid[1:])),
        replace(invoice, group=None),
        replace(invoice, group=billing_group(currency="EUR")),
    ]
    assert all(isinstance(decide(each), Mismatch) for each in mistakes)


def test_the_refusal_names_both_sums():
    invoice = open_invoice(*NORTHWIND)
    decision = decide(replace(invoice, paid=invoice.paid[1:]))
    assert decision == Mismatch("charges sum to 0.5954, the postings of balance to 0.2324")


def test_a_group_of_more_accounts_than_a_record_can_tell_is_refused_and_any_smaller_one_fits():
    decision = decide(open_invoice(*(charge(f"a{number}", "0.01") for number in range(ACCOUNTS_MAX + 1))))
    assert decision == Mismatch("40001 accounts stand on it; at most 40000 fit into the record that tells it")
    longest = ClosingPosting(
        account_id="a" * 64, **dict.fromkeys(("wallet", "unbilled", "receivable"), "-999999999999.123456789")
    )
    assert ACCOUNTS_MAX * (len(to_json(longest.data())) + 1) <= INVOICES_EVENTS.record_bytes_max - AROUND_BYTES_MAX


# ---- the documents ---------------------------------------------------------------------------------------------------


def documented(invoice):
    issued_on = datetime(2026, 11, 3, 0, 0, 1, tzinfo=UTC)
    return documents.closed(
        invoice, invoice.group, amounts(invoice, invoice.group), {"east": "East office"},
        documents.Issue("TB-000001", 1, issued_on), cutoff_id=UUID(int=1), cutoff_evidence_sha256="ab" * 32,
    )  # fmt: skip


def test_the_document_holds_lines_totals_shares_and_evidence():
    document = documented(open_invoice(*NORTHWIND))
    assert document["totals"] == {
        "net": "0.60", "tax": "0.12", "total": "0.72", "paid_from_balance": "0.00", "due": "0.72",
    }  # fmt: skip
    assert document["rounding"] == "0.01"
    assert [(each["account_name"], each["exact"], each["amount"]) for each in document["lines"]] == [
        ("East office", "0.363", "0.36"), ("offshore", "0.108", "0.11"), ("west", "0.1244", "0.12"),
    ]  # fmt: skip
    assert document["evidence"]["charges"] == 3
    assert document["evidence"]["exact_sum"] == "0.5954"
    assert len(document["evidence"]["xor"]) == 16
    assert document["due_on"] == "2026-11-17T00:00:01Z"
    assert json.loads(documents.canonical(document)) == document


def test_the_text_shows_what_is_due_and_late_use_by_its_month():
    late = charge("east", "0.0250", period="2026-09")
    text = documents.as_text(documented(open_invoice(*NORTHWIND, late)))
    assert "INVOICE TB-000001" in text
    assert "voice.outbound (use of 2026-09)" in text
    assert "tax 20 %" in text
    assert "DUE USD" in text
    assert max(map(len, text.splitlines())) <= documents.WIDTH


def test_the_event_balances_to_the_nano():
    invoice = open_invoice(*NORTHWIND)
    event = documents.closed_event(
        invoice, invoice.group, amounts(invoice, invoice.group), documents.Issue("TB-000001", 1, BOUNDARY + HOUR),
        boundary=BOUNDARY, sha256="ab" * 32,
    ).data()  # fmt: skip
    assert sums_to_zero(event)
    assert {each["account_id"]: (each["unbilled"], each["receivable"]) for each in event["postings"]} == {
        "east": ("0.363", "-0.44"),
        "west": ("0.1244", "-0.15"),
        "offshore": ("0.108", "-0.13"),
    }
    assert (event["posting_rounding"], event["posting_tax"]) == ("0.0046", "0.12")
    assert event["invoice_id"] == str(KEY.invoice_id)


def by_credit(invoice, nano, **more):
    """The invoice with so much of its first account paid by promotional credit."""
    paid, *others = invoice.paid
    kind = "wallet_nano" if paid.wallet_nano else "unbilled_nano"
    changed = replace(paid, credits_nano=nano, **({kind: getattr(paid, kind) - nano} | more))
    return replace(invoice, paid=(changed, *others))


@pytest.mark.parametrize(("plan", "due", "balance"), [("invoiced", "0.59", "0.00"), ("payg", "0.00", "0.59")])
def test_promotional_credit_is_a_line_of_its_own_taken_off_before_tax(plan, due, balance):
    invoice = by_credit(open_invoice(*(each | {"plan": plan} for each in NORTHWIND)), 113_000_000)
    decision = decide(invoice)
    assert isinstance(decision, Bill)
    document = documented(invoice)
    account = invoice.paid[0].account_id
    assert [(each["account_id"], each["exact"], each["amount"]) for each in document["credits"]] == [
        (account, "-0.113", "-0.11")
    ]
    assert document["rounding"] == "0.00"  # 0.59 of lines - 0.11 of credit, of exactly 0.4824
    assert document["totals"] == {
        "net": "0.48", "tax": "0.10", "total": "0.58", "paid_from_balance": balance.replace("0.59", "0.58"),
        "due": due.replace("0.59", "0.58"),
    }  # fmt: skip
    assert documents.disagreements(document, invoice) == []
    forged = json.loads(documents.canonical(document))
    forged["credits"][0]["exact"] = "-0.213"
    assert documents.disagreements(forged, invoice)
    assert "promotional credit" in documents.as_text(document)
    event = documents.closed_event(
        invoice, invoice.group, decision, documents.Issue("TB-000001", 1, BOUNDARY + HOUR), boundary=BOUNDARY,
        sha256="ab" * 32,
    ).data()  # fmt: skip
    assert sums_to_zero(event)
    moved = sum(Fraction(each["wallet"]) + Fraction(each["unbilled"]) for each in event["postings"])
    expected = Fraction("0.4824") if plan == "invoiced" else Fraction("0.4824") - Fraction("0.58")
    assert moved == expected


def test_an_invoice_that_credit_paid_in_full_owes_nothing():
    invoice = open_invoice(charge("east", "0.3630"))
    document = documented(by_credit(invoice, 363_000_000))
    assert document["totals"]["total"] == "0.00"
    assert [each["amount"] for each in document["credits"]] == ["-0.36"]


def test_credit_beside_two_plans_is_what_the_wallet_did_not_pay():
    invoice = open_invoice(charge("east", "1.00") | {"plan": "payg"}, charge("east", "2.00"))
    both = by_credit(invoice, 1_500_000_000, wallet_nano=0, unbilled_nano=1_500_000_000)
    assert isinstance(decide(both), Bill)
    parts = [(each["payment"], each["amount"]) for each in documented(both)["credits"]]
    assert parts == [("postpaid", "-0.50"), ("prepaid", "-1.00")]
    wrong = by_credit(invoice, 1_500_000_000, wallet_nano=0, unbilled_nano=1_500_000_001)
    assert isinstance(decide(wrong), Mismatch)


BEFORE = {"period": "2026-09", "bill_to": "2026-10"}


@pytest.mark.parametrize(
    ("use", "paid", "parts", "due"),
    [
        # 10 of the month before, of which credit had paid 2, are taken back; of 20 after a change of plan credit paid 5
        (["-10", "20"], {"credits_nano": 3, "wallet_nano": -8, "unbilled_nano": 15}, [("postpaid", -5), ("prepaid", 2)], 15),
        (["-10", "20"], {"credits_nano": 0, "wallet_nano": -8, "unbilled_nano": 18}, [("postpaid", -2), ("prepaid", 2)], 18),
        # the same, where prepaid use of 10 before the change of plan takes away what was given back
        (["-10", "10", "20"], {"credits_nano": 4, "wallet_nano": -4, "unbilled_nano": 20}, [("prepaid", -4)], 20),
    ],
)  # fmt: skip
def test_credit_beside_two_plans_is_told_apart_where_use_of_the_month_before_is_taken_back(use, paid, parts, due):
    *prepaid, postpaid = use
    lines = [charge("desk", each, **(BEFORE if each[0] == "-" else {})) | {"plan": "payg"} for each in prepaid]
    invoice = open_invoice(*lines, charge("desk", postpaid))
    invoice = replace(invoice, paid=(replace(invoice.paid[0], **{name: units * NANO for name, units in paid.items()}),))
    decision = decide(invoice)
    assert isinstance(decision, Bill)
    assert [(each["payment"], Fraction(each["exact"])) for each in documented(invoice)["credits"]] == parts
    assert decision.shares[0].postpaid_nano == due * NANO


def test_what_taken_back_use_leaves_unbilled_is_billed_though_no_line_stands():
    """An amendment of a charge that credit had paid, after the credit lapsed: the new one stands unbilled."""
    east = charge("east", "2.00")
    invoice = by_credit(open_invoice(east, taken_back(east)), -2 * NANO)
    decision = decide(invoice)
    assert isinstance(decision, Bill)
    document = documented(invoice)
    assert (document["lines"], [each["amount"] for each in document["credits"]]) == ([], ["2.00"])
    assert document["totals"]["due"] == "2.40"
    assert documents.disagreements(document, invoice) == []
    event = documents.closed_event(
        invoice, invoice.group, decision, documents.Issue("TB-000001", 1, BOUNDARY + HOUR), boundary=BOUNDARY,
        sha256="ab" * 32,
    ).data()  # fmt: skip
    assert sums_to_zero(event)
    assert [(each["unbilled"], each["receivable"]) for each in event["postings"]] == [("2", "-2.4")]
    assert "promotional credit" in documents.as_text(document)


def test_every_amount_of_a_document_is_computed_again_by_the_auditor():
    invoice = open_invoice(*NORTHWIND)
    document = documented(invoice)
    assert documents.disagreements(document, invoice) == []
    for path in (("lines", 0, "amount"), ("rounding",), ("tax",), ("totals", "due"), ("accounts", 0, "due"), ("evidence", "xor")):  # fmt: skip
        forged = json.loads(documents.canonical(document))
        place = forged
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = "0.99"
        assert documents.disagreements(forged, invoice), path
