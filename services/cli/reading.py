"""Reading a room: through its `api.py`, with that room's own role and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kernel.errors import InvalidInput, NotFound, Unavailable
from services.runtime.database import is_data_error, open_engine, sqlstate
from services.runtime.settings import Settings, load

POOL_SIZE = 2  # a command asks one thing after the other


def identifier(text: str, what: str, shown_by: str, *, field: str) -> UUID:
    """An id as it is typed; ``shown_by`` is the command that shows those there are.

    >>> identifier("1", "a charge", "charge list ACCOUNT", field="CHARGE")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: CHARGE: must be the id of a charge; `tollbook charge list ACCOUNT` shows them
    """
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(f"must be the id of {what}; `tollbook {shown_by}` shows them", field=field) from None


@asynccontextmanager
async def room(name: str, settings: Settings | None = None) -> AsyncIterator[AsyncEngine]:
    """An engine with the role of this room. A server that does not answer is `Unavailable`, a value that it cannot keep
    `InvalidInput`, in a sentence."""
    engine = open_engine(
        (settings or load()).room_database_url(name),
        application="tollbook.cli",
        pool_size=POOL_SIZE,
        idle_ms_max=0,  # a person may read in a pager what is still being read from the database
    )
    try:
        yield engine
    except BrokenPipeError:
        raise  # who read our output has gone; the server answered
    except (OperationalError, InterfaceError, OSError) as error:
        raise Unavailable(
            f"PostgreSQL does not answer ({type(error.__cause__ or error).__name__}); start it by `tollbook up`, or check "
            "TOLLBOOK_POSTGRES",
            field="postgres",
        ) from error
    except DBAPIError as error:
        if is_data_error(error):
            raise InvalidInput(
                "a value of the command cannot be kept by PostgreSQL; give texts in UTF-8, and numbers that are not as large"
            ) from error
        if sqlstate(error) not in ("3D000", "42P01", "3F000"):
            raise
        raise NotFound(
            "the database is empty or older than this program; `tollbook up` brings it to the newest revision",
            field="postgres",
        ) from error
    finally:
        await engine.dispose()
