"""One engine per process, one transaction per unit of work. Only this module commits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import ARRAY, Table, TableValuedAlias, bindparam, column, event, func, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import TypeEngine

from services.kernel.errors import Unavailable

POOL_SIZE = 8  # batches, timers, ticks, relay and heartbeat of one process, with room to spare

RETRYABLE_CLASSES = frozenset(
    {"08", "40", "53", "55", "57", "58"}
)  # connection, rollback, resources, locks, operator, system
IDLE_STATE = "25P03"  # the server ended a transaction in which nothing was asked for too long
LOCK_NOT_AVAILABLE = "55P03"  # somebody holds it for longer than this transaction waits
STATEMENT_CLASS = "42"  # no such table or column, no right to it: the statement's fault, whatever the record
DATA_CLASSES = frozenset({"22", "23"})  # data exception, constraint violation: the record's fault

# Of a process whose host vanished, or that is frozen, the server lets go within half a minute or a minute: it would keep the
# locks of its lanes, its wallets and the relay for hours, and everybody waiting. In seconds, the last in milliseconds.
_VANISHED = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
IDLE_MS_MAX = 60_000  # the longest of ours that waits inside a transaction, the cut, lets go after ten seconds


def open_engine(
    url: str,
    *,
    application: str,
    pool_size: int = POOL_SIZE,
    lock_timeout_ms: int | None = None,
    idle_ms_max: int = IDLE_MS_MAX,
    warmed: Sequence[Plain] = (),
) -> AsyncEngine:
    """The engine of a room. Parameters never reach a log: they may hold personal data.

    ``lock_timeout_ms``: a statement gives up that waits for a lock this long; without it, it waits. ``idle_ms_max``: a
    transaction in which nothing is asked for this long is ended by the server, as if the connection were cut; 0: never.
    ``warmed``: statements that each new connection runs with nothing at first, see `Plain.of_nothing`.
    """
    own = {"application_name": application, "jit": "off", "timezone": "UTC", **_VANISHED}
    own["idle_in_transaction_session_timeout"] = str(idle_ms_max)
    if lock_timeout_ms is not None:
        own["lock_timeout"] = str(lock_timeout_ms)
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=4,
        pool_use_lifo=True,  # the connection that was used last has its statements prepared and its plans made
        pool_pre_ping=False,
        hide_parameters=True,
        # The driver would forget a statement after five minutes, and prepare it anew under whatever is locked then.
        connect_args={"server_settings": own, "max_cached_statement_lifetime": 0},
    )
    if warmed:
        event.listen(engine.sync_engine, "connect", partial(_warm, warmed))
    return engine


def _warm(warmed: Sequence[Plain], connection: Any, _record: Any) -> None:
    async def run(driver: Any) -> None:
        for statement in warmed:
            await driver.fetch(statement.text, *statement.of_nothing)

    with suppress(asyncpg.PostgresError):  # tables that are not there yet are said by whoever needs them
        connection.run_async(run)


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A READ COMMITTED transaction: commits at the end of the block, rolls back on any error."""
    async with engine.begin() as connection:
        yield connection


class OnlyLooked(Exception):
    """Ends a transaction that was to show what it would do: all of it is taken back."""


def _causes(error: BaseException) -> tuple[BaseException | None, ...]:
    """The driver's own errors behind one of SQLAlchemy's; a COPY raises them as they are."""
    if isinstance(error, DBAPIError):
        return (error.orig, error.orig.__cause__ if error.orig is not None else None)
    return (error,)


def sqlstate(error: BaseException) -> str | None:
    """The five-letter code of a database error, or None."""
    for cause in _causes(error):
        code = getattr(cause, "sqlstate", None)
        if code:
            return str(code)
    return None


def _cannot_be_sent(error: BaseException) -> bool:
    """The driver cannot encode a value for its column: the same as if the server had refused it."""
    return any(isinstance(cause, asyncpg.DataError) for cause in _causes(error))


def _is_confused(error: BaseException) -> bool:
    """The connection was cut, and the driver has not understood the news yet."""
    return any(isinstance(cause, asyncpg.InternalClientError) for cause in _causes(error))


def is_data_error(error: BaseException) -> bool:
    """The database refuses the data itself: retrying cannot help, leaving the record out can."""
    code = sqlstate(error)
    return _cannot_be_sent(error) or (code is not None and code[:2] in DATA_CLASSES)


def is_of_statement(error: BaseException) -> bool:
    """The database cannot run the statement at all, for no record: it was not migrated, or a right is missing."""
    code = sqlstate(error)
    return code is not None and code[:2] == STATEMENT_CLASS and not _cannot_be_sent(error)


def is_retryable(error: BaseException) -> bool:
    """The same transaction can succeed later: server away, deadlock, lock or resource limits."""
    if _cannot_be_sent(error):
        return False  # the driver counts it among the errors of its interface
    if _is_confused(error):
        return True
    code = sqlstate(error)
    if code is not None:
        return code[:2] in RETRYABLE_CLASSES or code == IDLE_STATE
    if isinstance(error, OperationalError | InterfaceError):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, OSError | TimeoutError | NoConnection | asyncpg.InterfaceError | Unavailable)


