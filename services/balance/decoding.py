"""Reading what comes from outside: strict, bounded, and with a reason that names the field. The input is never repeated."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise InvalidInput("the record is not JSON in UTF-8", code="not_json") from None
        field = ".".join(str(part) for part in first["loc"] if part not in _TAGS) or None
        if first["type"].startswith("union_tag"):
            raise InvalidInput(f"must be one of {', '.join(sorted(_TAGS))}", field="kind") from None
        raise InvalidInput(first["msg"], field=field) from None
    json.loads(raw, object_pairs_hook=_once)
    return message


# Pydantic names the member of a union in the place of an error; a writer of commands knows no such member.
_TAGS = frozenset({"open_balance", "grant_goodwill", "save_method", "delete_method", "set_preferences"})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in pairs:
        if name in names:
            raise InvalidInput("stands twice in one object; keep one", field=name, code="duplicate_key")
        names[name] = value
    return names
