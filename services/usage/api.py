"""What people and programs read of usage and ask of it, with the room's own role.

Every function takes an engine of that role and is one transaction.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.groups import AccountTimeline, ResourceTimeline
from contracts.topics import USAGE_CHARGES, USAGE_EVENTS
from contracts.words import ID_PATTERN
from services.kernel.errors import InvalidInput, NotFound
from services.kernel.ids import evidence_hash, identity_digest
from services.kernel.money import CHARGE_NANO_MAX, format_nano, parse_amount
from services.kernel.period import instant_text
from services.runtime import parking
from services.runtime.database import transaction
from services.runtime.lanes import lanes_of
from services.runtime.links import LinkMark, marks
from services.runtime.parking import ParkedRow
from services.usage import closing, quoting, rerate_store, retrying, revising, store
from services.usage import reassignments as reassignments_of
from services.usage.adopting import adopt_cuts as adopt_cuts
from services.usage.adopting import known_books as known_books
from services.usage.books import (
    DATA,
    RENTAL,
    SURCHARGE,
    BookVersion,
    Direction,
    Price,
    PriceBook,
    check_schedules,
    newest_first,
    products_of_number,
)  # fmt: skip
from services.usage.closing import EVENTS, Holder, begins_of, holders
from services.usage.cloudevents import Headers, structured
from services.usage.estimating import estimate as estimate
from services.usage.events import EventRefused, decode
from services.usage.handler import CLASS_OF_STATE, DUPLICATE
from services.usage.memory import Memory
from services.usage.paying import who_pays
from services.usage.price_files import PriceFile
from services.usage.quotes import REFRESH_S as REFRESH_S
from services.usage.quotes import Quotes as Quotes
from services.usage.quoting import Quote as Quote
from services.usage.rating import explain
from services.usage.reassignments import reassignment as reassignment
from services.usage.reassignments import reassignments as reassignments
from services.usage.registry import REGISTRY_TOPICS, Account
from services.usage.rerate_plans import approve_rerate as approve_rerate
from services.usage.rerate_plans import cancel_rerate as cancel_rerate
from services.usage.rerate_plans import execute_rerate as execute_rerate
from services.usage.rerate_plans import plan_rerate as plan_rerate
from services.usage.rerate_plans import rerate as rerate
from services.usage.rerate_plans import rerates as rerates
from services.usage.simulating import Draft, Replay, draft_of
from services.usage.tables import RUNTIME
from services.usage.tiers import Share

# ---- price books ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BookListing:
    """One version of a price book."""

    book_id: str
    version: int
    currency: str
    effective_from: datetime
    imported_at: datetime
    prices: int


async def import_prices(
    engine: AsyncEngine, book_id: str, prices: PriceFile, effective_from: datetime, *, is_default: bool = False
) -> int:
    """Add a version to a book, and the book to the default ones if asked to; returns the version.

    It rates what is rated or replayed from now on; charges that exist are not changed. A book keeps its currency. Records
    that had no price are retried.
    """
    if re.fullmatch(ID_PATTERN, book_id) is None:  # charges name it, and no room would read those
        raise InvalidInput(
            'must be letters, digits, "_", "." and "-", at most 64, beginning with a letter or digit, such as list-2026',
            field="book",
        )
    check_schedules(prices.rows, prices.schedules)
    async with transaction(engine) as connection:
        await store.lock_book(connection, book_id)
        last = await store.last_book_version(connection, book_id)
        if last is not None and last.currency != prices.currency:
            raise InvalidInput(
                f"{book_id} is in {last.currency}, the file in {prices.currency}; use another book", field="currency"
            )
        version = last.version + 1 if last is not None else 1
        await store.insert_book_version(connection, book_id, version, prices.currency, effective_from)
        await store.insert_book_windows(connection, book_id, version, prices.windows)
        await store.insert_book_schedules(connection, book_id, version, prices.schedules)
        await store.append_book_prices(connection, book_id, version, prices.rows)
        await store.lock_state(connection)  # from here on all charging waits
        changed = await store.bump(connection, "books_version")
        await store.set_book_version_changed(connection, book_id, version, changed)
        if is_default:
            order = [row.book_id for row in await store.book_order(connection) if row.scope == "default"]
            if book_id not in order:
                await store.clear_book_order(connection, "default", "")
                await store.insert_book_order(connection, "default", "", [*order, book_id])
        await retrying.prices_changed(connection, of_rentals=any(row.product == RENTAL for row in prices.rows))
    return version


async def set_default_books(engine: AsyncEngine, book_ids: Sequence[str]) -> None:
    """The books that are asked for everybody, in this order, after all others."""
    await _order_books(engine, "default", "", book_ids)


async def set_book_of(
    engine: AsyncEngine, scope: Literal["account", "organization"], subject: str, book_id: str | None
) -> None:
    """Name the book of an account (asked first) or of an organization (asked before the default ones); None takes it back."""
    await _order_books(engine, scope, subject, [book_id] if book_id is not None else [])


async def _order_books(engine: AsyncEngine, scope: str, subject: str, book_ids: Sequence[str]) -> None:
    if len(set(book_ids)) != len(book_ids):
        raise InvalidInput("names a book twice", field="books")
    async with transaction(engine) as connection:
        await store.lock_state(connection)
        await store.bump(connection, "books_version")
        await store.clear_book_order(connection, scope, subject)
        if book_ids:
            await store.insert_book_order(connection, scope, subject, book_ids)
        await retrying.prices_changed(connection, of_rentals=True)


async def books(engine: AsyncEngine) -> list[BookListing]:
    """Every version of every book."""
    async with transaction(engine) as connection:
        return [
            BookListing(row.book_id, row.version, row.currency, row.effective_from, row.imported_at, row.prices)
            for row in await store.book_listing(connection)
        ]


async def book(engine: AsyncEngine, book_id: str) -> list[BookListing]:
    """The versions of one book, the first first. `NotFound` when there is none."""
    async with transaction(engine) as connection:
        return await _book(connection, book_id)


async def _book(connection: AsyncConnection, book_id: str) -> list[BookListing]:
    listed = [
        BookListing(row.book_id, row.version, row.currency, row.effective_from, row.imported_at, row.prices)
        for row in await store.book_listing(connection, book_id)
    ]
    if not listed:
        raise NotFound(f"there is no price book {book_id}; `tollbook price list` shows them", field="book")
    return listed


async def book_version(
    engine: AsyncEngine, book_id: str, version: int | None = None, *, at: datetime | None = None
) -> BookVersion:
    """One version with all its prices: the one named, or the one that holds at an instant (else now)."""
    async with transaction(engine) as connection:
        listed = await _book(connection, book_id)
        if version is None:
            moment = at or await store.clock_now(connection)
            holding = [each for each in newest_first(listed) if each.effective_from <= moment]
            if not holding:
                raise NotFound(f"{book_id} has no version that holds at {instant_text(moment)}", field="at")
            found = holding[0]
        else:
            named = [each for each in listed if each.version == version]
            if not named:
                numbers = ", ".join(str(each.version) for each in listed)
                raise NotFound(f"{book_id} has no version {version}; it has {numbers}", field="version")
            found = named[0]
        return await store.book_version(connection, found)


async def prices_of_number(
    engine: AsyncEngine, book_id: str, number: str, version: int | None = None, *, at: datetime | None = None
) -> tuple[datetime, list[Price]]:
    """The instant asked for (else now), and what a use of this number that begins then costs by one book: a price for each
    product that has one. A version that is named is asked whether it holds then or not."""
    async with transaction(engine) as connection:
        moment = at or await store.clock_now(connection)
    found = await book_version(engine, book_id, version, at=moment)
    compiled = PriceBook(book_id, [replace(found, effective_from=min(found.effective_from, moment))])
    prices = [compiled.find(product, number, moment) for product in products_of_number(number)]
    return moment, [price for price in prices if price is not None]


# ---- before a call -------------------------------------------------------------------------------------------------


async def quote(
    engine: AsyncEngine,
    account_id: str,
    called: str,
    *,
    direction: Direction = "outbound",
    caller: str | None = None,
    at: datetime | None = None,
    profile: str | None = None,
    memory: Memory | None = None,
) -> Quote:
    """What a call that begins at an instant (else now) costs a minute, and what it may cost; see `quoting.quote`.

    ``memory`` is what one who asks often keeps: then all is looked up in it, and one small row is read to know that nothing
    has changed. Without it the registry and all books are read each time.
    """
    kept = memory or Memory()
    async with transaction(engine) as connection:
        await kept.refresh(connection, await store.read_state(connection))
        moment = at or await store.clock_now(connection)
    account = kept.registry.accounts.get(account_id)
    if account is None:
        raise NotFound(f"there is no account {account_id}", field="account_id", code="unknown_account")
    return quoting.quote(
        account, kept.prices, kept.maximum_prices, direction=direction, called=called, caller=caller, at=moment,
        profile=profile,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MaximumPrice:
    """What a minute may cost at most, by whose word; no profile: for the account as a whole."""

    outbound_profile: str | None
    price: str
    currency: str
    set_at: datetime
    set_by: str


async def maximum_prices(engine: AsyncEngine, account_id: str) -> list[MaximumPrice]:
    """The maximum prices of an account and of its outbound profiles, the account's first."""
    async with transaction(engine) as connection:
        return [
            MaximumPrice(
                row.outbound_profile or None, format_nano(row.price_nano), row.currency, row.set_at, row.set_by
            )
            for row in await store.maximum_prices(connection, account_id)
            if row.price_nano is not None
        ]


