"""Recognising what looks like a card number, so that it is refused, never kept and never logged.

Source: domain, section 4 (a processor token only, never a card number).
"""

from __future__ import annotations

import re

from services.kernel.errors import InvalidInput

_DIGITS = re.compile(r"(?<![0-9])(?:[0-9][ .\-]?){12,18}[0-9](?![0-9])", re.ASCII)


def looks_like_card_number(text: str) -> bool:
    """Whether 13 to 19 digits, perhaps with single separators, stand in the text and pass the Luhn check.

    >>> looks_like_card_number("4111 1111 1111 1111"), looks_like_card_number("tok_ok"), looks_like_card_number("4111111111111112")
    (True, False, False)
    """
    return any(_luhn(re.sub(r"[^0-9]", "", match[0])) for match in _DIGITS.finditer(text))


def refuse_card_number(text: str, *, field: str) -> None:
    """Raise `InvalidInput` for what looks like a card number; the message never holds it."""
    if looks_like_card_number(text):
        raise InvalidInput(
            "looks like a card number; give the processor's token instead", field=field, code="card_number"
        )


def without_card_numbers(text: str) -> str:
    """The text with everything that looks like a card number blotted out.

    >>> without_card_numbers('{"token": "4111-1111-1111-1111"}')
    '{"token": "[card number removed]"}'
    """
    return _DIGITS.sub(
        lambda match: "[card number removed]" if _luhn(re.sub(r"[^0-9]", "", match[0])) else match[0], text
    )


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        if place % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0
