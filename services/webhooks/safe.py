"""Secrets of receivers at rest: encrypted by keys of the installation, which the database and its backups do not hold.

The newest key encrypts, each of them decrypts, so that keys can be changed one after the other. Without any, secrets stand as
they are. Encrypted by Fernet (AES-128-CBC and HMAC-SHA256) of the library `cryptography`.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from services.kernel.errors import InvalidInput
from services.runtime.settings import Settings
from services.webhooks.messages import MARK

KEYS = "TOLLBOOK_WEBHOOKS_KEYS"


class Safe:
    """Puts secrets away and takes them out.

    >>> safe = Safe([Fernet.generate_key().decode()])
    >>> kept = safe.put("whsec_AAAA")
    >>> "whsec_" in kept, safe.take(kept), safe.take("whsec_BBBB")
    (False, 'whsec_AAAA', 'whsec_BBBB')
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        try:
            self._keys = MultiFernet([Fernet(key) for key in keys]) if keys else None
        except ValueError:
            raise InvalidInput("holds what is no key; `tollbook webhook key` makes one", field=KEYS) from None

    def put(self, secret: str) -> str:
        """What is kept of a secret."""
        return secret if self._keys is None else self._keys.encrypt(secret.encode()).decode()

    def take(self, kept: str) -> str:
        """The secret; `InvalidInput` when no key of ours decrypts it."""
        if kept.startswith(MARK):
            return kept
        try:
            if self._keys is not None:
                return self._keys.decrypt(kept).decode()
        except InvalidToken:
            pass
        raise InvalidInput(
            "lacks the key by which a secret is encrypted; give the one that it had before as well", field=KEYS
        )


OPEN = Safe()
"""Without keys."""


def safe_of(settings: Settings) -> Safe:
    """By the keys of this installation."""
    text = "" if settings.webhooks_keys is None else settings.webhooks_keys.get_secret_value()
    return Safe([each.strip() for each in text.split(",") if each.strip()])


def new_key() -> str:
    """A key for the settings."""
    return Fernet.generate_key().decode()