async def set_maximum_price(
    engine: AsyncEngine, account_id: str, price: str | None, by: str, *, profile: str | None = None
) -> None:
    """Say what a minute may cost at most from now on, for an account or an outbound profile of it; None lifts it.

    The price is in the account's currency and without fees. Both maxima hold where both are set. Every word is kept.
    """
    price_nano = None if price is None else parse_amount(price, field="max_price")
    if price_nano is not None and price_nano > CHARGE_NANO_MAX:
        raise InvalidInput(f"must be at most {format_nano(CHARGE_NANO_MAX)}", field="max_price")
    if profile is not None and re.fullmatch(ID_PATTERN, profile) is None:
        raise InvalidInput('must hold only letters, digits, "_", "." and "-"', field="outbound_profile")
    async with transaction(engine) as connection:
        await store.lock_state(connection)
        found = await store.timelines(connection, [("account", account_id)])
        if not found:
            raise NotFound(f"there is no account {account_id}", field="account_id", code="unknown_account")
        currency = found["account", account_id]["currency"]
        await store.bump(connection, "books_version")
        await store.append_maximum_price(connection, account_id, profile or quoting.WHOLE, price_nano, currency, by)


# ---- the registry as usage knows it --------------------------------------------------------------------------------


async def registry_received(engine: AsyncEngine) -> list[LinkMark]:
    """Up to where each link of the registry's topics is known here: what an importer waits for before it publishes."""
    names = [topic.name for topic in REGISTRY_TOPICS]
    async with transaction(engine) as connection:
        return [LinkMark(*row) for row in await store.registry_received(connection, names)]


