"""The passwords of one data folder: made at random on the first start, readable by the user who started it."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

_FILE = "passwords.json"
_BYTES = 24  # 192 bits: not to be guessed; no character of them needs quoting in SQL or in a URL


@dataclass(frozen=True)
class Secrets:
    """The passwords of the PostgreSQL logins; none of them appears when it is printed."""

    superuser_password: str = field(repr=False)
    owner_password: str = field(repr=False)
    room_password: str = field(repr=False)


def of(data: Path) -> Secrets:
    """The passwords of a data folder, made on first use and then always the same."""
    path = data / _FILE
    if not path.exists():
        made = Secrets(*(secrets.token_urlsafe(_BYTES) for _ in range(3)))
        new = path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(made), file)
        new.rename(path)
    return Secrets(**json.loads(path.read_text()))
