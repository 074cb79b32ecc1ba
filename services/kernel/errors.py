"""The family of errors that a user, an operator or a publisher can meet.

Each has a stable code for programs, a sentence for people that names the field and the fix, and says whether the same
input can succeed later without being changed.
"""

from __future__ import annotations


class TollbookError(Exception):
    """An error with a stable code, the field it is about, and a sentence that says how to mend it."""

    code: str = "error"
    retry_can_help: bool = False

    def __init__(
        self, message: str, *, field: str | None = None, code: str | None = None, retry_can_help: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code
        if retry_can_help is not None:  # otherwise than mostly for its kind
            self.retry_can_help = retry_can_help

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidInput(TollbookError):
    """The input is wrong in itself: it must be changed."""

    code = "invalid"


class AmountError(InvalidInput):
    """Not an amount: amounts are decimal strings of ASCII digits with at most nine decimals."""

    code = "invalid_amount"


class NotPermitted(TollbookError):
    """The caller may not do this."""

    code = "not_permitted"


class NotFound(TollbookError):
    """What the input names does not exist (yet)."""

    code = "not_found"
    retry_can_help = True


class Refused(TollbookError):
    """Well formed, but a rule forbids it in the present state; the message names the rule."""

    code = "refused"
    retry_can_help = True


class Corrupt(TollbookError):
    """An invariant does not hold. Never the user's fault: the process stops and a person looks."""

    code = "corrupt"


class Unavailable(TollbookError):
    """A server is not reachable; the same call succeeds when it is back."""

    code = "unavailable"
    retry_can_help = True
