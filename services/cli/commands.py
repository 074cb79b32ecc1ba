"""Commands to the registry and to wallets, checked by their contracts before anything is sent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import StringConstraints, ValidationError

from contracts import words
from contracts.balance import balance_command
from contracts.groups import TaxRate, groups_command
from contracts.topics import BALANCE_COMMANDS, GROUPS_COMMANDS, Topic
from services.kernel.errors import InvalidInput

TO_WALLETS = frozenset({"open_balance", "grant_goodwill", "save_method", "delete_method", "set_preferences"})


def build(fields: Mapping[str, Any]) -> tuple[Topic, str, Any]:
    """(topic, key, command) of the fields of a command; without an id it gets one of its own.

    `InvalidInput` names the field that is wrong and what it may hold; fields that are None are left out.

    >>> build({"kind": "open_balance", "actor": "me", "account_id": "sales", "amount": "1_000", "currency": "USD"})
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: amount: must be a decimal string such as "10.00" or "-2.50"
    """
    given = {name: value for name, value in fields.items() if value is not None}
    given.setdefault("command_id", str(uuid.uuid4()))
    try:
        if given["kind"] in TO_WALLETS:
            wallet = balance_command.validate_python(given)
            return BALANCE_COMMANDS, wallet.account_id, wallet
        command = groups_command.validate_python(given)
        return GROUPS_COMMANDS, command.organization_id, command
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = [str(part) for part in problem["loc"] if part != given["kind"]]
        raise InvalidInput(_sentence(problem), field=".".join(place) or None) from None


def _pattern(kind: Any) -> str:
    return next(str(each.pattern) for each in get_args(kind) if isinstance(each, StringConstraints))


_MAY_HOLD = {
    _pattern(words.Id): 'must begin with a letter or digit and hold at most 64 letters, digits, "_", "." and "-"',
    _pattern(words.Amount): 'must be a decimal string such as "10.00"',
    _pattern(words.SignedAmount): 'must be a decimal string such as "10.00" or "-2.50"',
    _pattern(words.CurrencyCode): 'must be an ISO 4217 code such as "USD"',
    _pattern(words.Month): 'must be a month such as "2026-10"',
    _pattern(words.E164): 'must be a telephone number such as "+12485252160"',
    _pattern(TaxRate): 'must be a rate from 0 to 1 such as "0.20"',
}


def _sentence(problem: Any) -> str:
    details = problem.get("ctx", {})
    if problem["type"] == "string_pattern_mismatch":
        return _MAY_HOLD.get(details["pattern"], "holds characters that are not allowed here")
    if problem["type"] == "literal_error":
        return f"must be one of {details['expected']}"
    if problem["type"] == "missing":
        return "is missing"
    return str(problem["msg"]).removeprefix("Value error, ")
