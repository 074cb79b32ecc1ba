"""Commands to the registry, to wallets and to payer groups, checked by their contracts before anything is sent."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from contracts.balance import BalanceCommand, balance_command
from contracts.groups import groups_command
from contracts.receivables import GroupCommand, group_command
from contracts.sentences import first_problem
from contracts.topics import BALANCE_COMMANDS, BALANCE_GROUP_COMMANDS, GROUPS_COMMANDS, Topic
from services.kernel.currency import currency
from services.kernel.errors import InvalidInput

TO_WALLETS = frozenset(each.model_fields["kind"].default for each in get_args(get_args(BalanceCommand)[0]))

TO_PAYERS = frozenset(each.model_fields["kind"].default for each in get_args(get_args(GroupCommand)[0]))


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
        if "currency" in given:
            currency(given["currency"])
        if given["kind"] in TO_WALLETS:
            wallet = balance_command.validate_python(given)
            return BALANCE_COMMANDS, wallet.account_id, wallet
        if given["kind"] in TO_PAYERS:
            payer = group_command.validate_python(given)
            return BALANCE_GROUP_COMMANDS, payer.group_id, payer
        command = groups_command.validate_python(given)
        return GROUPS_COMMANDS, command.organization_id, command
    except ValidationError as error:
        problem = first_problem(error, {given["kind"]})
        raise InvalidInput(problem.sentence, field=problem.field) from None
