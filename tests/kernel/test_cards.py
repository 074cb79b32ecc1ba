"""What looks like a card number is refused, and the refusal never holds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kernel.cards import looks_like_card_number, redacted, refuse_card_number
from services.kernel.errors import InvalidInput

CARDS = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "378282246310005",
    "6011111111111117",
    "4222222222222",
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
