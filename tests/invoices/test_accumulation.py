"""Folding batches into sums."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from functools import reduce
from operator import xor
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.invoices.accumulation import InvoiceKey, Tally, fold_postings
from services.invoices.closing import OpenInvoice, decide
from services.invoices.documents import Issue, canonical, closed
from services.invoices.rounding import LineSum, bill
from services.kernel.errors import Corrupt
from services.kernel.ids import evidence_hash
from services.kernel.money import parse_amount
from tests.invoices.neighbours import billing_group, charge, fold_charges, posting
from tests.support import model

KEY = InvoiceKey("northwind", "2026-10")


def test_charges_of_one_account_product_cost_center_and_period_are_one_line():
    charges = [
        charge("east", "0.0202", quantity=96),
        charge("east", "0.0140", quantity=60),
        charge("east", "0.0140", cost_center_id="sales"),
        charge("east", "0.0085", product="voice.inbound"),
        charge("east", "0.0140", period="2026-09"),
        charge("west", "0.0140"),
        charge("east", "0.0140", plan="payg"),
    ]
    folded = fold_charges(charges)
    assert len(folded.lines[KEY]) == 6
    first = folded.lines[KEY][0]
    assert (first.charges, first.quantity, first.exact_nano) == (2, 156, 34_200_000)
    assert folded.tallies[KEY] == Tally(
        7, sum(line.exact_nano for line in folded.lines[KEY]), reduce(xor, (evidence_hash(UUID(each["charge_id"])) for each in charges))
    )  # fmt: skip


def test_the_unit_price_is_shown_only_where_it_is_one():
    same = fold_charges([charge("a", "0.01", unit_price="0.0120"), charge("a", "0.02", unit_price="0.012")])
    mixed = fold_charges([charge("a", "0.01", unit_price="0.0120"), charge("a", "0.02", unit_price="0.04")])
    assert same.lines[KEY][0].unit_price_nano == 12_000_000
    assert mixed.lines[KEY][0].unit_price_nano is None


def test_a_reversal_takes_amount_and_quantity_off_its_line_and_counts_as_a_charge_of_its_own():
    kept, taken_back = charge("east", "0.0202", quantity=96), charge("east", "0.0140", quantity=60)
    reversal = charge("east", "-0.0140", quantity=-60, reverses=taken_back["charge_id"])
    folded = fold_charges([kept, taken_back, reversal])
    (line,) = folded.lines[KEY]
    assert (line.charges, line.quantity, line.exact_nano) == (3, 96, 20_200_000)
    hashes = (evidence_hash(UUID(each["charge_id"])) for each in (kept, taken_back, reversal))
    assert folded.tallies[KEY] == Tally(3, 20_200_000, reduce(xor, hashes))


def test_charges_without_a_payer_group_stand_on_no_invoice():
    folded = fold_charges([charge("try", "0.07", group_id=None, bill_to=None, plan="trial")])
    assert (folded.lines, folded.tallies) == ({}, {})
    assert fold_postings([posting(charge("try", "0.07", group_id=None, bill_to=None, plan="trial"))]) == {}


def test_a_charge_with_a_group_and_no_period_is_corrupt():
    with pytest.raises(Corrupt, match="no period"):
        fold_charges([charge("a", "0.01", bill_to=None)])


charges_of_a_month = st.lists(
    st.builds(
        charge,
        st.sampled_from(["east", "west"]),
        st.integers(0, 10**10).map(lambda nano: f"{nano // 10**9}.{nano % 10**9:09d}"),
        charge_id=st.uuids().map(str),
        product=st.sampled_from(["voice.outbound", "voice.inbound"]),
        cost_center_id=st.sampled_from([None, "sales"]),
        period=st.sampled_from(["2026-09", "2026-10"]),
        unit_price=st.sampled_from(["0.0120", "0.04"]),
        quantity=st.integers(1, 600),
    ),
    min_size=1,
    max_size=20,
)


def closed_document(batches) -> str:
    """The document that comes of these batches, each folded on its own and added as the tables add."""
    lines: dict = {}
    tally = Tally(0, 0, 0)
    paid: dict = {}
    for batch in batches:
        folded = fold_charges(batch)
        for each in folded.lines.get(KEY, ()):
            known = lines.get(each.key)
            lines[each.key] = (
                each
                if known is None
                else LineSum(
                    each.key,
                    known.charges + each.charges,
                    known.quantity + each.quantity,
                    known.exact_nano + each.exact_nano,
                    min(known.unit_price_min_nano, each.unit_price_min_nano),
                    max(known.unit_price_max_nano, each.unit_price_max_nano),
                )
            )
        for each in folded.tallies.values():
            tally = Tally(tally.charges + each.charges, tally.exact_nano + each.exact_nano, tally.xor ^ each.xor)
        for each in fold_postings(map(posting, batch)).get(KEY, ()):
            paid[len(paid)] = each
    group = billing_group(tax_rate="0.20")
    invoice = OpenInvoice(KEY, group, tuple(lines.values()), tally, tuple(paid.values()))
    return canonical(
        closed(
            invoice,
            group,
            decide(invoice),
            {"east": "East"},
            Issue("1", 1, datetime(2026, 11, 3, tzinfo=UTC)),
            cutoff_id=UUID(int=0),
            cutoff_evidence_sha256="0" * 64,
        )
    )


@given(charges_of_a_month, st.randoms(), st.integers(1, 5))
def test_any_order_and_any_cut_into_batches_give_the_same_bytes(charges, random, size):
    shuffled = random.sample(charges, len(charges))
    batches = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    assert closed_document(batches) == closed_document([charges])


@given(charges_of_a_month, st.sampled_from(["0", "0.20", "0.075", "1"]))
def test_the_invoice_is_the_one_that_the_reference_model_makes(charges, tax_rate):
    fields = {field.name for field in dataclasses.fields(model.Charge)} - {"amount_nano", "event_time"}
    expected = model.make_invoice(
        *KEY,
        [
            model.Charge(
                **{name: value for name, value in each.items() if name in fields},
                amount_nano=model.nano(each["amount"]),
                event_time=model.instant(each["event_time"]),
            )
            for each in charges
        ],
        tax_rate=tax_rate,
    )
    folded = fold_charges(charges)
    made = bill(folded.lines[KEY], rate_nano=parse_amount(tax_rate), exponent=2)
    assert {
        (line.sum.key.account_id, line.sum.key.product, line.sum.key.cost_center_id or None, line.sum.key.period): (
            line.sum.charges,
            line.sum.exact_nano,
            line.amount_nano,
        )
        for line in made.lines
    } == {
        (line.account_id, line.product, line.cost_center_id, line.period): (
            line.charges,
            line.exact_nano,
            line.amount_nano,
        )
        for line in expected.lines
    }
    assert (made.rounding_nano, made.tax_nano, made.total_nano, made.due_nano) == (
        expected.rounding_nano,
        expected.tax_nano,
        expected.total_nano,
        expected.due_nano,
    )
    assert (folded.tallies[KEY].charges, folded.tallies[KEY].xor) == (expected.charges, expected.xor)