# ---- charges -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExplainedCharge:
    """A charge with every column of its row, the steps of its arithmetic and who pays and why, one sentence each, and the
    charge that reverses it."""

    charge: dict[str, Any]
    steps: tuple[str, ...]
    who_pays: tuple[str, ...]
    reversed_by: UUID | None = None


async def charge(engine: AsyncEngine, charge_id: UUID) -> ExplainedCharge:
    """One charge, explained to the last digit. `NotFound` when there is none of this id."""
    async with transaction(engine) as connection:
        row = await store.charge_by_id(connection, charge_id)
        if row is None:
            raise NotFound(f"there is no charge {charge_id}", field="charge_id")
        price = await _price(
            connection, row.book_id, row.book_version, row.currency, row.product, row.matched, row.window
        )
        windows = {each.window_id: each for each in await store.book_windows(connection, row.book_id, row.book_version)}
        schedules = await store.book_schedules(connection, row.book_id, row.book_version)
        reversal = await store.reversal_of(connection, row)
        charged, surcharge = _charge(row), None
        more = charged["surcharge"]
        if more is not None:
            place = more["book_id"], more["book_version"], row.currency, SURCHARGE, more["matched"], more.get("window")
            surcharge = await _price(connection, *place)
        account, resource = await _account_and_resource(connection, row)
        moved = await reassignments_of.explained(connection, charged)
    if price is None or (more is None) != (surcharge is None):
        raise NotFound(f"the price of charge {charge_id} is gone", field="charge_id")
    share = None
    if price.schedule:
        of_price = next(each for each in schedules if each.schedule_id == price.schedule)
        price = structs.replace(price, tiers=of_price)
        share = Share(row.counted_before, row.counted_after, row.amount_nano)
    steps = explain(price, row.used, row.per, share, surcharge)
    if row.reverses is not None and share is None:
        steps = (*steps, f"taken back: {format_nano(row.amount_nano)} {row.currency}")
    if price.window:
        began = row.event_time - timedelta(seconds=row.duration_s)
        steps = (windows[price.window].explain(began), *steps)
    reversed_by = reversal.charge_id if reversal is not None else None
    return ExplainedCharge(charged, steps, (*who_pays(charged, account, resource), *moved), reversed_by)


