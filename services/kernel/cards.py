"""Card numbers are never kept: what looks like one is refused, and never repeated in an error, a log or a parked record.

Source: domain, section 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.kernel.errors import InvalidInput

DIGITS_MIN = 13  # ISO/IEC 7812: issuers use 13 to 19 digits
DIGITS_MAX = 19

_GROUP = re.compile(r"\d+")
_SEPARATORS = re.compile(r"[\s._\-\u2010-\u2015]{1,3}")  # what people write between the groups of a card number
_ESCAPED_DIGIT = re.compile(r"\\u003([0-9])")  # a digit as JSON may also write it


def looks_like_card_number(text: str) -> bool:
    """Whether a text holds 13 to 19 digits with a right check digit (Luhn), in one piece or in groups.

    Groups may be separated by spaces, dots, dashes or underscores; anything may stand before and after.

    >>> looks_like_card_number("tok_4242-4242-4242-4242"), looks_like_card_number("4242424242424241")
    (True, False)
    """
    return next(_spans(text), None) is not None


def refuse_card_number(text: str, *, field: str) -> None:
    """Raises `InvalidInput` naming the field, never the number, when the text looks like a card number.

    >>> refuse_card_number("4242 4242 4242 4242", field="token")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: token: looks like a card number, which is never kept; give the token that your payment processor made of it
    """
    if looks_like_card_number(text):
        raise InvalidInput(
            "looks like a card number, which is never kept; give the token that your payment processor made of it",
            field=field,
            code="card_number",
        )


def redacted(raw: bytes | None) -> bytes | None:
    """The same bytes with a star for each digit of what looks like a card number; for records that are kept.

    >>> redacted(b'{"token": "4242 4242 4242 4242"}')
    b'{"token": "**** **** **** ****"}'
    """
    if raw is None:
        return None
    text = _ESCAPED_DIGIT.sub(r"\1", raw.decode("utf-8", "surrogateescape"))
    spans = list(_spans(text))
    if not spans:
        return raw
    # Numbers may overlap, so the digits are replaced in place, one star each: no position moves.
    characters = list(text)
    for start, end in spans:
        characters[start:end] = ["*" if each.isdecimal() else each for each in text[start:end]]
    return "".join(characters).encode("utf-8", "surrogateescape")


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the digits start and end of everything that looks like a card number: whole neighbouring groups."""
    groups = [match.span() for match in _GROUP.finditer(text)]
    for first in range(len(groups)):
        digits = ""
        for index in range(first, min(first + DIGITS_MAX, len(groups))):
            start, end = groups[index]
            if index > first and not _SEPARATORS.fullmatch(text, groups[index - 1][1], start):
                break
            if len(digits) + end - start > DIGITS_MAX:
                break
            digits += text[start:end]
            if len(digits) >= DIGITS_MIN and _has_right_check_digit(digits):
                yield groups[first][0], end


def _has_right_check_digit(digits: str) -> bool:
    """The Luhn sum: from the right every second digit is doubled, and the digits of all add up to a multiple of ten."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += sum(divmod(int(digit) * (1 + place % 2), 10))
    return total % 10 == 0
