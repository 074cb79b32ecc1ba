"""What an invoice amounts to: examples of the demo's cast, and identities that hold for any invoice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.invoices.rounding import LineKey, LineSum, bill, share_total, tax_of
from services.kernel.money import NANO, format_nano, parse_amount

CENT = NANO // 100
TWENTY_PERCENT = NANO // 5


def line(account_id: str, amount: str, *, prepaid: bool = False, product: str = "voice.outbound") -> LineSum:
    key = LineKey(account_id, product, "", "2026-10", prepaid, "USD")
    return LineSum(key, 1, 60, parse_amount(amount, signed=True), 14_000_000, 14_000_000)


def test_northwind_is_due_072_with_a_rounding_line_and_tax():
    northwind = bill(
        [line("east", "0.3630"), line("west", "0.1244"), line("offshore", "0.1080")],
        rate_nano=TWENTY_PERCENT,
        exponent=2,
    )
    assert [format_nano(each.amount_nano) for each in northwind.lines] == ["0.36", "0.11", "0.12"]  # by account
    assert format_nano(northwind.rounding_nano) == "0.01"
    assert format_nano(northwind.net_nano) == "0.6"
    assert format_nano(northwind.tax_nano) == "0.12"
    assert format_nano(northwind.due_nano) == "0.72"
    assert northwind.paid_from_balance_nano == 0
    assert format_nano(northwind.rounding_entry_nano) == "0.0046"
    assert {each.account_id: format_nano(each.unbilled_entry_nano) for each in northwind.shares} == {
        "east": "0.363",
        "west": "0.1244",
        "offshore": "0.108",
    }
    assert sum(each.receivable_entry_nano for each in northwind.shares) == -72 * CENT


@pytest.mark.parametrize(
    ("exact", "total", "wallet_entry"),
    [
        (["0.028"], "0.03", "-0.002"),  # frontdesk
        (["0.014"], "0.01", "0.004"),  # kiosk
        (["0.994"], "0.99", "0.004"),  # sales
        (["0.322"], "0.32", "0.002"),  # main
    ],
)
def test_prepaid_accounts_pay_the_rounding_from_their_wallet(exact, total, wallet_entry):
    made = bill([line("a", each, prepaid=True) for each in exact], rate_nano=0, exponent=2)
    assert format_nano(made.total_nano) == total
    assert made.due_nano == 0
    assert made.paid_from_balance_nano == made.total_nano
    assert format_nano(made.shares[0].wallet_entry_nano) == wallet_entry


def test_support_has_two_lines_and_closes_with_minus_0004241667():
    support = bill(
        [line("support", "0.565958333", prepaid=True, product="voice.inbound"),
         line("support", "0.3498", prepaid=True, product="voice.toll_free")],
        rate_nano=0,
        exponent=2,
    )  # fmt: skip
    assert [format_nano(each.amount_nano) for each in support.lines] == ["0.57", "0.35"]
    assert format_nano(support.total_nano) == "0.92"
    assert format_nano(support.shares[0].wallet_entry_nano) == "-0.004241667"


def test_a_prepaid_close_takes_rounding_and_tax_from_the_wallet():
    made = bill([line("a", "12.345678901", prepaid=True)], rate_nano=TWENTY_PERCENT, exponent=2)
    assert format_nano(made.total_nano) == "14.82"
    assert format_nano(made.tax_nano) == "2.47"
    assert format_nano(made.rounding_entry_nano) == "0.004321099"
    assert format_nano(made.shares[0].wallet_entry_nano) == "-2.474321099"


def test_a_postpaid_close_moves_unbilled_to_receivable():
    made = bill([line("a", "80.004")], rate_nano=TWENTY_PERCENT, exponent=2)
    share = made.shares[0]
    assert format_nano(share.unbilled_entry_nano) == "80.004"
    assert format_nano(share.receivable_entry_nano) == "-96"
    assert format_nano(made.rounding_entry_nano) == "-0.004"
    assert format_nano(made.tax_nano) == "16"


def test_a_group_with_prepaid_and_postpaid_use_owes_only_the_postpaid_part():
    made = bill([line("a", "10", prepaid=True), line("a", "20"), line("b", "5")], rate_nano=TWENTY_PERCENT, exponent=2)
    assert format_nano(made.total_nano) == "42"
    assert format_nano(made.paid_from_balance_nano) == "12"
    assert format_nano(made.due_nano) == "30"


def test_half_a_cent_goes_to_the_even_cent_on_lines_and_tax():
    assert [each.amount_nano // CENT for each in bill([line("a", "0.005"), line("b", "0.015")], rate_nano=0, exponent=2).lines] == [0, 2]  # fmt: skip
    assert tax_of(25 * CENT, TWENTY_PERCENT // 2, 2) == 2 * CENT  # 0.025
    assert tax_of(35 * CENT, TWENTY_PERCENT // 2, 2) == 4 * CENT  # 0.035


def test_zero_priced_use_is_an_invoice_of_zero():
    made = bill([line("a", "0")], rate_nano=TWENTY_PERCENT, exponent=2)
    assert (len(made.lines), made.total_nano, made.due_nano) == (1, 0, 0)


sums = st.lists(
    st.builds(
        LineSum,
        st.builds(
            LineKey,
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["voice.outbound", "voice.inbound"]),
            st.sampled_from(["", "sales"]),
            st.sampled_from(["2026-09", "2026-10"]),
            st.booleans(),
            st.just("USD"),
        ),
        st.integers(1, 10),
        st.integers(-600, 600),
        st.integers(-(10**13), 10**13),
        st.integers(0, NANO),
        st.integers(0, NANO),
    ),
    max_size=12,
)
rates = st.integers(0, 10**6).map(lambda millionths: millionths * 1000)


@given(sums, rates, st.sampled_from([0, 2, 3]))
def test_the_identities_of_any_invoice(lines, rate_nano, exponent):
    made = bill(lines, rate_nano=rate_nano, exponent=exponent)
    minor = 10 ** (9 - exponent)
    assert made.total_nano == sum(each.amount_nano for each in made.lines) + made.rounding_nano + made.tax_nano
    assert made.total_nano == made.paid_from_balance_nano + made.due_nano
    whole = [made.rounding_nano, made.tax_nano, *(each.amount_nano for each in made.lines)]
    whole += [pays for each in made.shares for pays in (each.paid_from_balance_nano, each.due_nano)]
    assert all(nano % minor == 0 for nano in whole)
    assert abs(made.net_nano - made.exact_nano) * 2 <= minor
    assert abs(made.tax_nano * NANO - made.net_nano * rate_nano) * 2 <= minor * NANO
    entries = [
        nano
        for each in made.shares
        for nano in (each.wallet_entry_nano, each.unbilled_entry_nano, each.receivable_entry_nano)
    ]
    assert sum(entries) + made.rounding_entry_nano + made.tax_nano == 0


@given(sums, rates, st.randoms())
def test_the_order_of_the_lines_changes_nothing(lines, rate_nano, random):
    lines = list({each.key: each for each in lines}.values())
    shuffled = random.sample(lines, len(lines))
    assert bill(lines, rate_nano=rate_nano, exponent=2) == bill(shuffled, rate_nano=rate_nano, exponent=2)


@pytest.mark.parametrize(
    ("used", "pays"),
    [
        (["0.025", "0"], [2, 0]),  # 0.03 with tax, of which the invoice takes 0.02 and no tax
        (["0", "0.025"], [0, 2]),
        (["0.1", "0.025"], [11, 3]),  # 0.14 of 0.15: of equal remainders it is the largest share that pays less
        (["0.025", "0.1", "0"], [3, 11, 0]),
    ],
)
def test_what_all_pay_too_much_is_taken_from_those_who_pay(used, pays):
    for prepaid in (False, True):
        made = bill(
            [line(f"a{place}", each, prepaid=prepaid) for place, each in enumerate(used)],
            rate_nano=TWENTY_PERCENT,
            exponent=2,
        )
        shares = [each.paid_from_balance_nano if prepaid else each.due_nano for each in made.shares]
        assert shares == [each * CENT for each in pays]


weights_of_any_sign = st.lists(st.integers(-(10**9), 10**9) | st.just(0), min_size=1, max_size=9)


@given(st.integers(-5, 5), weights_of_any_sign, rates)
def test_shares_sum_to_the_total_exactly_whatever_the_weights(more, weights, rate_nano):
    total_cents = sum(weights) * (NANO + rate_nano) // NANO // CENT + more
    shares = share_total(total_cents * CENT, weights, rate_nano, 2)
    assert sum(shares) == total_cents * CENT
    assert len(shares) == len(weights)
    if any(weights):
        assert all(weight or not share for weight, share in zip(weights, shares, strict=True))


@given(sums, rates)
def test_no_account_pays_for_what_was_given_back_to_it_or_gets_back_what_it_used(lines, rate_nano):
    made = bill(lines, rate_nano=rate_nano, exponent=2)
    for share in made.shares:
        assert share.prepaid_nano * share.paid_from_balance_nano >= 0
        assert share.postpaid_nano * share.due_nano >= 0


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=9), rates)
def test_a_share_is_within_two_minor_units_of_what_the_account_used_with_tax(weights, rate_nano):
    made = bill(
        [line(f"a{number}", format_nano(nano)) for number, nano in enumerate(weights)], rate_nano=rate_nano, exponent=2
    )
    for share in made.shares:
        used = share.postpaid_nano * (NANO + rate_nano) // NANO
        assert abs(share.due_nano - used) <= 2 * CENT