async def _account_and_resource(
    connection: AsyncConnection, row: store.Found
) -> tuple[Account | None, ResourceTimeline | None]:
    """The timelines of a charge's account, and of its outbound profile or the account's number."""
    keys = ("account", row.account_id), ("resource", row.outbound_profile or "")
    found = await store.timelines(connection, keys)
    account = Account(AccountTimeline.model_validate_json(json.dumps(found[keys[0]]))) if keys[0] in found else None
    documents = [found[keys[1]]] if keys[1] in found else []
    number = row.origin if row.product == DATA else row.destination  # data goes to a network
    if row.outbound_profile is None and number:
        documents += await store.numbers(connection, number)
    for document in documents:
        resource = ResourceTimeline.model_validate_json(json.dumps(document))
        for interval in resource.owned():
            until = interval.end is None or row.event_time < interval.end
            if interval.account_id == row.account_id and interval.start <= row.event_time and until:
                return account, resource
    return account, None


def _charge(row: store.Found) -> dict[str, Any]:
    return dict(row._mapping) | {"surcharge": json.loads(row.surcharge) if row.surcharge is not None else None}


async def _price(
    connection: AsyncConnection,
    book_id: str,
    version: int,
    currency: str,
    product: str,
    prefix: str,
    window: str | None,
) -> Price | None:
    row = await store.price_row(connection, book_id, version, product, prefix, window or "")
    return Price(book_id, version, currency, *structs.astuple(row)) if row is not None else None


async def charges(engine: AsyncEngine, account_id: str, *, limit: int = 100) -> list[dict[str, Any]]:
    """The latest charges of an account, latest first."""
    async with transaction(engine) as connection:
        return [_charge(row) for row in await store.charges_of(connection, account_id, limit)]


LineOf = tuple[str, str, str, str | None, bool, str]
"""What the charges of a line have in common: account, product, cost center (empty: none), period, whether prepaid, currency."""


@dataclass(slots=True)
class ChargeTotal:
    """Of one (group, bill_to), or of one account in it: how many charges, their exact sum, the XOR of their hashes.

    ``lines`` says of each line how many charges it has, their quantity and their exact sum.
    """

    count: int = 0
    amount_nano: int = 0
    xor: int = 0
    accounts: dict[str, ChargeTotal] = field(default_factory=dict)
    lines: dict[LineOf, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, amount_nano: int, hashed: int) -> None:
        self.count += 1
        self.amount_nano += amount_nano
        self.xor ^= hashed


async def charge_totals(engine: AsyncEngine) -> dict[tuple[str | None, str | None], ChargeTotal]:
    """Sums over every charge by (group, bill_to), with those of each account; (None, None) is what trials used.

    Adds up one by one, for the auditor; takes seconds per million charges and little memory.
    """
    totals: dict[tuple[str | None, str | None], ChargeTotal] = defaultdict(ChargeTotal)
    async with transaction(engine) as connection:
        async for row in store.all_charges(connection):
            hashed = evidence_hash(row.charge_id)
            total = totals[row.group_id, row.bill_to]
            total.add(row.amount_nano, hashed)
            total.accounts.setdefault(row.account_id, ChargeTotal()).add(row.amount_nano, hashed)
            is_prepaid = row.plan != "invoiced"
            line = (row.account_id, row.product, row.cost_center_id or "", row.period, is_prepaid, row.currency)
            count, quantity, nano = total.lines.get(line, (0, 0, 0))
            total.lines[line] = count + 1, quantity + row.quantity, nano + row.amount_nano
    return dict(totals)


async def charge_links(engine: AsyncEngine) -> list[LinkMark]:
    """The last seq of every link of `usage.charges`."""
    async with transaction(engine) as connection:
        return await marks(connection, RUNTIME, [USAGE_CHARGES.name])


# ---- simulation ----------------------------------------------------------------------------------------------------


