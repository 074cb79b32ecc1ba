"""What each event of billing posts: the worked lines of the ledger design."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import ledger
from services.balance.ledger import ClosingAmounts, Entry
from services.kernel.errors import Corrupt, InvalidInput
from services.kernel.money import WALLET_NANO_MAX, parse_amount


def nano(text):
    return parse_amount(text, signed=True)


def posted(entries):
    return {entry.ledger: entry.nano for entry in entries}


def test_opening_goodwill_and_payment():
    assert posted(ledger.opening("a", nano("10.50"))) == {"wallet": nano("10.5"), "opening": nano("-10.5")}
    assert posted(ledger.opening("a", nano("-3"))) == {"wallet": nano("-3"), "opening": nano("3")}
    assert posted(ledger.goodwill("a", nano("5"))) == {"wallet": nano("5"), "promotion": nano("-5")}
    assert posted(ledger.payment("a", "sandbox", nano("100"))) == {
        "wallet": nano("100"),
        "clearing:sandbox": nano("-100"),
    }


def test_prepaid_and_postpaid_charges():
    prepaid = ledger.charges("a", wallet=nano("5"), unbilled=0, by_product={"voice.outbound": nano("5")})
    assert posted(prepaid) == {"wallet": nano("-5"), "revenue:voice.outbound": nano("5")}
    postpaid = ledger.charges("a", wallet=0, unbilled=nano("5"), by_product={"voice.outbound": nano("5")})
    assert posted(postpaid) == {"unbilled": nano("-5"), "revenue:voice.outbound": nano("5")}


def test_close_postpaid_with_consolidation_rounding_and_tax():
    accounts = [
        ClosingAmounts("east", 0, nano("0.363"), nano("-0.44")),
        ClosingAmounts("west", 0, nano("0.1244"), nano("-0.15")),
        ClosingAmounts("offshore", 0, nano("0.108"), nano("-0.13")),
    ]
    entries = ledger.closing("northwind", accounts, rounding=nano("0.0046"), tax_nano=nano("0.12"), jurisdiction="X")
    assert sum(entry.nano for entry in entries) == 0
    assert sum(entry.nano for entry in entries if entry.ledger == "receivable") == nano("-0.72")


def test_close_prepaid():
    entries = ledger.closing(
        "g",
        [ClosingAmounts("a", nano("-2.474321099"), 0, 0)],
        rounding=nano("0.004321099"),
        tax_nano=nano("2.47"),
        jurisdiction="X",
    )
    assert posted(entries) == {"wallet": nano("-2.474321099"), "rounding": nano("0.004321099"), "tax:X": nano("2.47")}


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
