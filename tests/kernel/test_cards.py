"""What looks like a card number is refused, and the refusal never holds it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.cards import looks_like_card_number, redacted, refuse_card_number, without_card_numbers
from services.kernel.errors import InvalidInput

CARDS = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "378282246310005",
    "6011111111111117",
    "4222222222222",
    "6304000000000000000",
    "4242.4242.4242.4242",
    "4242_4242_4242_4242",
    "4242 - 4242 - 4242 - 4242",
    "4242\u20134242\u20134242\u20134242",
    "4242\u22124242\u22124242\u22124242",  # minus signs
    "4242\u200b4242\u200b4242\u200b4242",  # zero-width spaces
    "4242\u00ad4242\u00ad4242\u00ad4242",  # soft hyphens
    "\0".join("4242424242424242"),  # UTF-16 as bytes
    "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
    "tok_4242424242424242",
    "12 4242 4242 4242 4242 28",
    "".join(chr(0xFF10 + int(digit)) for digit in "4242424242424242"),  # full-width digits
]


@pytest.mark.parametrize("card", CARDS)
def test_card_numbers_are_found_refused_and_removed(card):
    text = f'{{"token": "{card}"}}'
    assert looks_like_card_number(text)
    with pytest.raises(InvalidInput) as caught:
        refuse_card_number(text, field="token")
    assert card not in str(caught.value)
    assert card not in redacted(text.encode()).decode()


@pytest.mark.parametrize(
    "text", ["tok_ok", "pm_1ABC", "+12485252160", "1543540817.1", "4111111111111112", "2026-11-21T08:00:00.123456Z", ""]
)
def test_what_is_no_card_number(text):
    assert not looks_like_card_number(text)
    assert redacted(text.encode()).decode() == text


@given(st.text("0123456789 -._x", max_size=60))
def test_what_is_left_never_looks_like_a_card_number(text):
    assert not looks_like_card_number(redacted(text.encode()).decode())


@given(st.from_regex(r"[0-9]{12,18}", fullmatch=True))
def test_exactly_one_of_the_ten_check_digits_makes_a_card_number(digits):
    assert sum(looks_like_card_number(digits + check) for check in "0123456789") == 1


@given(st.text(max_size=200))
def test_text_without_a_card_number_is_kept_as_it_is(text):
    if without_card_numbers(text) != text:
        assert "*" in without_card_numbers(text)
        assert len(without_card_numbers(text)) <= len(text)


@pytest.mark.parametrize("separator", ["", "\u00a0", "\u2011", "\u2212", "\u200b", "\0", "\t", "\n", "\r\n", "\u2003 "])
@pytest.mark.parametrize("zero", ["0", "\uff10", "\u0660"])  # of our digits, of full-width ones, of Arabic ones
def test_a_card_number_is_removed_however_json_escapes_it(separator, zero):
    card = separator.join(["".join(chr(ord(zero) + int(digit)) for digit in "4242")] * 4)
    starred = separator.join(["****"] * 4)
    inner, kept = json.dumps({"token": card}), {"token": starred}
    assert json.loads(redacted(inner.encode())) == kept
    assert json.loads(json.loads(redacted(json.dumps({"body": inner}).encode()))["body"]) == kept


def test_digits_that_json_escapes_are_removed_too():
    raw = b'{"token": "' + b"".join(b"\\u003%d" % int(digit) for digit in "4242424242424242") + b'"}'
    assert redacted(raw) == b'{"token": "****************"}'


@pytest.mark.timeout(10)
def test_a_record_of_backslashes_holds_nobody_up():
    raw = b"\\" * 1_000_000
    assert redacted(raw) == raw


def test_bytes_that_are_not_utf8_stay_as_they_are():
    assert redacted(b"\xff 4242424242424242 \xc3") == b"\xff **************** \xc3"
    assert redacted(None) is None