async def simulate(
    engine: AsyncEngine,
    book: PriceFile | str,
    start: datetime,
    end: datetime,
    *,
    in_place_of: str | None = None,
    account_id: str | None = None,
    group_id: str | None = None,
) -> Replay:
    """What was charged in [start, end) by event time beside what it would be by a draft: a price file, or a loaded book.

    The draft takes the place of a book, or stands before all. Nothing is written: the transaction cannot. Charges are
    read in pieces; memory is that of accounts, destinations and the books.
    """
    if start >= end:
        raise InvalidInput("must be after --from", field="to")
    async with transaction(engine) as connection:
        await store.read_only(connection)
        memory = Memory()
        await memory.refresh(connection, await store.read_state(connection))
        for name, named in (("book", book), ("in_place_of", in_place_of)):
            if isinstance(named, str) and not memory.prices.books.has(named):
                raise NotFound(f"there is no price book {named}; `tollbook price list` names them", field=name)
        if account_id is not None and account_id not in memory.registry.accounts:
            raise NotFound(f"there is no account {account_id}", field="account")
        drafted = draft_of(book) if isinstance(book, PriceFile) else memory.prices.books.book(book)
        replay = Replay(Draft(drafted, in_place_of), memory.registry, memory.prices)
        async for charge in store.recorded_uses(connection, start, end, account_id, group_id):
            replay.add(charge)
    replay.finish()
    return replay


# ---- quarantine ----------------------------------------------------------------------------------------------------


async def parked(
    engine: AsyncEngine,
    *,
    states: Sequence[str] = ("quarantined",),
    reason: str | None = None,
    limit: int = 100,
) -> list[ParkedRow]:
    """Records that are out of the stream, in the order they came, with reason, field, bytes and what could be read."""
    async with transaction(engine) as connection:
        return await parking.listing(connection, RUNTIME, states=states, reason=reason, limit=limit)


async def replay(engine: AsyncEngine, by: str, *, ids: Sequence[int] | None = None, reason: str | None = None) -> int:
    """Ask for quarantined records to run again, by id or by reason; returns how many were asked for."""
    return await _ask(engine, "replaying", by, ids, reason)


async def discard(engine: AsyncEngine, by: str, *, ids: Sequence[int]) -> int:
    """Give quarantined records up, each by its id; returns how many."""
    return await _ask(engine, "discarding", by, ids, None)


async def _ask(
    engine: AsyncEngine,
    decision: Literal["replaying", "discarding"],
    by: str,
    ids: Sequence[int] | None,
    reason: str | None,
) -> int:
    if ids is None and reason is None:
        raise InvalidInput("name the records by id or by reason", field="ids")
    async with transaction(engine) as connection:
        return await parking.ask(connection, RUNTIME, decision, by, ids=ids, reason=reason)


# ---- cuts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CutState:
    """How far a cut has come here. ``held`` says of each group that was held whether it has passed since."""

    cutoff_id: UUID
    boundary: datetime
    taken_at: datetime | None
    passed_at: datetime | None
    positions: dict[tuple[str, int], int]
    begins: dict[tuple[str, int], int]
    held: dict[str, bool]
    holders: tuple[Holder, ...]


async def cuts(engine: AsyncEngine) -> list[CutState]:
    """Every cut, with the records that hold a group now: which, why, and of which account."""
    async with transaction(engine) as connection:
        memory = Memory()
        await memory.refresh(connection, await store.read_state(connection))
        rows = [*await store.taken_cuts(connection), *await store.cuts_to_take(connection)]
        waiting = await store.records_that_may_hold(connection)
        born = await lanes_of(connection, RUNTIME, EVENTS)
    states = []
    for row in rows:
        cut = memory.cuts.at(row.boundary)
        found = [
            holder
            for holder in (holders(memory.registry, cut, waiting) if cut is not None else ())
            if cut is not None and not (cut.is_passed and cut.has_passed(holder.group_id))
        ]
        states.append(
            CutState(
                row.cutoff_id,
                row.boundary,
                row.taken_at,
                row.passed_at,
                dict(cut.positions) if cut is not None else {},
                begins_of(cut, memory.cuts.before(cut), born) if cut is not None else {},
                dict(cut.held) if cut is not None else {},
                tuple(found),
            )
        )
    return states


# ---- the auditor ---------------------------------------------------------------------------------------------------


