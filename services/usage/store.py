"""The SQL of usage: one function, one statement, named by what it asks or does."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import cache
from struct import Struct
from typing import Any
from uuid import UUID

from asyncpg import UniqueViolationError
from asyncpg.pgproto.pgproto import UUID as DriverUUID  # made from 16 bytes at a tenth of the time of `uuid.UUID`
from msgspec.structs import astuple
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Date,
    Integer,
    Select,
    SmallInteger,
    Table,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, Insert, distinct_on, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from services.kernel.money import parse_amount
from services.runtime.database import copy_packed, copy_rows, unnest
from services.usage.books import BookVersion, PriceRow
from services.usage.stamping import Lane
from services.usage.tables import (
    BOOK_ORDER,
    BOOK_PRICE,
    BOOK_SCHEDULE,
    BOOK_VERSION,
    BOOK_WINDOW,
    CHARGE,
    CHARGE_COLUMNS,
    CLASS_COUNT,
    COUNTER,
    CUT,
    CUT_POSITION,
    HELD_GROUP,
    IDENTITY,
    MAXIMUM_PRICE,
    PAYER_ZONE,
    RENTAL,
    RUNTIME,
    SOURCE_SEEN,
    STATE,
    SUPERSEDED,
    TIMELINE,
    WAIVED,
    Counted,
    Instant,
)
from services.usage.tiers import Band, CounterKey, Schedule
from services.usage.windows import Window, window_of

CHARGES_AT_ONCE = 10_000  # rows of a long reading that are in memory together

PRICES_AT_ONCE = 2_000  # a hundredth of a second, in which a worker does nothing else
OPEN_STATES = (
    "quarantined",
    "waiting",
    "replaying",
    "discarding",
)  # of parked records: nothing is decided and done yet

Found = Any  # a row, its columns by name
Rows = Sequence[Found]
ClassKey = tuple[str, int, int, str]  # topic, partition, segment, class
Seen = tuple[str, str, str]  # month, publisher, source


_PRICE_ROW = [BOOK_PRICE.c[name] for name in PriceRow.__struct_fields__]

# ---- what a worker keeps in memory ---------------------------------------------------------------------------------


_SHARE_STATE = select(STATE).with_for_update(read=True)


async def share_state(connection: AsyncConnection) -> Found:
    """The state, shared until the end of the transaction: whoever changes it waits for this batch, or this batch for it."""
    return (await connection.execute(_SHARE_STATE)).one()


async def lock_state(connection: AsyncConnection) -> None:
    """Hold the state alone. A lock of the table, not of the row: it queues in order and cannot starve behind batches."""
    await connection.execute(text(f"lock table {STATE.fullname} in exclusive mode"))


async def read_state(connection: AsyncConnection) -> Found:
    """The state, for one who holds it alone or only looks."""
    return (await connection.execute(select(STATE))).one()


async def bump(connection: AsyncConnection, what: str) -> int:
    """The next version of `registry_version`, `books_version` or `cuts_version`."""
    version = STATE.c[what]
    statement = update(STATE).values({what: version + 1}).returning(version)
    return int((await connection.execute(statement)).scalar_one())


async def timelines_changed_since(connection: AsyncConnection, version: int) -> Rows:
    """(kind, document as text) of what the registry said since."""
    statement = select(TIMELINE.c.kind, cast(TIMELINE.c.document, Text)).where(TIMELINE.c.changed > version)
    return (await connection.execute(statement)).all()


async def book_versions_since(connection: AsyncConnection, version: int) -> Rows:
    return (await connection.execute(select(BOOK_VERSION).where(BOOK_VERSION.c.changed > version))).all()


async def book_prices(connection: AsyncConnection, book_id: str, version: int) -> AsyncIterator[PriceRow]:
    """The rows of one version, read in pieces: tens of thousands at once would keep a worker from all else."""
    statement = select(*_PRICE_ROW).where(BOOK_PRICE.c.book_id == book_id, BOOK_PRICE.c.version == version)
    result = await connection.stream(statement.execution_options(yield_per=PRICES_AT_ONCE))
    async for piece in result.partitions():
        for row in piece:
            yield PriceRow(*row)


async def book_windows(connection: AsyncConnection, book_id: str, version: int) -> tuple[Window, ...]:
    """The windows of one version."""
    columns = BOOK_WINDOW.c
    statement = (
        select(columns.id, columns.zone, columns.days, columns["from"], columns.to, columns.holidays)
        .where(columns.book_id == book_id, columns.version == version)
        .order_by(columns.id)
    )
    return tuple(window_of(*row) for row in (await connection.execute(statement)).all())


async def book_schedules(connection: AsyncConnection, book_id: str, version: int) -> tuple[Schedule, ...]:
    """The schedules of one version."""
    columns = BOOK_SCHEDULE.c
    statement = select(columns.id, columns.form, columns.per, columns.bands)
    rows = await connection.execute(statement.where(columns.book_id == book_id, columns.version == version))
    return tuple(
        Schedule(
            row.id,
            row.form,
            row.per,
            tuple(Band(each["up_to"], parse_amount(each["price"]), parse_amount(each["fee"])) for each in row.bands),
        )
        for row in rows
    )


async def book_version(connection: AsyncConnection, listed: Found) -> BookVersion:
    """One version, found in a list of them, with all that stands in it."""
    book_id, version = listed.book_id, listed.version
    prices = tuple([row async for row in book_prices(connection, book_id, version)])
    windows = await book_windows(connection, book_id, version)
    schedules = await book_schedules(connection, book_id, version)
    return BookVersion(book_id, version, listed.currency, listed.effective_from, prices, windows, schedules)


async def book_order(connection: AsyncConnection) -> Rows:
    return (await connection.execute(select(BOOK_ORDER).order_by(BOOK_ORDER.c.position))).all()


async def taken_cuts(connection: AsyncConnection) -> Rows:
    return (await connection.execute(select(CUT).where(CUT.c.taken_at.is_not(None)).order_by(CUT.c.number))).all()


async def cut_positions(connection: AsyncConnection) -> Rows:
    return (await connection.execute(select(CUT_POSITION))).all()


async def held_groups(connection: AsyncConnection) -> Rows:
    return (await connection.execute(select(HELD_GROUP).order_by(HELD_GROUP.c.group_id))).all()


# ---- the registry and price books ----------------------------------------------------------------------------------


async def project_timelines(
    connection: AsyncConnection, changed: int, timelines: Sequence[tuple[str, str, int, Any]]
) -> None:
    """Store (kind, id, version, document), each once and sorted; a version that is not higher changes nothing."""
    new = unnest("new", kind=Text(), id=Text(), version=Integer(), document=JSONB())
    source = select(new.c.kind, new.c.id, new.c.version, literal(changed, BigInteger()), new.c.document)
    statement = insert(TIMELINE).from_select(["kind", "id", "version", "changed", "document"], source)
    excluded = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["kind", "id"],
        set_={"version": excluded.version, "changed": excluded.changed, "document": excluded.document},
        where=TIMELINE.c.version < excluded.version,
    )
    kinds, ids, versions, documents = zip(*timelines, strict=True)
    await connection.execute(
        statement,
        {
            "new_kind": list(kinds),
            "new_id": list(ids),
            "new_version": list(versions),
            "new_document": list(documents),
        },
    )


async def note_zones(connection: AsyncConnection, changed: int, zones: Mapping[str, str]) -> None:
    """Keep the zones of these payer groups for as long as charges may name them."""
    statement = insert(PAYER_ZONE)
    new = {name: statement.excluded[name] for name in ("zone", "changed")}
    statement = statement.on_conflict_do_update(
        index_elements=["group_id"], set_=new, where=PAYER_ZONE.c.zone != new["zone"]
    )
    rows = [{"group_id": each, "zone": zones[each], "changed": changed} for each in sorted(zones)]
    await connection.execute(statement, rows)


async def zones_named_since(connection: AsyncConnection, version: int) -> dict[str, str]:
    """The zones of payer groups that a timeline of the registry named for the first time since."""
    statement = select(PAYER_ZONE).where(PAYER_ZONE.c.changed > version)
    return {row.group_id: row.zone for row in await connection.execute(statement)}


async def timelines(connection: AsyncConnection, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """The documents of these objects (kind, id), where they are known."""
    wanted = unnest("wanted", kind=Text(), id=Text())
    columns = TIMELINE.c
    statement = select(columns.kind, columns.id, columns.document).join(
        wanted, and_(columns.kind == wanted.c.kind, columns.id == wanted.c.id)
    )
    kinds, ids = zip(*keys, strict=True)
    rows = await connection.execute(statement, {"wanted_kind": list(kinds), "wanted_id": list(ids)})
    return {(row.kind, row.id): row.document for row in rows}


async def numbers(connection: AsyncConnection, number: str) -> Rows:
    """The documents of every resource that is a number."""
    document = TIMELINE.c.document
    statement = select(document).where(TIMELINE.c.kind == "resource", document["number"].astext == number)
    return (await connection.execute(statement)).scalars().all()


async def retry_records_of_accounts(
    connection: AsyncConnection, reason: str, account_ids: Sequence[str], by: str
) -> None:
    """Ask to replay what is in quarantine because one of these accounts was not known, or had no price for it."""
    await connection.execute(retry_statement(reason, "account_id", by), {"values": list(account_ids)})


async def retry_records_of_numbers(connection: AsyncConnection, numbers: Sequence[str], by: str) -> None:
    """Ask to replay what is in quarantine because nobody had one of these numbers."""
    await connection.execute(retry_statement("unknown_number", "number", by), {"values": list(numbers)})


async def retry_records_of_numbers_had_by(
    connection: AsyncConnection, reason: str, account_ids: Sequence[str], numbers: Sequence[str], by: str
) -> None:
    """Ask to replay what is in quarantine because one of these accounts, which had the number by what was known, was not there or
    had no price."""
    number = RUNTIME.parked.c.about.op("->>")(literal_column("'number'"))
    statement = retry_statement(reason, "account_id", by)
    statement = statement.where(number == func.any(bindparam("numbers", type_=ARRAY(Text()))))
    await connection.execute(statement, {"values": list(account_ids), "numbers": list(numbers)})


def retry_statement(reason: str, name: str, by: str) -> Update:
    """Ask for what is in quarantine for a reason, of some ``values`` of what is known about it."""
    # state and reason stand in the text: only so the planner knows, for whatever values, that the partial index holds them
    columns = RUNTIME.parked.c
    return (
        update(RUNTIME.parked)
        .where(
            columns.state == literal_column("'quarantined'"),
            columns.reason == literal_column(f"'{reason}'"),
            columns.about.op("->>")(literal_column(f"'{name}'")) == func.any(bindparam("values", type_=ARRAY(Text()))),
        )
        .values(state="replaying", decided_by=by, decided_at=func.runtime.clock_now())
    )


async def registry_received(connection: AsyncConnection, topics: Iterable[str]) -> Rows:
    """(link, topic, partition, received_to) of what came from the registry."""
    columns = RUNTIME.link_in.c
    statement = select(columns.link, columns.topic, columns.partition, columns.received_to)
    return (await connection.execute(statement.where(columns.topic.in_(sorted(topics))))).all()


async def clock_now(connection: AsyncConnection) -> datetime:
    """The one clock."""
    return (await connection.execute(select(func.runtime.clock_now()))).scalar_one()  # type: ignore[no-any-return]


async def last_book_version(connection: AsyncConnection, book_id: str) -> Found | None:
    statement = select(BOOK_VERSION).where(BOOK_VERSION.c.book_id == book_id).order_by(BOOK_VERSION.c.version.desc())
    return (await connection.execute(statement.limit(1))).first()


async def lock_book(connection: AsyncConnection, book_id: str) -> None:
    """One at a time adds versions to a book, until the end of the transaction."""
    await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("usage.book"), func.hashtext(book_id))))


async def insert_book_version(
    connection: AsyncConnection, book_id: str, version: int, currency: str, effective_from: datetime
) -> None:
    """A version that no memory reads before `set_book_version_changed`."""
    values = {
        "book_id": book_id, "version": version, "currency": currency, "effective_from": effective_from,
        "changed": 0, "imported_at": func.runtime.clock_now(),
    }  # fmt: skip
    await connection.execute(insert(BOOK_VERSION).values(values))


async def set_book_version_changed(connection: AsyncConnection, book_id: str, version: int, changed: int) -> None:
    """At which version of all books it was added."""
    columns = BOOK_VERSION.c
    statement = update(BOOK_VERSION).where(columns.book_id == book_id, columns.version == version)
    await connection.execute(statement.values(changed=changed))


async def append_book_prices(connection: AsyncConnection, book_id: str, version: int, rows: Iterable[PriceRow]) -> None:
    columns = ("book_id", "version", *PriceRow.__struct_fields__)
    await copy_rows(connection, BOOK_PRICE, columns, [(book_id, version, *astuple(row)) for row in rows])


async def insert_book_windows(
    connection: AsyncConnection, book_id: str, version: int, windows: Iterable[Window]
) -> None:
    rows = [{"book_id": book_id, "version": version, **window.texts()} for window in windows]
    if rows:
        await connection.execute(insert(BOOK_WINDOW), rows)


async def insert_book_schedules(
    connection: AsyncConnection, book_id: str, version: int, schedules: Iterable[Schedule]
) -> None:
    rows = [{"book_id": book_id, "version": version, **schedule.texts()} for schedule in schedules]
    if rows:
        await connection.execute(insert(BOOK_SCHEDULE), rows)


async def clear_book_order(connection: AsyncConnection, scope: str, subject: str) -> None:
    columns = BOOK_ORDER.c
    await connection.execute(delete(BOOK_ORDER).where(columns.scope == scope, columns.subject == subject))


async def insert_book_order(connection: AsyncConnection, scope: str, subject: str, book_ids: Sequence[str]) -> None:
    rows = [
        {"scope": scope, "subject": subject, "position": position, "book_id": book_id}
        for position, book_id in enumerate(book_ids, start=1)
    ]
    await connection.execute(insert(BOOK_ORDER), rows)


async def append_maximum_price(
    connection: AsyncConnection, account_id: str, profile: str, price_nano: int | None, currency: str, by: str
) -> None:
    """The last word on what a minute may cost; None lifts the maximum."""
    values = {
        "account_id": account_id, "outbound_profile": profile, "price_nano": price_nano, "currency": currency,
        "set_at": func.runtime.clock_now(), "set_by": by,
    }  # fmt: skip
    await connection.execute(insert(MAXIMUM_PRICE).values(values))


async def maximum_prices(connection: AsyncConnection, account_id: str | None = None) -> Rows:
    """The last word for each account and profile, or for those of one account."""
    columns = MAXIMUM_PRICE.c
    statement = (
        select(MAXIMUM_PRICE)
        .ext(distinct_on(columns.account_id, columns.outbound_profile))
        .order_by(columns.account_id, columns.outbound_profile, columns.id.desc())
    )
    if account_id is not None:
        statement = statement.where(columns.account_id == account_id)
    return (await connection.execute(statement)).all()


async def book_listing(connection: AsyncConnection, book_id: str | None = None) -> Rows:
    """Every version, of all books or one, with the number of its prices."""
    count = (
        select(func.count())
        .where(BOOK_PRICE.c.book_id == BOOK_VERSION.c.book_id, BOOK_PRICE.c.version == BOOK_VERSION.c.version)
        .scalar_subquery()
    )
    statement = select(BOOK_VERSION, count.label("prices")).order_by(BOOK_VERSION.c.book_id, BOOK_VERSION.c.version)
    if book_id is not None:
        statement = statement.where(BOOK_VERSION.c.book_id == book_id)
    return (await connection.execute(statement)).all()


def names_price(row: Any) -> ColumnElement[bool]:
    """That a price is the one which a charge, or what is like one, names: these are the columns of its table."""
    price = BOOK_PRICE.c
    return and_(
        price.book_id == row.book_id, price.version == row.book_version, price.product == row.product,
        price.prefix == row.matched, price.window == func.coalesce(row.window, ""),
    )  # fmt: skip


async def price_row(
    connection: AsyncConnection, book_id: str, version: int, product: str, prefix: str, window: str
) -> PriceRow | None:
    """The price that a charge names."""
    columns = BOOK_PRICE.c
    key = tuple_(columns.book_id, columns.version, columns.product, columns.prefix, columns.window)
    statement = select(*_PRICE_ROW).where(key == (book_id, version, product, prefix, window))
    row = (await connection.execute(statement)).first()
    return PriceRow(*row) if row is not None else None


# ---- identities ----------------------------------------------------------------------------------------------------

_DIGESTS = bindparam("digests", type_=ARRAY(Uuid()))


async def known_identities(
    connection: AsyncConnection, generations: Sequence[int], digests: Sequence[bytes]
) -> dict[bytes, Found]:
    """The rows of these digests in these generations, of each the highest revision."""
    rows = await _of_generations(connection, IDENTITY, generations, digests)
    found: dict[bytes, Found] = {}
    for row in rows:
        digest = row.digest.bytes
        if digest not in found or found[digest].revision < row.revision:
            found[digest] = row
    return found


async def accepted_records(connection: AsyncConnection, generations: Sequence[int], digests: Sequence[bytes]) -> Rows:
    """(digest, partition, offset, state) of every record that ever held or was absorbed by a void, under these digests."""
    return [
        *await _of_generations(connection, IDENTITY, generations, digests),
        *await _of_generations(connection, SUPERSEDED, generations, digests),
    ]


async def _of_generations(
    connection: AsyncConnection, table: Table, generations: Sequence[int], digests: Sequence[bytes]
) -> Rows:
    """The rows of these digests in these generations, each partition asked by a SELECT of its own."""
    parts = [
        select(table).where(table.c.generation == literal(generation, Integer()), table.c.digest == func.any(_DIGESTS))
        for generation in generations
    ]
    if not parts or not digests:
        return []
    statement = union_all(*parts) if len(parts) > 1 else parts[0]
    return (await connection.execute(statement, {"digests": [DriverUUID(digest) for digest in digests]})).all()


async def lock_identities(connection: AsyncConnection, generation: int, digests: Sequence[bytes]) -> dict[bytes, Found]:
    """The rows of these digests, sorted, in the current generation, held until the commit."""
    columns = IDENTITY.c
    statement = select(IDENTITY).where(
        columns.generation == literal(generation, Integer()), columns.digest == func.any(_DIGESTS)
    )
    rows = await connection.execute(
        statement.order_by(columns.digest).with_for_update(), {"digests": [DriverUUID(digest) for digest in digests]}
    )
    return {row.digest.bytes: row for row in rows}


IdentityRow = tuple[bytes, bytes, int, int, int, int, int]
"""digest, content, state, day, partition, offset, revision."""


_IDENTITY_COLUMNS = ("generation", "digest", "content", "state", "day", "partition", "offset", "revision")
_pack_identity = Struct(">h ii i16s i16s ih ih ii iq ii").pack  # each field behind its length


async def append_identities(connection: AsyncConnection, generation: int, rows: Sequence[IdentityRow]) -> bool:
    """Accept identities, sorted by digest, that should all be new in this generation: half the work of `insert_identities`.

    False, and nothing is accepted, when one of them is there already.
    """
    packed = [
        _pack_identity(
            8, 4, generation, 16, digest, 16, content, 2, state, 2, day, 4, partition, 8, offset, 4, revision
        )
        for digest, content, state, day, partition, offset, revision in rows
    ]  # fmt: skip
    try:
        async with connection.begin_nested():
            await copy_packed(connection, IDENTITY, _IDENTITY_COLUMNS, packed)
    except UniqueViolationError:
        return False
    return True


def _new_identities(*, has_revisions: bool = True) -> TableValuedAlias:
    revision: dict[str, TypeEngine[Any]] = {"revision": Integer()} if has_revisions else {}
    return unnest(
        "new", digest=Uuid(), content=Uuid(), state=SmallInteger(), day=SmallInteger(), part=Integer(), at=BigInteger(),
        **revision,
    )  # fmt: skip


@cache
def _insert_identities(*, has_revisions: bool) -> Select[Any]:
    new = _new_identities(has_revisions=has_revisions)
    generation = bindparam("generation", type_=Integer())
    revision = new.c.revision if has_revisions else literal(0, Integer())
    source = select(generation, new.c.digest, new.c.content, new.c.state, new.c.day, new.c.part, new.c["at"], revision)
    statement = insert(IDENTITY).from_select(_IDENTITY_COLUMNS, source).on_conflict_do_nothing()
    accepted = statement.returning(IDENTITY.c.digest).cte("accepted")
    digests = func.coalesce(func.array_agg(accepted.c.digest), cast([], ARRAY(Uuid())))
    # the digests cross the wire only when some were known already, which is rare
    return select(case((func.count() < bindparam("rows", type_=BigInteger()), digests))).select_from(accepted)


async def insert_identities(
    connection: AsyncConnection, generation: int, rows: Sequence[IdentityRow], *, has_revisions: bool
) -> set[bytes]:
    """Accept identities, sorted by digest, of which some may be known; returns the digests that were new in this generation."""
    parameters = {"generation": generation, "rows": len(rows), **_identity_parameters(rows)}
    if not has_revisions:
        del parameters["new_revision"]
    accepted = await connection.execute(_insert_identities(has_revisions=has_revisions), parameters)
    some = accepted.scalar_one()
    return {row[0] for row in rows} if some is None else {digest.bytes for digest in some}


def _identity_parameters(rows: Sequence[IdentityRow]) -> dict[str, Any]:
    digests, contents, states, days, partitions, offsets, revisions = zip(*rows, strict=True)
    return {
        "new_digest": list(map(DriverUUID, digests)),
        "new_content": list(map(DriverUUID, contents)),
        "new_state": states,
        "new_day": days,
        "new_part": partitions,
        "new_at": offsets,
        "new_revision": revisions,
    }


async def revise_identities(connection: AsyncConnection, generation: int, rows: Sequence[IdentityRow]) -> None:
    """Let these revisions hold from now on; what held before is kept beside them. Their rows are locked."""
    parameters = _identity_parameters(rows)
    old, kept = IDENTITY.c, [column.name for column in SUPERSEDED.columns]
    held = select(*(old[name] for name in kept)).where(
        old.generation == literal(generation, Integer()), old.digest == func.any(_DIGESTS)
    )
    await connection.execute(insert(SUPERSEDED).from_select(kept, held), {"digests": parameters["new_digest"]})
    new = _new_identities()
    statement = (
        update(IDENTITY)
        .where(old.generation == literal(generation, Integer()), old.digest == new.c.digest)
        .values(
            content=new.c.content, state=new.c.state, day=new.c.day, partition=new.c.part, offset=new.c["at"],
            revision=new.c.revision,
        )
    )  # fmt: skip
    await connection.execute(statement, parameters)


async def absorb(connection: AsyncConnection, generation: int, rows: Sequence[IdentityRow]) -> set[tuple[bytes, int]]:
    """Keep lower revisions that a void absorbed; returns (digest, revision) of those that nobody had sent yet."""
    new = _new_identities()
    source = select(
        literal(generation, Integer()), new.c.digest, new.c.revision, new.c.content, new.c.state,
        new.c.part, new.c["at"],
    )  # fmt: skip
    columns = ["generation", "digest", "revision", "content", "state", "partition", "offset"]
    statement = insert(SUPERSEDED).from_select(columns, source).on_conflict_do_nothing()
    kept = statement.returning(SUPERSEDED.c.digest, SUPERSEDED.c.revision)
    parameters = _identity_parameters(sorted(rows))
    return {(row.digest.bytes, row.revision) for row in await connection.execute(kept, parameters)}


async def existing_generations(connection: AsyncConnection) -> list[int]:
    """The generations that are kept, the current one included."""
    statement = text(
        "select substring(inhrelid::regclass::text from '[0-9]+$')::integer from pg_inherits"
        f" where inhparent = '{IDENTITY.fullname}'::regclass order by 1"
    )
    return list((await connection.execute(statement)).scalars())


async def open_generation(connection: AsyncConnection, generation: int) -> None:
    await connection.execute(select(func.usage.open_generation(generation)))


async def set_generation(connection: AsyncConnection, generation: int, since: datetime) -> None:
    await connection.execute(update(STATE).values(generation=generation, generation_since=since))


async def drop_generation(connection: AsyncConnection, generation: int) -> None:
    await connection.execute(select(func.usage.drop_generation(generation)))


async def earliest_open_use(connection: AsyncConnection, since: datetime) -> datetime | None:
    """The earliest event time from an instant on of a parked record that nothing is decided and done about."""
    columns = RUNTIME.parked.c
    event_time = cast(columns.about["event_time"].astext, Instant)
    statement = select(func.min(event_time)).where(columns.state.in_(OPEN_STATES), event_time >= since)
    return (await connection.execute(statement)).scalar_one()


# ---- charges and counts --------------------------------------------------------------------------------------------


async def open_charge_days(connection: AsyncConnection, days: Iterable[date]) -> None:
    """Make the partitions of these event days where they are missing."""
    statement = select(func.usage.open_charge_days(bindparam("days", type_=ARRAY(Date()))))
    await connection.execute(statement, {"days": sorted(days)})


async def append_charges(connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows in the order of `CHARGE_COLUMNS`."""
    await copy_rows(connection, CHARGE, CHARGE_COLUMNS, rows)


