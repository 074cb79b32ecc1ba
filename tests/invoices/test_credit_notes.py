"""What a credit note takes back: examples, refusals, and what holds for any notes against any invoice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from services.invoices import credit_note_documents as documents
from services.invoices.accumulation import InvoiceKey, Tally
from services.invoices.credit_notes import Asked, CreditNote, Line, decide, parse
from services.invoices.documents import amount_sections
from services.invoices.rounding import LineKey, LineSum, bill
from services.kernel.errors import InvalidInput, Refused, TollbookError
from services.kernel.money import NANO, format_nano, parse_amount

CENT = NANO // 100
TWENTY_PERCENT = NANO // 5
NOTE_ID = UUID(int=7)
ISSUED = datetime(2026, 11, 3, 12, tzinfo=UTC)


def used(
    account_id: str, amount: str, *, prepaid: bool = False, product: str = "voice.outbound", period: str = "2026-10"
) -> LineSum:
    key = LineKey(account_id, product, "", period, prepaid, "USD")
    return LineSum(key, 1, 60, parse_amount(amount, signed=True), 0, 0)


def invoice(
    lines: Sequence[LineSum], *, rate_nano: int = TWENTY_PERCENT, credits: dict[tuple[str, bool], int] | None = None
) -> dict[str, Any]:
    """The document of a closed invoice with these lines."""
    amounts = bill(lines, rate_nano=rate_nano, exponent=2, credits=credits)
    sections = amount_sections(InvoiceKey("northwind", "2026-10"), amounts, Tally(1, 0, 0), "USD", {})
    return {
        "invoice_id": str(UUID(int=1)),
        "number": "TB-000001",
        "issued_on": "2026-11-03T00:00:00Z",
        "period": {"name": "2026-10"},
        "billing_entity": {"name": "Tollbook Inc.", "address": "1 Main St", "vat_id": None},
        "billing_group": {
            "group_id": "northwind", "organization_id": "org", "name": "Northwind", "company": "Northwind Ltd", "address": "",
            "vat_id": None, "extra": "",
        },
        "currency": "USD",
        "tax_rate": format_nano(rate_nano),
        **sections,
    }  # fmt: skip


def document_of(note: CreditNote, of: dict[str, Any]) -> dict[str, Any]:
    return documents.issued(note, NOTE_ID, of, "0" * 64, number="TB-000002", reason="wrong price", at=ISSUED)


def amounts(note: CreditNote) -> tuple[str, str, str]:
    return format_nano(note.net_nano), format_nano(note.tax_nano), format_nano(note.total_nano)


def shares(note: CreditNote) -> dict[str, tuple[str, str]]:
    return {
        account_id: (format_nano(share.wallet_nano), format_nano(share.owed_nano))
        for account_id, share in note.shares.items()
        if any(share)
    }


NORTHWIND = invoice([used("east", "0.3630"), used("west", "0.1244"), used("offshore", "0.1080")])


def test_all_of_an_invoice_is_its_exact_opposite():
    note = decide(NORTHWIND, [], None)
    assert amounts(note) == ("0.6", "0.12", "0.72")
    assert shares(note) == {"east": ("0", "0.44"), "west": ("0", "0.15"), "offshore": ("0", "0.13")}
    assert (note.by_product, note.rounding_nano, note.rounding_entry_nano) == (
        {"voice.outbound": 595_400_000}, CENT, 4_600_000,
    )  # fmt: skip
    assert note.voids


def test_a_line_is_credited_with_its_tax_and_the_rest_comes_with_the_last_note():
    first = decide(NORTHWIND, [], [Asked("east", "voice.outbound", 20 * CENT)])
    assert (amounts(first), shares(first), first.voids) == (("0.2", "0.04", "0.24"), {"east": ("0", "0.24")}, False)
    rest = decide(NORTHWIND, [first], None)
    assert amounts(rest) == ("0.4", "0.08", "0.48")
    assert shares(rest) == {"east": ("0", "0.2"), "west": ("0", "0.15"), "offshore": ("0", "0.13")}
    assert rest.voids
    with pytest.raises(Refused, match="all of invoice TB-000001 is credited already"):
        decide(NORTHWIND, [first, rest], None)


def test_prepaid_use_goes_back_to_the_wallet():
    of = invoice([used("sales", "12.345678901", prepaid=True)])
    assert shares(decide(of, [], None)) == {"sales": ("14.82", "0")}
    assert shares(decide(of, [], [Asked("sales", "voice.outbound", NANO)])) == {"sales": ("1.2", "0")}


def test_where_a_product_was_paid_in_both_ways_the_note_says_which():
    of = invoice([used("a", "3", prepaid=True), used("a", "5")], rate_nano=0)
    with pytest.raises(
        InvalidInput, match=r"line: voice.outbound of account a was paid in both ways: say prepaid or postpaid"
    ):
        decide(of, [], [Asked("a", "voice.outbound", NANO)])
    assert shares(decide(of, [], [Asked("a", "voice.outbound", NANO, prepaid=True)])) == {"a": ("1", "0")}
    assert shares(decide(of, [], [Asked("a", "voice.outbound", NANO, prepaid=False)])) == {"a": ("0", "1")}


def test_promotional_credit_is_not_given_back():
    of = invoice([used("a", "10")], credits={("a", False): 4 * NANO})
    whole = decide(of, [], None)
    assert (amounts(whole), whole.by_product, whole.promotion.exact_nano) == (
        ("6", "1.2", "7.2"), {"voice.outbound": 10 * NANO}, 4 * NANO,
    )  # fmt: skip
    with pytest.raises(
        Refused, match="at most 6 is left of invoice TB-000001, rounding and promotional credit taken off"
    ):
        decide(of, [], [Asked("a", "voice.outbound", 7 * NANO)])
    assert decide(of, [], [Asked("a", "voice.outbound", 6 * NANO)]) == whole  # all that was paid: nothing is left
    assert decide(of, [], [Asked("a", "voice.outbound", 10 * NANO)]) == whole
    of = invoice([used("a", "10"), used("b", "10")], credits={("a", False): 4 * NANO})
    with pytest.raises(Refused, match=r"12 would be given back to account a, of whose part .* 7.2 is left \(owed\)"):
        decide(of, [], [Asked("a", "voice.outbound", 10 * NANO)])
    with pytest.raises(Refused, match=r"with tax 8\.4 would be given back to account a"):
        decide(of, [], [Asked("a", "voice.outbound", 7 * NANO)])


def test_lines_of_several_months_and_cost_centers_are_one():
    of = invoice([used("a", "3"), used("a", "2", period="2026-09"), used("a", "-1", period="2026-08")], rate_nano=0)
    assert amounts(decide(of, [], [Asked("a", "voice.outbound", 3 * NANO)])) == ("3", "0", "3")
    with pytest.raises(Refused, match=r"at most 4 is left of voice.outbound of account a"):
        decide(of, [], [Asked("a", "voice.outbound", 5 * NANO)])


def test_every_line_in_full_is_all_of_it_in_whatever_order_and_however_many_notes():
    of = invoice([used("a", "10.02"), used("b", "10.02")])  # 12.03 and 12.02 with tax
    first = decide(of, [], [Asked("a", "voice.outbound", 1002 * CENT)])
    assert (amounts(first), shares(first)) == (("10.02", "2", "12.02"), {"a": ("0", "12.02")})
    rest = decide(of, [first], [Asked("b", "voice.outbound", 1002 * CENT)])
    assert (amounts(rest), shares(rest), rest.voids) == (
        ("10.02", "2.01", "12.03"), {"a": ("0", "0.01"), "b": ("0", "12.02")}, True,
    )  # fmt: skip
    named = [
        Asked(name, "voice.outbound", cents * CENT) for name, cents in (("east", 36), ("west", 12), ("offshore", 11))
    ]
    assert decide(NORTHWIND, [], named) == decide(NORTHWIND, [], None)
    halves = invoice([used("a", "0.0055", product="sms"), used("a", "0.0055", product="mms")], rate_nano=0)
    assert halves["totals"]["total"] == "0.01"  # of two lines of 0.01
    assert decide(halves, [], [Asked("a", "sms", CENT), Asked("a", "mms", CENT)]) == decide(halves, [], None)


@given(
    nanos=st.lists(st.integers(5 * 10**6, 40 * NANO), min_size=1, max_size=5),
    rate=st.sampled_from([0, TWENTY_PERCENT, 75_000_000, 190_000_000]),
    turns=st.randoms(use_true_random=False),
)
@example(nanos=[5 * 10**6] * 2, rate=0, turns=Random(0))
def test_lines_credited_in_full_one_by_one_are_never_refused_and_void_the_invoice(
    nanos: list[int], rate: int, turns: Any
) -> None:
    of = invoice([used(f"a{number}", format_nano(nano)) for number, nano in enumerate(nanos)], rate_nano=rate)
    left = parse_amount(of["totals"]["total"])
    assume(left)
    notes: list[CreditNote] = []
    for line in turns.sample(of["lines"], len(of["lines"])):
        if left and (cents := parse_amount(line["amount"])):
            notes.append(decide(of, notes, [Asked(line["account_id"], line["product"], cents)]))
            left -= notes[-1].total_nano
    if not notes:  # lines of nothing, of which a cent came together: there is no amount to name
        notes.append(decide(of, [], None))
        left -= notes[-1].total_nano
    assert (left, notes[-1].voids) == (0, True)


def test_nobody_is_taken_anything_from():
    of = invoice([used("a", "10"), used("b", "-4")], rate_nano=0)
    with pytest.raises(Refused, match="account b was given back more than it used on invoice TB-000001"):
        decide(of, [], None)
    most = decide(of, [], [Asked("a", "voice.outbound", 6 * NANO)])
    assert (shares(most), most.voids) == ({"a": ("0", "6")}, False)
    with pytest.raises(Refused, match="all of invoice TB-000001 is credited already"):
        decide(of, [most], [Asked("a", "voice.outbound", CENT)])
    with pytest.raises(Refused, match="nothing is to be paid of invoice TB-000001"):
        decide(invoice([used("a", "-1")]), [], None)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ([Asked("north", "voice.outbound", CENT)], "invoice TB-000001 has no line of voice.outbound of account north"),
        ([Asked("east", "sms", CENT)], "invoice TB-000001 has no line of sms of account east"),
        ([Asked("east", "voice.outbound", 37 * CENT)], "at most 0.36 is left of voice.outbound of account east"),
        ([Asked("east", "voice.outbound", 0)], "0 of voice.outbound of account east must be above 0"),
        ([Asked("east", "voice.outbound", 1)], "must be above 0, with at most 2 decimals"),
        ([Asked("east", "voice.outbound", CENT)] * 2, "voice.outbound of account east is named twice"),
    ],
)
def test_what_cannot_be_credited_says_so(asked: list[Asked], sentence: str):
    with pytest.raises(TollbookError, match=sentence) as caught:
        decide(NORTHWIND, [], asked)
    assert caught.value.field == "line"


def test_an_account_gets_at_most_what_it_pays():
    """Its lines were rounded up, its part of the invoice was not."""
    of = invoice([used("a", "0.355"), used("b", "0.355")], rate_nano=0)
    assert [each["due"] for each in of["accounts"]] == ["0.36", "0.35"]
    note = decide(of, [], [Asked("b", "voice.outbound", 36 * CENT)])
    assert (shares(note), note.rounding_nano) == ({"b": ("0", "0.35")}, -CENT)
    products = ("data", "lookup", "mms", "sms")
    of = invoice([used("a", "10"), *(used("b", "0.355", product=each) for each in products)], rate_nano=0)
    assert [each["due"] for each in of["accounts"]] == ["10.00", "1.42"]
    first = decide(of, [], [Asked("b", product, 36 * CENT) for product in products[:3]])
    with pytest.raises(Refused, match=r"0.35 would be given back to account b, of whose part .* 0.34 is left"):
        decide(of, [first], [Asked("b", "sms", 35 * CENT)])
    assert shares(decide(of, [first], [Asked("b", "sms", 36 * CENT)])) == {"b": ("0", "0.34")}


def test_the_page_says_what_is_credited_and_why():
    page = documents.as_text(document_of(decide(NORTHWIND, [], None), NORTHWIND))
    for words in (
        "CREDIT NOTE TB-000002", "Northwind Ltd", "For invoice TB-000001", "which is void by it", "Reason: wrong price",
        "CREDITED USD      0.72", "east: 0.44 off what is owed",
    ):  # fmt: skip
        assert words in page


# ---- any notes against any invoice ---------------------------------------------------------------------------------

amount = st.integers(1, 3_000_000_000)
lines = st.lists(
    st.builds(
        lambda account_id, product, prepaid, nano, sign: used(
            account_id, format_nano(nano * sign), product=product, prepaid=prepaid
        ),
        st.sampled_from("abc"),
        st.sampled_from(("sms", "voice")),
        st.booleans(),
        amount,
        st.sampled_from((1, 1, 1, 1, -1)),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda line: line.key,
)
wishes = st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 400)), min_size=1, max_size=3), max_size=5)


def sums(of: dict[str, Any], notes: Sequence[dict[str, Any]]) -> dict[Any, int]:
    """What is left of each figure of an invoice, by its documents alone: an independent subtraction."""

    def figures(document: dict[str, Any], back: str, owed: str) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for each in document["lines"]:
            key = ("line", each["account_id"], each["product"], each["payment"])
            found[key] = found.get(key, 0) + parse_amount(each["amount"], signed=True)
        for each in document["accounts"]:
            found["wallet", each["account_id"]] = parse_amount(each[back], signed=True)
            found["owed", each["account_id"]] = parse_amount(each[owed], signed=True)
        for name in ("net", "tax", "total"):
            found[name] = parse_amount(document["totals"][name], signed=True)
        return found

    left = figures(of, "paid_from_balance", "due")
    for note in notes:
        for key, nano in figures(note, "to_balance", "owed").items():
            left[key] -= nano
    return left


def balances(note: CreditNote) -> bool:
    """The ledger's two sides, to the nano."""
    given = sum(share.wallet_nano + share.owed_nano for share in note.shares.values())
    taken = sum(note.by_product.values()) - note.promotion.exact_nano + note.rounding_entry_nano + note.tax_nano
    return given == taken == note.total_nano


