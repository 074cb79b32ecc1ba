"""Brings a database to the newest revision: makes it when it is missing, and the rooms' roles with it.

`python -m services.runtime.migrate` does it for the database of the settings.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from services.kernel.errors import InvalidInput, NotPermitted, Refused, TollbookError, Unavailable
from services.runtime import settings

MIGRATIONS = Path(__file__).resolve().parents[2] / "deploy" / "migrations"
_MAINTENANCE = "postgres"  # the database that every cluster has
_LOCK = 7_364_951_027  # any number, the same for every migrator: one at a time in a cluster


async def upgrade(owner_url: str, *, room_password: str, movable: bool = False) -> None:
    """Makes the database and the roles that are missing, then applies every revision that is not applied yet.

    All revisions are one transaction: they all hold or none does. Roles belong to the whole cluster; their password is
    set to `room_password` on every call. `movable` makes a new database one whose clock can be moved (tests, demo);
    that is decided once, when the database is made: asking for it later is `Refused`.

    Safe to be called by several programs at once, and again at every start.
    """
    url = make_url(owner_url)
    if not MIGRATIONS.exists():
        raise InvalidInput(f"{MIGRATIONS} is missing: run from a whole checkout of the project", field="migrations")
    try:
        async with _connected(url.set(database=_MAINTENANCE)) as maintenance:
            # Roles and databases have no lock of their own: two migrators would meet in the catalogue.
            await maintenance.execute("SELECT pg_advisory_lock($1)", _LOCK)
            for room in settings.ROOMS:
                await _ensure_role(maintenance, settings.room_role(room), room_password)
            await _ensure_database(maintenance, str(url.database))
            await close_to_others(maintenance, str(url.database))
            await _apply(url, movable)
    except (asyncpg.InsufficientPrivilegeError, ProgrammingError) as error:
        if "InsufficientPrivilege" not in repr(error):
            raise
        raise NotPermitted(
            f"the role {url.username} may not do what a migration needs ({error}); a superuser gives it the rights by "
            f"ALTER ROLE {url.username} CREATEDB CREATEROLE and by making it the owner of the database {url.database}",
            field="TOLLBOOK_OWNER_USER",
        ) from error


async def close_to_others(connection: asyncpg.Connection[Any], database: str) -> None:
    """Lets the rooms, and nobody else but the owner, connect to a database.

    These permissions belong to the database, not to what is in it: a copy made from a template needs them anew.
    """
    name = await _quoted(connection, database)
    roles = ", ".join(settings.room_role(room) for room in settings.ROOMS)
    await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    await connection.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {roles}")


async def _ensure_role(connection: asyncpg.Connection[Any], role: str, password: str) -> None:
    found = await connection.fetchrow(
        "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb AS mighty FROM pg_roles WHERE rolname = $1",
        role,
    )
    if found is not None and found["mighty"]:
        raise Refused(
            f"the role {role} exists and may do more than a room may: take SUPERUSER, BYPASSRLS, CREATEROLE and "
            f"CREATEDB from it",
            field=role,
            code="mighty_role",
        )
    # A utility statement takes no parameters: the server itself quotes the password.
    quoted = await connection.fetchval("SELECT quote_literal($1::text)", password)
    if found is None:
        await connection.execute(f"CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD {quoted}")
        return
    try:
        await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD {quoted}")
    except asyncpg.InsufficientPrivilegeError:
        return  # an administrator made the role and keeps its password: then TOLLBOOK_ROOM_PASSWORD has to match


async def _ensure_database(connection: asyncpg.Connection[Any], database: str) -> None:
    if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", database):
        await connection.execute(f"CREATE DATABASE {await _quoted(connection, database)} TEMPLATE template0")


async def _apply(url: URL, movable: bool) -> None:
    engine = create_async_engine(url, poolclass=NullPool, hide_parameters=True)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_revisions, movable)
            if movable and not (await connection.exec_driver_sql("SELECT movable FROM runtime.clock")).scalar_one():
                raise Refused(
                    f"the clock of the database {url.database} cannot be moved; that is decided when a database is "
                    "made: name another database",
                    field="movable",
                    code="not_movable",
                )
    finally:
        await engine.dispose()


def _revisions(connection: Connection, movable: bool) -> None:
    config = Config(str(MIGRATIONS / "alembic.ini"))
    config.attributes["connection"] = connection
    config.attributes["movable"] = movable
    command.upgrade(config, "head")


@asynccontextmanager
async def _connected(url: URL) -> AsyncIterator[asyncpg.Connection[Any]]:
    try:
        connection = await asyncpg.connect(
            host=url.host, port=url.port, user=url.username, password=url.password, database=url.database
        )
    except (OSError, asyncpg.CannotConnectNowError) as error:
        raise Unavailable(
            f"no PostgreSQL answers on {url.host}:{url.port} ({error})", field="TOLLBOOK_POSTGRES"
        ) from error
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise NotPermitted(f"PostgreSQL refuses {url.username}: {error}", field="TOLLBOOK_OWNER_PASSWORD") from error
    try:
        yield connection
    finally:
        await connection.close()


async def _quoted(connection: asyncpg.Connection[Any], name: str) -> str:
    return str(await connection.fetchval("SELECT quote_ident($1)", name))


def main() -> int:
    """Migrates the database of the settings; 1 and a sentence when that is not possible."""
    parser = argparse.ArgumentParser(prog="python -m services.runtime.migrate", description=__doc__)
    parser.add_argument("--movable", action="store_true", help="make a new database one whose clock can be moved")
    asked = parser.parse_args()
    try:
        wanted = settings.load()
        owner = wanted.owner_database_url()
        asyncio.run(upgrade(owner, room_password=wanted.room_password_text(), movable=asked.movable))
    except TollbookError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
