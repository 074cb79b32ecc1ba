"""Card numbers are never kept: what looks like one is refused, and never repeated in an error, a log or a parked record.

Source: domain, section 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from services.kernel.errors import InvalidInput

DIGITS_MIN = 13  # ISO/IEC 7812: issuers use 13 to 19 digits
DIGITS_MAX = 19

_GROUP = re.compile(r"\d+")
# Groups of digits with what people write between those of a card number.
# Dashes of every kind, and what nobody sees: zero-width characters of a copied text, the zero bytes of UTF-16.
_RUN = re.compile(r"\d+(?:[\s._\-\u2010-\u2015\u2212\ufe63\uff0d\x00\xad\u200b-\u200f\u2060\ufeff]{1,3}\d+)*")
# One character as it is written: itself, or an escape of JSON, escaped again where that stands in a text within JSON.
_WRITTEN = re.compile(r"\\{1,4}(?:u[0-9a-fA-F]{4}|[tnrf])|.", re.DOTALL)


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


def without_card_numbers(text: str) -> str:
    """The same text with a star for each digit of what looks like a card number; for texts that are kept or logged.

    Escapes of JSON are read as the characters that they stand for.

    >>> without_card_numbers("paid with 4242-4242-4242-4242")
    'paid with ****-****-****-****'
    """
    written = _WRITTEN.findall(text) if "\\" in text else list(text)
    plain = "".join(each if len(each) == 1 else _unescaped(each) for each in written)
    # Numbers may overlap, so the digits are replaced in place, one star each: no position moves.
    for start, end in _spans(plain):
        written[start:end] = ["*" if plain[place].isdecimal() else written[place] for place in range(start, end)]
    return "".join(written)


def redacted(raw: bytes | None) -> bytes | None:
    """`without_card_numbers` for the bytes of a record; whatever is not UTF-8 stays as it is.

    >>> redacted(b'{"token": "4242 4242 4242 4242"}')
    b'{"token": "**** **** **** ****"}'
    """
    if raw is None:
        return None
    return without_card_numbers(raw.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _unescaped(written: str) -> str:
    """The one character of an escape, however often it was escaped."""
    character: str = json.loads('"' + re.sub(r"\\+", r"\\", written) + '"')
    return character


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the digits start and end of everything that looks like a card number: whole neighbouring groups.

    The sums of a run are kept as running totals: a record of a million digits must not hold up its neighbours.
    """
    for run in _RUN.finditer(text):
        groups = [(run.start() + group.start(), run.start() + group.end()) for group in _GROUP.finditer(run[0])]
        # Running Luhn totals, digits of even places doubled in one and of odd places in the other.
        even, odd = [0], [0]
        for place, digit in enumerate(int(each) for start, end in groups for each in text[start:end]):
            doubled = digit * 2 - 9 if digit > 4 else digit * 2
            even.append(even[-1] + (digit if place % 2 else doubled))
            odd.append(odd[-1] + (doubled if place % 2 else digit))
        before = 0  # digits of the run before the first group
        for first, (start, end) in enumerate(groups):
            until = before
            for last_start, last_end in groups[first : first + DIGITS_MAX]:
                until += last_end - last_start
                if until - before > DIGITS_MAX:
                    break
                # From the right every second digit is doubled, the last one is not.
                totals = odd if until % 2 else even
                if until - before >= DIGITS_MIN and (totals[until] - totals[before]) % 10 == 0:
                    yield start, last_end
            before += end - start
