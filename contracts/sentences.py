"""What is wrong with a field, and the fix, in one sentence for the one who wrote it. What was written is never repeated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import StringConstraints, ValidationError

from contracts import balance, cloudevents, groups, payments, usage, words


@dataclass(frozen=True)
class Problem:
    """The first thing that is wrong with a record: pydantic's name for it, the field, the sentence."""

    type: str
    field: str | None
    sentence: str


def first_problem(error: ValidationError, tags: Collection[str] = ()) -> Problem:
    """The first problem of a record. ``tags`` are the kinds of a union: pydantic puts them before the field.

    >>> from contracts.balance import balance_command
    >>> try: balance_command.validate_json('{"kind": "delete_method", "actor": "ann"}')
    ... except ValidationError as error: print(first_problem(error, {"delete_method"}))
    Problem(type='missing', field='command_id', sentence='is missing; add it')
    """
    first = error.errors(include_url=False, include_input=False)[0]
    about = first.get("ctx", {})
    place = [str(part) for part in first["loc"]]
    if place and place[0] in tags:
        del place[0]
    if "discriminator" in about:
        place.append(about["discriminator"].strip("'"))
    return Problem(first["type"], ".".join(place) or None, _sentence(first["type"], about, first["msg"]))


def _sentence(kind: str, about: dict[str, Any], message: str) -> str:
    if kind == "string_pattern_mismatch":
        return _OF_PATTERN.get(about["pattern"], "holds characters that are not allowed here; leave them out")
    if kind == "string_too_short" and about["min_length"] == 1:
        return "must not be empty"
    if kind == "literal_error" and " or " not in about["expected"]:
        return f"must be {about['expected']}"
    if kind in _OF_TYPE:
        return _OF_TYPE[kind].format_map(about)
    return message.removeprefix("Value error, ")  # a rule of ours says it by itself


_INSTANT = 'must be an instant in UTC such as "2026-10-31T23:50:00Z"'
_UUID = 'must be an id such as "2046e3a9-494c-8eae-94fc-f1a3ae1e2b14"'
_OBJECT = "must be a JSON object in braces"
_LIST = "must be a list in brackets"

_OF_TYPE = {
    "missing": "is missing; add it",
    "extra_forbidden": "is no field of this record; leave it out, or mend its spelling",
    "json_invalid": "the record is not JSON in UTF-8: {error}",
    "string_type": "must be a text in quotes",
    "string_too_short": "is too short; write at least {min_length} characters",
    "string_too_long": "is too long; write at most {max_length} characters",
    "int_type": "must be a whole number without quotes, such as 60",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "bool_type": "must be true or false, without quotes",
    "literal_error": "must be one of {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "is missing; add it",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "too_short": "must have at least {min_length} in the list",
    "too_long": "must have at most {max_length} in the list",
    "datetime_type": _INSTANT,
    "datetime_parsing": _INSTANT,
    "datetime_from_date_parsing": _INSTANT,
    "timezone_aware": _INSTANT,
    "uuid_type": _UUID,
    "uuid_parsing": _UUID,
}
"""Pydantic's types of errors that what comes from outside can cause; a test tries them all."""


def _pattern(kind: Any) -> str:
    return next(str(each.pattern) for each in get_args(kind) if isinstance(each, StringConstraints))


_NO_CONTROL = "holds a control character; leave it out"

_OF_PATTERN = {
    words.ID_PATTERN: 'must begin with a letter or digit and hold at most 64 letters, digits, "_", "." and "-"',
    _pattern(words.Name): _NO_CONTROL,
    _pattern(words.Text): "holds the character U+0000; leave it out",
    _pattern(words.Amount): 'must be a decimal string such as "10.00"',
    _pattern(words.SignedAmount): 'must be a decimal string such as "10.00" or "-2.50"',
    _pattern(words.CurrencyCode): 'must be an ISO 4217 code such as "USD"',
    _pattern(words.Month): 'must be a month such as "2026-10"',
    _pattern(words.E164): 'must be a telephone number such as "+12485252160"',
    _pattern(words.InstantText): _INSTANT,
    _pattern(cloudevents.Attribute): _NO_CONTROL,
    _pattern(cloudevents.Timestamp): 'must be an instant of RFC 3339 such as "2026-10-31T23:50:00Z"',
    _pattern(cloudevents.MediaType): 'must be a media type such as "application/json"',
    _pattern(cloudevents.AbsoluteUri): 'must be an absolute URI such as "https://example.org/leg"',
    _pattern(cloudevents.Base64): "must be in Base64",
    _pattern(cloudevents.ExtensionName): "is no name of an extension: use lower-case letters and digits",
    _pattern(
        usage.NumberOrShortCode
    ): 'must be a telephone number such as "+12485252160", or a short code such as "72345"',
    _pattern(usage.Network): 'must be the MCC, or MCC and MNC, of a network such as "310260"',
    _pattern(balance.VoucherCode): 'must be a voucher code such as "7K2QD-9XW4M-0PZ8R-C3VNB"',
    _pattern(payments.Token): 'must hold only letters, digits, "_", ".", ":" and "-"',
    _pattern(payments.ResultId): _NO_CONTROL,
    _pattern(groups.TaxRate): 'must be a rate from 0 to 1 such as "0.20"',
    _pattern(groups.NumberPrefix): 'must hold at most 16 capital letters, digits and "-"',
    _pattern(groups.Email): 'must be an e-mail address such as "billing@example.com"',
}
"""Every pattern of what comes from outside, and what may stand there."""