async def class_counts(engine: AsyncEngine) -> dict[tuple[str, int], dict[int, dict[str, int]]]:
    """Per usage partition and segment (the number of cuts taken before its records came): records of each class."""
    found: dict[tuple[str, int], dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    async with transaction(engine) as connection:
        for topic, partition, segment, name, number in await store.class_counts(connection):
            found[topic, partition][segment][name] = number
    return {lane: dict(segments) for lane, segments in found.items()}


async def classify(
    engine: AsyncEngine, topic: str, partition: int, records: Sequence[tuple[int, Headers, bytes | None]]
) -> Mapping[int, str | None]:
    """The class of each (offset, headers, value) of a partition, found again by looking up the identity and the parked record.

    ``None``: in no class. That is right only for a record that was not handled yet, or whose identity is forgotten
    (more than 36 days after it came).
    """
    publisher = USAGE_EVENTS.member(topic)
    digests: dict[int, bytes] = {}
    for offset, headers, value in records:
        try:
            event = decode(structured(headers, value))
        except EventRefused:
            continue
        digests[offset] = identity_digest(publisher, event.source, event.event_id)
    async with transaction(engine) as connection:
        stands = await store.parked_states(connection, topic, partition, [offset for offset, _, _ in records])
        generations = await store.existing_generations(connection)
        known = await store.accepted_records(connection, generations, sorted(set(digests.values())))
    digests_known = {row.digest.bytes for row in known}
    accepted = {(row.digest.bytes, row.partition, row.offset): row.state for row in known}
    classes: dict[int, str | None] = {}
    for offset, _, _ in records:
        row = stands.get(offset)
        if row is not None and row.state != "replayed":
            classes[offset] = "waiting" if row.reason == "waiting" else "quarantined"
            continue
        digest = digests.get(offset)
        if digest is None or digest not in digests_known:
            classes[offset] = None
        else:
            state = accepted.get((digest, partition, offset))
            classes[offset] = DUPLICATE if state is None else CLASS_OF_STATE[state]
    return classes


async def corrected_from(engine: AsyncEngine) -> datetime | None:
    """From which event time on charges are still to be moved or re-rated, as the registry or people decided; None when all are.
    No cut of a boundary after it passes before."""
    async with transaction(engine) as connection:
        return await closing.corrected_from(connection)


@dataclass(frozen=True, slots=True)
class TiersAndReversals:
    """What hangs together among charges: how many counters and reversals there are, and what is wrong, one sentence each."""

    counters: int
    reversals: int
    findings: tuple[str, ...]


async def tiers_and_reversals(engine: AsyncEngine) -> TiersAndReversals:
    """Count every counter of tiers again from its charges, which must cost what its schedule says, and hold every reversal
    against the charge that it takes back; of what was corrected one charge stands at most, and of a re-rate as many are replaced
    as it says, and after a change of the registry every charge of its time stands where it says. A batch commits all of these
    together, so this may be asked at any time."""
    findings: list[str] = []
    async with transaction(engine) as connection:
        await rerate_store.one_snapshot(connection)
        counters = await store.counters_with_charges(connection)
        schedules = await revising.schedules_of(connection, [row for row in counters if row.quantity is not None])
        reversals = await store.reversals_beside_charges(connection)
        twice = await store.charged_twice(connection)
        otherwise = await rerate_store.plans_that_settled_otherwise(connection)
        not_moved = await reassignments_of.audited(connection)
    for row in counters:
        name = f"the counter of {row.account_id} for {row.product} in {row.period} by {row.schedule}"
        if (row.counted or 0) != (row.quantity or 0):
            findings.append(f"{name} stands at {row.counted or 0}, its charges sum to {row.quantity or 0}")
        elif row.quantity is not None:
            cost, sum_nano = schedules[row.schedule].total_nano(int(row.quantity), row.per), int(row.amount_nano)
            if cost != sum_nano:
                findings.append(f"{name} costs {format_nano(cost)}, its charges sum to {format_nano(sum_nano)}")
    for id in reversals.wrong:
        findings.append(f"reversal {id} is not the one exact negative of the charge that it names")
    for row in twice:
        findings.append(f"event {row.event_id} of {row.source}, published by {row.publisher}, is charged twice")
    for row in otherwise:
        findings.append(
            f"re-rate {row.plan_id} says that it settled {row.told} charges; {row.found} were taken back and replaced"
        )
    return TiersAndReversals(len(counters), reversals.number, (*findings, *not_moved))


async def group_passes(engine: AsyncEngine) -> dict[tuple[UUID, str], datetime | None]:
    """When each group that a cut held has passed it, by (cut-off, group); None while it is held."""
    async with transaction(engine) as connection:
        return {(row.cutoff_id, row.group_id): row.passed_at for row in await store.held_groups(connection)}


async def decided_records(engine: AsyncEngine) -> dict[tuple[str, int, int], datetime]:
    """(topic, partition, offset) of the records that have left quarantine or a wait to run again, and when."""
    async with transaction(engine) as connection:
        rows = await store.decided_records(connection)
    return {(row.topic, row.partition, row.offset): row.decided_at for row in rows}
