"""What each event of billing posts: the worked lines of the ledger design."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import ledger
from services.balance.ledger import ClosingAmounts, Entry
from services.kernel.errors import Corrupt, InvalidInput
from services.kernel.money import WALLET_NANO_MAX, parse_amount


def nano(text):
    return parse_amount(text, signed=True)


def test_opening_goodwill_and_payment():
    assert ledger.amounts(ledger.opening("a", nano("10.50"))) == {"wallet": nano("10.5"), "opening": nano("-10.5")}
    assert ledger.amounts(ledger.opening("a", nano("-3"))) == {"wallet": nano("-3"), "opening": nano("3")}
    assert ledger.amounts(ledger.goodwill("a", nano("5"))) == {"wallet": nano("5"), "promotion": nano("-5")}
    assert ledger.amounts(ledger.payment("a", "sandbox", nano("100"))) == {
        "wallet": nano("100"),
        "clearing:sandbox": nano("-100"),
    }


def test_prepaid_and_postpaid_charges():
    prepaid = ledger.charges("a", wallet=nano("5"), unbilled=0, by_product={"voice.outbound": nano("5")})
    assert ledger.amounts(prepaid) == {"wallet": nano("-5"), "revenue:voice.outbound": nano("5")}
    postpaid = ledger.charges("a", wallet=0, unbilled=nano("5"), by_product={"voice.outbound": nano("5")})
    assert ledger.amounts(postpaid) == {"unbilled": nano("-5"), "revenue:voice.outbound": nano("5")}


def test_close_postpaid_with_consolidation_rounding_and_tax():
    accounts = [
        ClosingAmounts("east", 0, nano("0.363"), nano("-0.44")),
        ClosingAmounts("west", 0, nano("0.1244"), nano("-0.15")),
        ClosingAmounts("offshore", 0, nano("0.108"), nano("-0.13")),
    ]
    entries = ledger.closing("northwind", accounts, rounding=nano("0.0046"), tax_nano=nano("0.12"), jurisdiction="X")
    assert sum(entry.nano for entry in entries) == 0
    assert sum(entry.nano for entry in entries if entry.ledger == "receivable:northwind") == nano("-0.72")


def test_close_prepaid():
    entries = ledger.closing(
        "g",
        [ClosingAmounts("a", nano("-2.474321099"), 0, 0)],
        rounding=nano("0.004321099"),
        tax_nano=nano("2.47"),
        jurisdiction="X",
    )
    assert ledger.amounts(entries) == {
        "wallet": nano("-2.474321099"),
        "rounding": nano("0.004321099"),
        "tax:X": nano("2.47"),
    }


def test_entries_that_do_not_sum_to_zero_are_refused():
    with pytest.raises(Corrupt):
        ledger.closing("g", [ClosingAmounts("a", -1, 0, 0)], rounding=0, tax_nano=0, jurisdiction="X")
    with pytest.raises(Corrupt):
        ledger.charges("a", wallet=1, unbilled=1, by_product={"voice.outbound": 3})


def test_entries_of_zero_are_left_out():
    assert ledger.checked([Entry("wallet", 0, "a"), Entry("opening", 0)]) == ()


def test_a_wallet_has_bounds():
    ledger.check_wallet(WALLET_NANO_MAX)
    ledger.check_wallet(-WALLET_NANO_MAX)
    with pytest.raises(InvalidInput):
        ledger.check_wallet(WALLET_NANO_MAX + 1)


@given(
    st.dictionaries(st.sampled_from(["voice.outbound", "voice.inbound", "sms"]), st.integers(-(10**15), 10**15)),
    st.booleans(),
)
def test_any_batch_of_charges_balances(by_product, prepaid):
    total = sum(by_product.values())
    entries = ledger.charges(
        "a", wallet=total if prepaid else 0, unbilled=0 if prepaid else total, by_product=by_product
    )
    assert sum(entry.nano for entry in entries) == 0


def test_disputes_and_refunds_leave_what_the_processor_owes():
    total = Counter(ledger.amounts(ledger.payment("a", "sandbox", 100)))
    total.update(ledger.amounts(ledger.refund("a", "sandbox", 30)))
    total.update(ledger.amounts(ledger.dispute_opened("a", "sandbox", 70)))
    assert total == {"wallet": 0, "clearing:sandbox": -70, "disputes:sandbox": 70}
    lost, won = Counter(total), Counter(total)
    lost.update(ledger.amounts(ledger.dispute_lost("a", "sandbox", 70)))
    assert lost == {"wallet": 0, "clearing:sandbox": 0, "disputes:sandbox": 0}
    won.update(ledger.amounts(ledger.dispute_won("a", "sandbox", 70)))
    won.update(ledger.amounts(ledger.payout("sandbox", 70)))
    assert won == {"wallet": 70, "clearing:sandbox": 0, "disputes:sandbox": 0, "bank": -70}


def test_a_payment_of_less_than_it_pays_is_refused():
    with pytest.raises(Corrupt):
        ledger.invoice_paid("g", "sandbox", nano("5"), {"a": nano("3"), "b": nano("2.01")})


def test_a_credit_note_of_a_partly_paid_invoice_frees_and_gives_back():
    entries = ledger.credit_note(
        "g", by_product={"sms": nano("10")}, tax_nano=nano("2"), jurisdiction="X",
        receivables={"a": nano("5"), "b": nano("1")}, unapplied_nano=nano("6"),
    )  # fmt: skip
    assert [entry for entry in entries if entry.ledger == "receivable:g"] == [
        Entry("receivable:g", nano("5"), "a"),
        Entry("receivable:g", nano("1"), "b"),
    ]
    with pytest.raises(Corrupt):
        ledger.credit_note(
            "g", by_product={"sms": nano("10")}, tax_nano=nano("2"), jurisdiction="X", unapplied_nano=nano("11")
        )


names = st.sampled_from(["a", "b", "c"])
positive = st.integers(1, 10**15)
splits = st.dictionaries(names, positive)


@given(splits, st.integers(0, 10**15), splits, splits, st.sets(names))
def test_every_posting_sums_to_zero_and_its_reversal_undoes_it(shares, excess, credits, by_product, expired):
    paid = sum(shares.values())
    charged = sum(by_product.values()) - sum(credits.values())
    for entries in (
        ledger.invoice_paid("g", "sandbox", paid + excess, shares),
        ledger.unapplied_used("g", shares),
        ledger.write_off("g", shares),
        ledger.credit_note("g", by_product={"sms": paid}, tax_nano=excess, jurisdiction="X", receivables=shares, unapplied_nano=excess),
        ledger.credit_granted("summer", excess),
        ledger.credit_expired("summer", excess),
        ledger.charges("a", wallet=charged, unbilled=0, by_product=by_product, credits=credits),
    ):  # fmt: skip
        assert sum(entry.nano for entry in entries) == 0
        assert ledger.reversal(ledger.reversal(entries)) == entries
        back = ledger.amounts(ledger.reversal(entries, expired=expired))
        assert not any(f"credit:{each}" in back for each in expired)
