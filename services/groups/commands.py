"""Commands as they come from outside: decoded, or refused with the field that is wrong."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from contracts.groups import GroupsCommand, groups_command
from contracts.sentences import first_problem
from contracts.topics import BARE_RECORD_BYTES_MAX
from contracts.words import ID_PATTERN
from services.kernel.errors import InvalidInput

TEXT_MAX = 500  # of what stands in a refusal: a field's name may come from outside

_ID = re.compile(ID_PATTERN)


def decode(value: bytes | None) -> GroupsCommand:
    """The command of a record; `InvalidInput` names what is wrong with it.

    >>> decode(b"[1]")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: must be a JSON object
    >>> decode(b'{"kind": "create_organization", "name": "Lakeside"}')
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: command_id: is missing; add it
    """
    if value is None:
        raise InvalidInput("the record has no value", code="tombstone")
    if len(value) > BARE_RECORD_BYTES_MAX:
        raise InvalidInput(f"the record is larger than {BARE_RECORD_BYTES_MAX} bytes", code="too_large")
    try:
        read = json.loads(value.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, _Repeated):
            raise InvalidInput("stands twice in one object", field=_short(error.name), code="invalid_command") from None
        raise InvalidInput(f"not JSON in UTF-8: {_short(str(error))}", code="not_json") from None
    if not isinstance(read, dict):
        raise InvalidInput("must be a JSON object", code="invalid_command")
    try:
        command = groups_command.validate_json(value)
    except ValidationError as error:
        kind = read.get("kind")
        problem = first_problem(error, {kind} if isinstance(kind, str) else ())
        field = _short(problem.field) if problem.field else None
        raise InvalidInput(_short(problem.sentence), field=field, code="invalid_command") from None
    for name, held in read.items():
        if "\x00" in _texts(held):
            raise InvalidInput("must not hold U+0000, which no text can store", field=name, code="invalid_command")
    return command


def readable(value: bytes | None) -> dict[str, str]:
    """What can be read of a record that is refused: its ``command_id``, ``organization_id`` and ``kind``, where they are
    well formed.

    >>> readable(b'{"command_id": "c1", "organization_id": 7}')
    {'command_id': 'c1'}
    """
    if len(value or b"") > BARE_RECORD_BYTES_MAX:
        return {}
    try:
        read: Any = from_json(value or b"")
    except ValueError:
        return {}
    if not isinstance(read, dict):
        return {}
    return {
        name: read[name]
        for name in ("command_id", "organization_id", "kind")
        if isinstance(read.get(name), str) and _ID.fullmatch(read[name])
    }


class _Repeated(ValueError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, value in pairs:
        if name in read:
            raise _Repeated(name)
        read[name] = value
    return read


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _texts(held: Any) -> str:
    """All texts in a value that has the shape of a command, so it is shallow."""
    if isinstance(held, dict):
        return "".join(map(_texts, held.values()))
    if isinstance(held, list):
        return "".join(map(_texts, held))
    return held if isinstance(held, str) else ""


def _short(text: str) -> str:
    """Fit for an answer: no U+0000, no half of a surrogate pair, not long."""
    return text.encode(errors="replace").decode().replace("\x00", "\\u0000")[:TEXT_MAX]