async def append_replacements(connection: AsyncConnection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows in the order of `CHARGE_COLUMNS`, then the charge in whose place each stands."""
    await copy_rows(connection, CHARGE, (*CHARGE_COLUMNS, "replaces"), rows)


@cache
def _move_counters() -> ReturningInsert[Any]:
    new = unnest(
        "new", account_id=Text(), group_id=Text(), period=Text(), product=Text(), prepaid=Boolean(), schedule=Text(),
        quantity=Counted(),
    )  # fmt: skip
    statement = insert(COUNTER).from_select([column.name for column in new.c], select(*new.c))
    statement = statement.on_conflict_do_update(
        index_elements=CounterKey._fields, set_={"quantity": COUNTER.c.quantity + statement.excluded.quantity}
    )
    return statement.returning(*(COUNTER.c[name] for name in (*CounterKey._fields, "quantity")))


async def move_counters(connection: AsyncConnection, by: Mapping[CounterKey, int]) -> dict[CounterKey, int]:
    """Add to counters, in the order of their keys, and hold them until the commit; returns where they stand after it.

    A batch does it once: two that move the same counters in two orders would wait for each other.
    """
    columns = {
        f"new_{name}": list(values) for name, values in zip(CounterKey._fields, zip(*by, strict=True), strict=True)
    }
    rows = await connection.execute(_move_counters(), {**columns, "new_quantity": list(by.values())})
    return {CounterKey(*key): quantity for *key, quantity in rows}


async def charge_by_id(connection: AsyncConnection, charge_id: UUID) -> Found | None:
    return (await connection.execute(select(CHARGE).where(CHARGE.c.charge_id == charge_id))).first()


async def charges_with_prices(
    connection: AsyncConnection, charge_ids: Sequence[UUID], start: datetime | None, end: datetime | None
) -> Rows:
    """These charges, each with what its price says, of event times in [start, end): only these days are searched."""
    charge, price = CHARGE.c, BOOK_PRICE.c
    statement = (
        select(
            CHARGE, price.price_nano, price.connection_fee_nano, price.minimum, price.increment, price.delivered_only
        )
        .join(BOOK_PRICE, names_price(charge))
        .where(charge.charge_id == func.any(bindparam("ids", type_=ARRAY(Uuid()))))
    )
    if start is not None:
        statement = statement.where(charge.event_time >= start)
    if end is not None:
        statement = statement.where(charge.event_time < end)
    return (await connection.execute(statement, {"ids": list(charge_ids)})).all()


async def reversed_ids(
    connection: AsyncConnection, charge_ids: Sequence[UUID], start: datetime, end: datetime
) -> set[UUID]:
    """Which of these charges, of event times in [start, end), are reversed."""
    columns = CHARGE.c
    statement = select(columns.reverses).where(
        columns.reverses == func.any(bindparam("ids", type_=ARRAY(Uuid()))),
        columns.event_time >= start,
        columns.event_time < end,
    )
    return set((await connection.execute(statement, {"ids": list(charge_ids)})).scalars())


async def live_by_id(
    connection: AsyncConnection, charge_ids: Sequence[UUID], start: datetime, end: datetime
) -> dict[UUID, Found]:
    """Those of these charges, of event times in [start, end), that nothing takes back, each with what its price says."""
    taken_back = await reversed_ids(connection, charge_ids, start, end)
    rows = await charges_with_prices(connection, charge_ids, start, end)
    return {row.charge_id: row for row in rows if row.charge_id not in taken_back}


async def charges_before(connection: AsyncConnection, charges: Sequence[Found]) -> Rows:
    """The charges in whose place these stand, and those in whose place they stood: each with the one ``asked`` for, and with
    whether its price is for delivered messages only. Only the days of these are searched."""
    if not charges:
        return []
    table = CHARGE.alias("stands")
    stands = table.c
    first = select(stands.charge_id.label("asked"), stands.replaces, stands.event_time).where(
        stands.charge_id == func.any(bindparam("ids", type_=ARRAY(Uuid()))),
        stands.replaces.is_not(None),
        stands.event_time >= min(each.event_time for each in charges),
        stands.event_time <= max(each.event_time for each in charges),
    )
    chain = first.cte("chain", recursive=True)
    further = and_(stands.charge_id == chain.c.replaces, stands.event_time == chain.c.event_time)
    chain = chain.union_all(select(chain.c.asked, stands.replaces, stands.event_time).join(table, further))
    charge = CHARGE.c
    statement = (
        select(chain.c.asked, CHARGE, BOOK_PRICE.c.delivered_only)
        .join(CHARGE, and_(charge.charge_id == chain.c.replaces, charge.event_time == chain.c.event_time))
        .join(BOOK_PRICE, names_price(charge))
    )
    return (await connection.execute(statement, {"ids": [each.charge_id for each in charges]})).all()


async def replacements(
    connection: AsyncConnection, charge_ids: Sequence[UUID], start: datetime | None, end: datetime | None
) -> dict[UUID, UUID]:
    """Of those of these charges that another one stands in the place of: which one. Event times as in `charges_with_prices`."""
    charge = CHARGE.c
    statement = select(charge.replaces, charge.charge_id).where(
        charge.replaces == func.any(bindparam("ids", type_=ARRAY(Uuid())))
    )
    if start is not None:
        statement = statement.where(charge.event_time >= start)
    if end is not None:
        statement = statement.where(charge.event_time < end)
    return {row.replaces: row.charge_id for row in await connection.execute(statement, {"ids": list(charge_ids)})}


_CHARGES = text("select pg_advisory_xact_lock_shared(hashtext('usage.live_charges'))")
_CHARGES_ALONE = text("select pg_advisory_xact_lock(hashtext('usage.live_charges'))")


async def share_charges(connection: AsyncConnection) -> None:
    """Take live charges back by revision: no re-rate takes one back meanwhile. After the state, before identities."""
    await connection.execute(_CHARGES)


async def hold_charges(connection: AsyncConnection) -> None:
    """Take live charges back by a re-rate: no revision does meanwhile. After the state, before anything else."""
    await connection.execute(_CHARGES_ALONE)


async def existing_charges(connection: AsyncConnection, charge_ids: Sequence[UUID], before: datetime) -> set[UUID]:
    """Which of these charges are there, of event times before an instant."""
    columns = CHARGE.c
    statement = select(columns.charge_id).where(
        columns.charge_id == func.any(bindparam("ids", type_=ARRAY(Uuid()))), columns.event_time < before
    )
    return set((await connection.execute(statement, {"ids": list(charge_ids)})).scalars())


async def reversal_of(connection: AsyncConnection, charge: Found) -> Found | None:
    """What reversed a charge: it has the same event time."""
    statement = select(CHARGE).where(CHARGE.c.reverses == charge.charge_id, CHARGE.c.event_time == charge.event_time)
    return (await connection.execute(statement)).first()


async def charges_of(connection: AsyncConnection, account_id: str, limit: int) -> Rows:
    """The latest charges of an account, latest first."""
    statement = select(CHARGE).where(CHARGE.c.account_id == account_id).order_by(CHARGE.c.event_time.desc())
    return (await connection.execute(statement.limit(limit))).all()


async def read_only(connection: AsyncConnection) -> None:
    """This transaction reads one state and can write nothing; before anything else."""
    await connection.execute(text("set transaction isolation level repeatable read, read only"))


async def recorded_uses(
    connection: AsyncConnection, start: datetime, end: datetime, account_id: str | None, group_id: str | None
) -> AsyncIterator[Found]:
    """The charges of event times in [start, end), of one account or group or of all, read in pieces."""
    columns = CHARGE.c
    names = (
        "account_id", "group_id", "period", "plan", "event_time", "product", "unit", "origin", "destination", "used",
        "quantity", "per", "duration_s", "amount_nano", "currency", "book_id", "matched", "surcharge",
    )  # fmt: skip
    statement = select(*(columns[name] for name in names)).where(columns.event_time >= start, columns.event_time < end)
    if account_id is not None:
        statement = statement.where(columns.account_id == account_id)
    if group_id is not None:
        statement = statement.where(columns.group_id == group_id)
    result = await connection.stream(statement.execution_options(yield_per=CHARGES_AT_ONCE))
    async for row in result:
        yield row


async def all_charges(connection: AsyncConnection) -> AsyncIterator[Found]:
    """Of every charge what its line on an invoice follows from, read in pieces."""
    columns = CHARGE.c
    statement = select(
        columns.charge_id, columns.group_id, columns.bill_to, columns.account_id, columns.amount_nano,
        columns.quantity, columns.product, columns.cost_center_id, columns.period, columns.plan, columns.currency,
    )  # fmt: skip
    result = await connection.stream(statement.execution_options(yield_per=CHARGES_AT_ONCE))
    async for row in result:
        yield row


async def counters_with_charges(connection: AsyncConnection) -> Rows:
    """Every counter beside what the charges in it sum to, in one snapshot: ``counted`` is null where there is no counter,
    ``quantity`` where there is no charge. ``per``, ``book_id`` and ``book_version`` are those of all its charges."""
    columns = CHARGE.c
    utc_month = func.to_char(func.timezone("UTC", columns.event_time), "YYYY-MM")
    key = (
        columns.account_id,
        func.coalesce(columns.group_id, "").label("group_id"),
        func.coalesce(columns.period, utc_month).label("period"),
        columns.product,
        (columns.plan != "invoiced").label("prepaid"),
        columns.schedule,
    )
    sums = (
        select(
            *key,
            func.sum(columns.quantity).label("quantity"),
            func.sum(columns.amount_nano).label("amount_nano"),
            *(func.min(columns[name]).label(name) for name in ("per", "book_id", "book_version")),
        )
        .where(columns.schedule.is_not(None))
        .group_by(*key)
        .subquery()
    )
    same = and_(*(COUNTER.c[name] == sums.c[name] for name in CounterKey._fields))
    statement = select(
        *(func.coalesce(COUNTER.c[name], sums.c[name]).label(name) for name in CounterKey._fields),
        COUNTER.c.quantity.label("counted"),
        *(sums.c[name] for name in ("quantity", "amount_nano", "per", "book_id", "book_version")),
    ).select_from(COUNTER.join(sums, same, full=True))
    return (await connection.execute(statement)).all()


async def reversals_beside_charges(connection: AsyncConnection) -> Found:
    """(number of all reversals, charge_ids of those that are wrong). Right is the exact negative of one charge, the only
    one that takes it back, on no earlier invoice; of a price by tiers the amount is what the counter costs less."""
    reversal, charge = CHARGE.alias("reversal"), CHARGE.alias("charge")
    alike = (
        "event_time", "account_id", "group_id", "period", "plan", "cost_center_id", "product", "currency", "schedule",
        "publisher", "source", "event_id",
    )  # fmt: skip
    is_exact = and_(
        charge.c.reverses.is_(None),
        *(reversal.c[name].is_not_distinct_from(charge.c[name]) for name in alike),
        reversal.c.quantity == -charge.c.quantity,
        or_(charge.c.schedule.is_not(None), reversal.c.amount_nano == -charge.c.amount_nano),
        func.coalesce(reversal.c.bill_to >= charge.c.bill_to, literal(True)),
        func.count().over(partition_by=reversal.c.reverses) == 1,
    )
    found = (
        select(reversal.c.charge_id, func.coalesce(is_exact, literal(False)).label("is_right"))
        .outerjoin_from(reversal, charge, charge.c.charge_id == reversal.c.reverses)
        .where(reversal.c.reverses.is_not(None))
        .subquery()
    )
    ids = func.array_agg(found.c.charge_id.distinct()).filter(~found.c.is_right)
    wrong = func.coalesce(ids, cast([], ARRAY(Uuid())))
    statement = select(func.count().label("number"), wrong.label("wrong")).select_from(found)
    return (await connection.execute(statement)).one()


async def charged_twice(connection: AsyncConnection) -> Rows:
    """(publisher, source, event_id) of facts that were corrected and have more than one charge that nothing takes back."""
    corrected, charge, reversal = CHARGE.alias("corrected"), CHARGE.alias("charge"), CHARGE.alias("reversal")
    name = ("publisher", "source", "event_id")
    facts = (
        select(*(corrected.c[each] for each in name))
        .where(or_(corrected.c.reverses.is_not(None), corrected.c.revision > 0))
        .distinct()
        .subquery()
    )
    taken_back = select(reversal.c.reverses).where(reversal.c.reverses.is_not(None))
    statement = (
        select(*(charge.c[each] for each in name))
        .join(facts, and_(*(facts.c[each] == charge.c[each] for each in name)))
        .where(charge.c.reverses.is_(None), charge.c.charge_id.not_in(taken_back))
        .group_by(*(charge.c[each] for each in name))
        .having(func.count() > 1)
    )
    return (await connection.execute(statement)).all()


@cache
def _add_class_counts() -> Insert:
    new = unnest("new", topic=Text(), part=Integer(), segment=Integer(), named=Text(), number=BigInteger())
    replayed = bindparam("replayed", type_=Boolean())
    source = select(new.c.topic, new.c.part, new.c.segment, new.c.named, replayed, new.c.number)
    columns = ["topic", "partition", "segment", "class", "replayed", "count"]
    statement = insert(CLASS_COUNT).from_select(columns, source)
    return statement.on_conflict_do_update(
        index_elements=columns[:-1], set_={"count": CLASS_COUNT.c.count + statement.excluded["count"]}
    )


async def add_class_counts(connection: AsyncConnection, counts: Counter[ClassKey], *, replayed: bool) -> None:
    """Count records per (topic, partition, segment, class); a replay takes them out of the class they were in."""
    keys = sorted(key for key, count in counts.items() if count)
    if not keys:
        return
    await connection.execute(
        _add_class_counts(),
        {
            "replayed": replayed,
            "new_topic": [topic for topic, _, _, _ in keys],
            "new_part": [partition for _, partition, _, _ in keys],
            "new_segment": [segment for _, _, segment, _ in keys],
            "new_named": [name for _, _, _, name in keys],
            "new_number": [counts[key] for key in keys],
        },
    )


async def class_counts(connection: AsyncConnection, segment: int | None = None) -> Rows:
    """(topic, partition, segment, class, count), of one segment or of all."""
    columns = CLASS_COUNT.c
    key = (columns.topic, columns.partition, columns.segment, columns["class"])
    count = cast(func.sum(columns.count), BigInteger)
    statement = select(*key, count.label("number")).group_by(*key).having(count != 0).order_by(*key)
    if segment is not None:
        statement = statement.where(columns.segment == segment)
    return (await connection.execute(statement)).all()


# ---- fees of numbers -----------------------------------------------------------------------------------------------


async def last_rentals(
    connection: AsyncConnection, resource_ids: Sequence[str], limit: int
) -> dict[str, frozenset[str]]:
    """The last so many periods that were paid of each of these numbers."""
    columns, asked = RENTAL.c, unnest("asked", id=Text())
    paid = select(columns.period).where(columns.resource_id == asked.c.id).order_by(columns.period.desc()).limit(limit)
    statement = select(asked.c.id, func.array(paid.scalar_subquery()).label("periods"))
    rows = await connection.execute(statement, {"asked_id": list(resource_ids)})
    return {row.id: frozenset(row.periods) for row in rows}


async def insert_rentals(
    connection: AsyncConnection, fees: Sequence[tuple[str, str, str, str, datetime, int]], published_at: datetime
) -> set[tuple[str, str]]:
    """Note fees (resource, period, account, number, start, days), sorted; returns those (resource, period) that were new."""
    names = ("resource_id", "period", "account_id", "number", "starts_at", "days")
    new = unnest(
        "new",
        resource_id=Text(),
        period=Text(),
        account_id=Text(),
        number=Text(),
        starts_at=Instant,
        days=SmallInteger(),
    )
    source = select(*(new.c[name] for name in names), literal(published_at, Instant))
    statement = insert(RENTAL).from_select([*names, "published_at"], source).on_conflict_do_nothing()
    rows = await connection.execute(
        statement.returning(RENTAL.c.resource_id, RENTAL.c.period),
        {f"new_{name}": list(values) for name, values in zip(names, zip(*fees, strict=True), strict=True)},
    )
    return {(resource_id, period) for resource_id, period in rows}


async def fire_now(connection: AsyncConnection, kind: str, key: str) -> None:
    """Let a timer of the room fire now."""
    statement = insert(RUNTIME.due).values(kind=kind, key=key, due_at=func.runtime.clock_now())
    now = {"due_at": statement.excluded.due_at, "failures": 0}
    await connection.execute(statement.on_conflict_do_update(index_elements=["kind", "key"], set_=now))


# ---- sources -------------------------------------------------------------------------------------------------------


async def note_sources(connection: AsyncConnection, seen: Iterable[Seen]) -> None:
    """Remember that these sources were seen in these months. Sorted, so that two workers never wait in a circle."""
    new = unnest("new", month=Text(), publisher=Text(), source=Text())
    columns = [column.name for column in SOURCE_SEEN.columns]
    statement = insert(SOURCE_SEEN).from_select(columns, select(*new.c)).on_conflict_do_nothing()
    months, publishers, sources = zip(*sorted(seen), strict=True)
    await connection.execute(
        statement, {"new_month": list(months), "new_publisher": list(publishers), "new_source": list(sources)}
    )


async def sources_seen(connection: AsyncConnection, months: Iterable[str]) -> list[Seen]:
    """(month, publisher, source) of what was seen in these months."""
    statement = select(SOURCE_SEEN).where(SOURCE_SEEN.c.month.in_(sorted(months)))
    return [(row.month, row.publisher, row.source) for row in (await connection.execute(statement)).all()]


# ---- cuts ----------------------------------------------------------------------------------------------------------


async def name_cuts(connection: AsyncConnection, cuts: Sequence[dict[str, Any]]) -> None:
    """Note cuts that are to be taken: cutoff_id, boundary."""
    await connection.execute(insert(CUT).on_conflict_do_nothing(), cuts)


async def note_groups_covered(connection: AsyncConnection, covered: Sequence[dict[str, Any]]) -> None:
    """Note up to where the registry's links must be received before a cut passes: cutoff_id, boundary, groups_marks."""
    statement = insert(CUT)
    statement = statement.on_conflict_do_update(
        index_elements=["cutoff_id"], set_={"groups_marks": statement.excluded.groups_marks}
    )
    await connection.execute(statement, covered)


async def cuts_to_take(connection: AsyncConnection) -> Rows:
    return (await connection.execute(select(CUT).where(CUT.c.taken_at.is_(None)).order_by(CUT.c.boundary))).all()


async def take_cut(connection: AsyncConnection, cutoff_id: UUID, taken_at: datetime) -> None:
    """Number the cut after all that were taken."""
    number = select(func.count(CUT.c.number)).scalar_subquery()
    statement = update(CUT).where(CUT.c.cutoff_id == cutoff_id).values(number=number, taken_at=taken_at)
    await connection.execute(statement)


async def insert_cut_positions(connection: AsyncConnection, cutoff_id: UUID, positions: dict[Lane, int]) -> None:
    rows = [
        {"cutoff_id": cutoff_id, "topic": topic, "partition": partition, "position": positions[topic, partition]}
        for topic, partition in sorted(positions)
    ]
    await connection.execute(insert(CUT_POSITION).on_conflict_do_nothing(), rows)


async def cuts_to_pass(connection: AsyncConnection) -> Rows:
    """Cuts that are taken and covered by groups, whose every lane has reached its position."""
    lane, at = RUNTIME.lane.c, CUT_POSITION.c
    behind = (
        select(literal(1))
        .select_from(CUT_POSITION)
        .outerjoin(RUNTIME.lane, and_(lane.input == "events", lane.topic == at.topic, lane.partition == at.partition))
        .where(at.cutoff_id == CUT.c.cutoff_id, func.coalesce(lane.position, -1) < at.position)
    )
    statement = select(CUT).where(
        CUT.c.taken_at.is_not(None), CUT.c.passed_at.is_(None), CUT.c.groups_marks.is_not(None), ~behind.exists()
    )
    return (await connection.execute(statement.order_by(CUT.c.number))).all()


async def insert_lane_pass(connection: AsyncConnection, cutoff_id: UUID, passed_at: datetime) -> None:
    await connection.execute(update(CUT).where(CUT.c.cutoff_id == cutoff_id).values(passed_at=passed_at))


async def hold_groups(connection: AsyncConnection, cutoff_id: UUID, group_ids: Sequence[str]) -> None:
    rows = [{"cutoff_id": cutoff_id, "group_id": group_id} for group_id in group_ids]
    await connection.execute(insert(HELD_GROUP), rows)


async def groups_to_pass(connection: AsyncConnection) -> Rows:
    """(cutoff_id, boundary, passed_at of the lanes, group_id) of every group that is still held."""
    statement = (
        select(CUT.c.cutoff_id, CUT.c.boundary, CUT.c.passed_at, HELD_GROUP.c.group_id)
        .join(HELD_GROUP, HELD_GROUP.c.cutoff_id == CUT.c.cutoff_id)
        .where(HELD_GROUP.c.passed_at.is_(None))
        .order_by(CUT.c.number, HELD_GROUP.c.group_id)
    )
    return (await connection.execute(statement)).all()


async def insert_group_pass(connection: AsyncConnection, cutoff_id: UUID, group_id: str, passed_at: datetime) -> None:
    columns = HELD_GROUP.c
    held = and_(columns.cutoff_id == cutoff_id, columns.group_id == group_id)
    await connection.execute(update(HELD_GROUP).where(held).values(passed_at=passed_at))


async def waive(connection: AsyncConnection, cutoff_id: UUID, parked_ids: Sequence[int], waived_at: datetime) -> None:
    """These records hold nothing any more."""
    rows = [{"parked_id": each, "cutoff_id": cutoff_id, "waived_at": waived_at} for each in sorted(parked_ids)]
    await connection.execute(insert(WAIVED).on_conflict_do_nothing(), rows)


async def records_that_may_hold(connection: AsyncConnection, ids: Sequence[int] | None = None) -> Rows:
    """Parked records (of these ids) that nothing is decided and done about, whose account could be read, but for those
    that their publisher had no right to send: nobody may hold another's invoice."""
    columns = RUNTIME.parked.c
    statement = (
        select(
            columns.id,
            columns.topic,
            columns.partition,
            columns.offset,
            columns.state,
            columns.reason,
            columns.field,
            columns.message,
            columns.about["account_id"].astext.label("account_id"),
            columns.about["event_time"].astext.label("event_time"),
            columns.about["live"].label("live"),
            columns.timestamp,
        )
        .where(
            columns.state.in_(OPEN_STATES),
            columns.reason != "not_permitted",
            columns.about["account_id"].astext.is_not(None),
            columns.id.not_in(select(WAIVED.c.parked_id)),
        )
        .order_by(columns.id)
    )
    if ids is not None:
        statement = statement.where(columns.id == func.any(literal(list(ids), ARRAY(BigInteger()))))
    return (await connection.execute(statement)).all()


async def parked_revisions(connection: AsyncConnection) -> Rows:
    """(id, revises, live) of parked records that nothing is decided and done about, and that would revise a fact."""
    columns = RUNTIME.parked.c
    statement = select(columns.id, columns.about["revises"].label("revises"), columns.about["live"].label("live"))
    return (
        await connection.execute(
            statement.where(columns.state.in_(OPEN_STATES), columns.about.has_key("revises")).order_by(columns.id)
        )
    ).all()


async def note_live(connection: AsyncConnection, live: Mapping[int, dict[str, str] | None]) -> None:
    """Keep beside parked records what they would take back."""
    columns = RUNTIME.parked.c
    statement = (
        update(RUNTIME.parked)
        .where(columns.id == bindparam("parked_id", type_=BigInteger()))
        .values(about=columns.about.op("||")(bindparam("noted", type_=JSONB())))
    )
    rows = [{"parked_id": id, "noted": {"live": live[id]}} for id in sorted(live)]
    await connection.execute(statement, rows)


async def parked_states(
    connection: AsyncConnection, topic: str, partition: int, offsets: Sequence[int]
) -> dict[int, Found]:
    """(offset, state, reason) of those of these records that were ever parked."""
    columns = RUNTIME.parked.c
    statement = select(columns.offset, columns.state, columns.reason).where(
        columns.topic == topic,
        columns.partition == partition,
        columns.offset == func.any(bindparam("offsets", type_=ARRAY(BigInteger()))),
    )
    rows = (await connection.execute(statement, {"offsets": list(offsets)})).all()
    return {row.offset: row for row in rows}


async def decided_records(connection: AsyncConnection) -> Rows:
    """(topic, partition, offset, decided_at) of records that were parked and asked to run again."""
    columns = RUNTIME.parked.c
    statement = select(columns.topic, columns.partition, columns.offset, columns.decided_at)
    return (
        await connection.execute(statement.where(columns.decided_at.is_not(None), columns.state != "discarded"))
    ).all()
