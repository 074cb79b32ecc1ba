"""Reading what comes from outside: strict, bounded, and with a reason that names the field. The input is never repeated."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from contracts.balance import BalanceCommand
from contracts.receivables import GroupCommand
from contracts.sentences import first_problem
from services.kernel.errors import InvalidInput

MESSAGE_BYTES_MAX = 65_536  # a command or a result is a few hundred bytes


def decode(adapter: TypeAdapter[Any], raw: bytes | None) -> Any:
    """The message, or `InvalidInput` with the reason as its code and the field.

    >>> decode(TypeAdapter(dict[str, int]), b'{"a": 1, "a": 2}')
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: a: stands twice in one object; keep one
    """
    if not raw:
        raise InvalidInput("the record is empty; write one JSON object", code="empty")
    if len(raw) > MESSAGE_BYTES_MAX:
        raise InvalidInput(f"the record is larger than {MESSAGE_BYTES_MAX} bytes", code="too_large")
    try:
        message = adapter.validate_json(raw)
    except ValidationError as error:
        problem = first_problem(error, _TAGS)
        if problem.type == "json_invalid":
            raise InvalidInput(problem.sentence, code="not_json") from None
        raise InvalidInput(problem.sentence, field=problem.field) from None
    json.loads(raw, object_pairs_hook=_once)
    return message


# Pydantic names the member of a union in the place of an error; a writer of commands knows no such member.
_TAGS = frozenset(
    each.model_fields["kind"].default
    for union in (BalanceCommand, GroupCommand)
    for each in get_args(get_args(union)[0])
)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise InvalidInput("stands twice in one object; keep one", field=name, code="duplicate_key")
        names[name] = value
    return names