@given(lines, st.sampled_from((0, 75_000_000, TWENTY_PERCENT)), st.integers(0, 100), wishes)
def test_any_notes_together_take_back_at_most_the_invoice_and_the_last_one_the_rest(used_lines, rate, promoted, wished):
    keys = sorted({(line.key.account_id, line.key.prepaid) for line in used_lines})
    of_part = {
        key: sum(each.exact_nano for each in used_lines if (each.key.account_id, each.key.prepaid) == key)
        for key in keys
    }
    credits = {key: nano * promoted // 200 for key, nano in of_part.items() if nano > 0}
    of = invoice(used_lines, rate_nano=rate, credits=credits)
    assume(parse_amount(of["totals"]["total"], signed=True) > 0)
    of_invoice = sums(of, [])
    named = sorted({Line(each.key.account_id, each.key.product, each.key.prepaid) for each in used_lines})
    notes: list[CreditNote] = []
    stored: list[dict[str, Any]] = []

    def take(asked: list[Asked] | None) -> None:
        before = sums(of, stored)
        try:
            note = decide(of, notes, asked)
        except Refused as refused:
            assert before == sums(of, stored)
            if asked is not None and refused.code == "more_than_left" and len(keys) == 1:
                # of one account that paid in one way, whatever is left can be credited
                fits = all(
                    before["line", each.account_id, each.product, "prepaid" if each.prepaid else "postpaid"]
                    >= each.amount_nano
                    for each in asked
                )
                assert not fits or sum(each.amount_nano for each in asked) > before["net"]
            return
        assert balances(note)
        document = document_of(note, of)
        assert parse(document) == CreditNote(
            {line: nano for line, nano in note.lines.items() if any(nano)},
            note.promotion, note.rounding_nano, note.tax_nano,
            {account_id: share for account_id, share in note.shares.items() if any(share)}, note.voids,
        )  # fmt: skip
        notes.append(parse(document))
        stored.append(document)
        after = sums(of, stored)
        for key in ("net", "tax", "total"):
            assert 0 <= after[key] <= before[key] <= of_invoice[key]
        assert all(
            before[key] >= after[key] >= min(0, of_invoice[key]) for key in after if key[0] in ("wallet", "owed")
        )
        assert note.voids == (not any(after.values()))

    for asked in wished:
        picked = {named[which % len(named)]: cents * CENT for which, cents in asked}
        take([Asked(line.account_id, line.product, nano, line.prepaid) for line, nano in picked.items()])
    take(None)
    left = sums(of, stored)
    if left["total"]:  # all of it is not given back only where somebody would be taken from
        assert any(nano < 0 for key, nano in left.items() if key[0] in ("wallet", "owed"))