def unnest(name: str, /, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """A FROM clause over arrays, one bound parameter a column, called ``<name>_<column>``.

    One statement then handles any number of rows, and its text is cached by the driver.
    """
    return (
        func.unnest(*[bindparam(f"{name}_{key}", type_=ARRAY(kind)) for key, kind in columns.items()])
        .table_valued(*[column(key, kind) for key, kind in columns.items()], name=name)
        .render_derived(name=name)
    )


_DIALECT = postgresql.asyncpg.dialect()  # type: ignore[no-untyped-call]


class Plain:
    """A statement that the driver runs as it is: what SQLAlchemy does around each execution costs more than a small one.

    Runs inside the transaction of a connection on which SQLAlchemy has run a statement already, or alone on a `Kept` one.
    Takes and gives the driver's own values; errors are the driver's, which `is_retryable` and its neighbours know.
    """

    def __init__(self, statement: Executable) -> None:
        compiled: Any = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
        self.text = str(compiled)
        self._names: list[str] = compiled.positiontup
        self._constants: dict[str, Any] = {name: each for name, each in compiled.params.items() if each is not None}
        self._lists = {name for name, bound in compiled.binds.items() if isinstance(bound.type, ARRAY)}

    async def tuples(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows, in the order of their columns."""
        async with _watched(connection) as driver:
            rows: Sequence[Sequence[Any]] = await driver.fetch(self.text, *self.values(parameters))
            return rows

    async def rows(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows, by the names of their columns."""
        return [dict(row) for row in await self.tuples(connection, parameters)]

    async def touched(self, connection: AsyncConnection, parameters: Mapping[str, Any]) -> int:
        """How many rows it changed."""
        async with _watched(connection) as driver:
            status: str = await driver.execute(self.text, *self.values(parameters))
        return int(status.rpartition(" ")[2])

    @property
    def of_nothing(self) -> list[Any]:
        """Values with which a statement over arrays finds and changes nothing. The first run of a statement on a connection reads
        the server's catalogs and takes some milliseconds: under locks, others would wait for that."""
        return [self._constants.get(name, [] if name in self._lists else None) for name in self._names]

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """What it is run with, in order of their places."""
        return [parameters[name] if name in parameters else self._constants[name] for name in self._names]


# One plan for all values, made once: of a small statement planning is more than half of the work. Such a plan knows nothing
# of the values, and is kept while its tables grow from nothing, so it must not be one that reads a table as a whole.
_PLANNED_ONCE = text(
    "select set_config(name, value, false) from (values ('plan_cache_mode', 'force_generic_plan'), ('enable_seqscan', 'off'),"
    " ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off')) as planned (name, value)"
)


class Kept:
    """One connection, opened when it is first used and kept: for small statements that come all the time, one after the other.

    Each of them is a transaction of its own. Nothing is asked of the server around them, and they find their rows by indexes.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: Any = None

    async def rows(self, statement: Plain, parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The rows, by the names of their columns. A connection on which anything fails but the statement is not used again."""
        if self._driver is None or self._driver.is_closed():
            await self._open()
        try:
            found: Sequence[Mapping[str, Any]] = await self._driver.fetch(statement.text, *statement.values(parameters))
        except asyncpg.PostgresError:
            raise
        except BaseException:
            await self.close()
            raise
        return found

    async def close(self) -> None:
        """End the connection; it is opened again when it is used again."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def _open(self) -> None:
        await self.close()
        connection = await self._engine.connect()
        try:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(_PLANNED_ONCE)
            driver = await _driver(connection)
            # It is none of the pool's from now on: its settings are for nobody else.
            await connection.run_sync(lambda own: own.detach())
        except BaseException:
            await connection.invalidate()
            await connection.close()
            raise
        self._connection, self._driver = connection, driver


@asynccontextmanager
async def _watched(connection: AsyncConnection) -> AsyncIterator[Any]:
    """The driver's connection. Where it is found cut, the pool must hear of it, or it would hand it out again."""
    driver = await _driver(connection)
    try:
        yield driver
    except Exception as error:
        if driver.is_closed() or _is_confused(error):
            await connection.invalidate()
        raise


async def _driver(connection: AsyncConnection) -> Any:
    return (await connection.get_raw_connection()).driver_connection


async def copy_rows(
    connection: AsyncConnection, table: Table, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Binary COPY inside the connection's transaction: the fastest way to append."""
    async with _watched(connection) as driver:
        await driver.copy_records_to_table(table.name, schema_name=table.schema, columns=list(columns), records=rows)


_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_COPY_END = b"\xff\xff"


async def copy_packed(connection: AsyncConnection, table: Table, columns: Sequence[str], rows: Iterable[bytes]) -> None:
    """`copy_rows` of rows that stand in PostgreSQL's binary form already: how many fields in two bytes, then each field
    behind its length in four."""
    async with _watched(connection) as driver:
        await driver.copy_to_table(
            table.name, schema_name=table.schema, columns=list(columns), format="binary", source=_stream(rows)
        )


async def _stream(rows: Iterable[bytes]) -> AsyncIterator[bytes]:
    yield b"".join((_COPY_HEAD, *rows, _COPY_END))
