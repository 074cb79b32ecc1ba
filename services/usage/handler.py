"""One batch of usage events: read, admit, recognise, rate, stamp, publish; and what the registry and closing say.

Every record ends in exactly one class: rated, rated_ungrouped, duplicate, not_billable, voided, quarantined or waiting.
Source: domain, section 3; designs/identity; designs/closing, lines 7 and 8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from typing import Any

from asyncpg.pgproto.pgproto import UUID as DriverUUID
from msgspec import UNSET, Struct
from msgspec.json import Encoder

from contracts.closing import Covered, Cutoff
from contracts.groups import AccountTimeline, CostCenter, Publisher, ResourceTimeline
from contracts.topics import USAGE_CHARGES, USAGE_EVENTS
from services.kernel.errors import Corrupt
from services.kernel.ids import charge_id_bytes, identity_digest
from services.kernel.money import format_nano
from services.kernel.period import instant_text, period_of
from services.runtime.records import Record
from services.runtime.work import Work
from services.usage import reassignments, renting, retrying, revising, store
from services.usage.cloudevents import structured
from services.usage.events import Event, EventRefused, Void, decode
from services.usage.memory import Memory
from services.usage.rating import (
    Counted,
    NoPrice,
    NotBillable,
    Rated,
    TooLarge,
    WrongCurrency,
    WrongUnit,
    per_of,
    rate,
)  # fmt: skip
from services.usage.reassigning import NAMED_ACCOUNT, NAMED_CENTER
from services.usage.registry import ANY_TIME_MS, Account, Source, Standing
from services.usage.revising import CHARGED, NOT_BILLABLE, RATED, RATED_UNGROUPED, VOIDED
from services.usage.stamping import BillTo
from services.usage.tiers import CounterKey, Movement, Share, apportion, moved, told
from services.usage.writing import Told

CLASS_OF_STATE = {
    RATED: "rated", RATED_UNGROUPED: "rated_ungrouped", NOT_BILLABLE: "not_billable", VOIDED: "voided",
}  # fmt: skip
DUPLICATE = "duplicate"
PARKED = ("quarantined", "waiting")
OUT_OF_TIME = ("too_old", "in_future")
APPENDED_FROM = 100  # identities: for fewer, the statements around the COPY cost more than it saves
REPEATS_LAST = 50  # batches: repeats come in swarms, of a publisher or a partition that starts again
NO_TIER: tuple[str | None, int | None, int | None] = (None, None, None)

_encode = Encoder().encode


class Usage(Struct, gc=False):
    """An admitted event: readable, sent by one who may, for an account that was open."""

    record: Record
    event: Event | Void
    account: Account
    publisher: Source
    digest: bytes


class Acceptable(Struct, gc=False):
    """What the event becomes if nobody has its identity yet. ``rated`` is None for one that costs nothing; ``share`` comes
    with an amount that a counter gave."""

    usage: Usage
    state: int
    rated: Rated | Counted | None = None
    standing: Standing | None = None
    bill_to: str | None = None
    share: Share | None = None


class Rejected(Struct, gc=False):
    """Why the event is quarantined if nobody has its identity yet."""

    usage: Usage
    reason: str
    message: str
    field: str | None = None


class Waiting(Struct, gc=False):
    """The event skips a cut that has not passed yet."""

    usage: Usage


class Holding(Struct, gc=False):
    """The revision of a fact that holds."""

    revision: int
    state: int
    content: bytes


class Revision(Struct, gc=False):
    """What stands already of the facts that a batch revises: rows of the current generation, and the live charges."""

    locked: dict[bytes, store.Found]
    reversals: dict[bytes, revising.Reversal]


class UsageEvents:
    """The handler of `usage.events.*`, with what its worker keeps in memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._repeats_expected = 0  # in so many batches

    async def handle(self, work: Work, records: list[Record]) -> None:
        """One batch, or one load of the replay lane."""
        await self.memory.share(work.connection)
        undecided = [usage for record in records if (usage := self._admit(work, record)) is not None]
        if any(usage.event.revision for usage in undecided):
            await store.share_charges(work.connection)
        is_raced = False  # another worker was faster with all that was left; its rows can be held now
        while undecided:
            left = await self._decide(work, undecided)
            is_stuck = len(left) == len(undecided)
            if is_stuck and is_raced:  # an identity is never deleted, so this cannot be
                raise Corrupt("an identity is neither new nor known", code="identity_lost")
            undecided, is_raced = left, is_stuck
        await self._count(work, records)

    async def _decide(self, work: Work, usages: list[Usage]) -> list[Usage]:
        """Accept, recognise, reject or let wait; returns those to look at again, since what was to come before them did not.

        Of several revisions of a fact the highest that can be accepted is, and absorbs the others.
        """
        memory = self.memory
        digests = [usage.digest for usage in usages]
        sealed = await store.known_identities(work.connection, memory.sealed_generations, digests)
        first: dict[bytes, Acceptable] = {}
        others: list[Acceptable | Rejected | Waiting] = []
        for usage in usages:
            event, row = usage.event, sealed.get(usage.digest)
            if row is not None and row.revision == event.revision and row.content.bytes == event.content:
                usage.record.verdict = DUPLICATE
                continue
            outcome = self._rate(usage)
            if isinstance(outcome, Acceptable) and (row is None or row.revision < event.revision):
                rival = first.get(usage.digest)
                if rival is None:
                    first[usage.digest] = outcome
                    continue
                if rival.usage.event.revision < event.revision:
                    first[usage.digest], outcome = outcome, rival
            others.append(outcome)
        await self._note_sources(work, first, others)

        revised = sorted(digest for digest, each in first.items() if each.usage.event.revision)
        revision = await self._look_back(work, revised, sealed, first, others) if revised else Revision({}, {})
        accepted = await self._accept(work, first, revision, has_revisions=bool(revised))
        unclear = [digest for digest in first if digest not in accepted]
        unclear += [other.usage.digest for other in others if other.usage.digest not in first]
        current = await store.known_identities(work.connection, (memory.generation,), unclear)
        left: list[Usage] = []
        absorbed: list[Usage] = []
        for outcome in [*(first[digest] for digest in first if digest not in accepted), *others]:
            usage = outcome.usage
            holding = self._holding(usage.digest, first if usage.digest in accepted else {}, current, sealed)
            if holding is not None and usage.event.revision <= holding.revision:
                self._recognise(work, usage, holding, absorbed)
            elif isinstance(outcome, Rejected):
                work.quarantine(usage.record, outcome.reason, outcome.message, field=outcome.field)
            elif isinstance(outcome, Waiting):
                work.wait(usage.record, "waits until the cut that it came after has passed its group")
            else:
                left.append(usage)
        if absorbed:
            await self._absorb(work, absorbed)
        reversals = [reversal for digest, reversal in revision.reversals.items() if digest in accepted]
        charges = [each for digest, each in first.items() if digest in accepted and each.rated is not None]
        if charges or reversals:
            await self._charge(work, reversals, charges)
        return left

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def _admit(self, work: Work, record: Record) -> Usage | None:
        """The event in a record whose publisher may send it; else None, quarantined."""
        registry = self.memory.registry
        try:
            event = decode(structured(record.headers, record.value) if record.headers else record.value)
        except EventRefused as refused:
            work.quarantine(record, refused.reason, refused.message, field=refused.field)
            return None
        name = USAGE_EVENTS.member(record.topic)
        publisher = registry.publishers.get(name)
        account_id, field = event.account_id if isinstance(event, Void) else event.use.account_id, "data.account_id"
        if account_id is None and isinstance(event, Event):
            use = event.use
            account_id, field = registry.owner_of(use.destination, event.event_time), use.priced_by
        account = registry.accounts.get(account_id) if account_id is not None else None
        problem: tuple[str, str, str | None] | None = None
        if publisher is None:
            problem = "not_permitted", f"the publisher {name} is not registered", None
        elif event.source not in publisher.sources:
            problem = "not_permitted", "is not a source of this publisher; add it, and replay the record", "source"
        elif account_id is None:
            message = "was nobody's number at the time of the event; register it, and the record is retried"
            problem = "unknown_number", message, field
        elif account is None:
            problem = "unknown_account", "is not registered; register the account, and the record is retried", field
        elif account.organization_id not in publisher.organizations:
            message = "is of an organization that this publisher may not bill; let it, and replay the record"
            problem = "not_permitted", message, field
        elif isinstance(event, Void):  # takes back what was used at any time
            return Usage(record, event, account, publisher, identity_digest(name, event.source, event.event_id))
        elif event.event_time < account.opened_at:
            opened = instant_text(account.opened_at)
            message = f"was opened at {opened}, after the event; who used before is created with an earlier opened_at"
            problem = "unknown_account", message, field
        elif account.closed_at is not None and event.event_time >= account.closed_at:
            problem = "account_closed", f"was closed at {instant_text(account.closed_at)}, before the event", field
        else:
            return Usage(record, event, account, publisher, identity_digest(name, event.source, event.event_id))
        reason, message, where = problem
        work.quarantine(record, reason, message, field=where)
        return None

    def _rate(self, usage: Usage) -> Acceptable | Rejected | Waiting:
        """What an event becomes that nobody has seen: time, price, payer and invoice, in this order."""
        record, event, account = usage.record, usage.event, usage.account
        if isinstance(event, Void):
            return Acceptable(usage, VOIDED)
        event_time = event.event_time
        if outside := _outside(usage, event) or self._forgotten(usage, event):
            return outside
        standing = account.standing_at(event_time, self.memory.prices)
        if standing is None:
            return Rejected(usage, "unknown_account", "had no plan at the time of the event", "data.account_id")
        currency = standing.currency
        outcome = rate(event.use, event_time, standing.books, currency)
        match outcome:
            case Rated() | Counted():
                pass
            case NotBillable():
                return Acceptable(usage, NOT_BILLABLE)
            case NoPrice(message=message):
                return Rejected(usage, "no_price", message, event.use.priced_by)
            case WrongCurrency(price=price):
                message = (
                    f"the price of {price.prefix} in {price.book_id} is in {price.currency}, the account in {currency}"
                )
                return Rejected(usage, "wrong_currency", message, "data.account_id")
            case WrongUnit(price=price):
                message = f"the price of {price.product} in {price.book_id} is for {price.unit}; use that unit"
                return Rejected(usage, "wrong_unit", message, "data.unit")
            case TooLarge(amount_nano=nano):
                message = (
                    f"it would cost {format_nano(nano)}, more than one charge may be; mend the price or the quantity"
                )
                return Rejected(usage, "invalid_event", message, event.use.measured_by)
        payer, period, cuts = standing.payer, standing.period, self.memory.cuts
        if payer is None or period is None:
            return Acceptable(usage, RATED_UNGROUPED, outcome, standing)
        bill_to = period.name
        if cuts.at(period.end) is not None:
            lane = (record.topic, record.partition)
            stamp = cuts.bill_to(payer.group_id, payer.zone, period, lane, record.offset, replayed=record.replayed)
            if stamp.waits:
                return Waiting(usage)
            bill_to = stamp.period
        return Acceptable(usage, RATED, outcome, standing, bill_to)

    def _forgotten(self, usage: Usage, event: Event) -> Rejected | None:
        """A record whose replay comes so late that nobody knows whether its event or a higher revision was accepted meanwhile.
        The fees of numbers are published once and never revised, so they are due however old."""
        if (
            not usage.record.replayed
            or event.event_time >= self.memory.remembered_from
            or usage.publisher.late_ms == ANY_TIME_MS
        ):
            return None
        message = (
            "was so long ago that its identity may be forgotten, and it could be charged a second time; if it never was, "
            "publish it anew, under another id and with a time that is accepted"
        )
        return Rejected(usage, "too_old", message, event.use.dated_by)

    async def _look_back(
        self,
        work: Work,
        digests: list[bytes],
        sealed: Mapping[bytes, store.Found],
        first: dict[bytes, Acceptable],
        others: list[Acceptable | Rejected | Waiting],
    ) -> Revision:
        """Hold the rows of the facts that are revised, and find the charges to take back.

        What cannot be accepted for what it finds moves from ``first`` to ``others``.
        """
        memory = self.memory
        locked = await store.lock_identities(work.connection, memory.generation, digests)
        holding = {digest: row for digest in digests if (row := locked.get(digest) or sealed.get(digest)) is not None}
        unknown = {digest: first[digest].usage.event.revision for digest in digests if digest not in holding}
        for digest in await revising.charged_long_ago(work.connection, memory, unknown):
            message = "revises an event that came so long ago that it cannot be corrected by itself; correct its charge by hand"
            others.append(Rejected(first.pop(digest).usage, "too_old", message, "id"))
        for digest in sorted(unknown.keys() & first.keys()):
            usage = first[digest].usage
            groups = [payer.group_id for payer in usage.account.payers]
            if memory.cuts.follows(groups, (usage.record.topic, usage.record.partition), usage.record.offset):
                others.append(Waiting(usage))  # what it revises may have come before the cut, in a lane that is slower
                del first[digest]
        for digest, row in holding.items():
            if row.revision >= first[digest].usage.event.revision:
                others.append(first.pop(digest))
        live = await revising.live_charges(
            work.connection,
            {digest: row for digest, row in holding.items() if digest in first and row.state in CHARGED},
        )
        schedules = await revising.schedules_of(work.connection, live.values())
        reversals = {}
        for digest, charge in live.items():
            usage = first[digest].usage
            stamp = BillTo("") if charge.group_id is None else revising.bill_to(memory, charge, usage.record)
            if stamp is None:
                message = f"nobody knows the billing group {charge.group_id} of the charge that it takes back"
                others.append(Rejected(first.pop(digest).usage, "unknown_account", message, "id"))
            elif stamp.waits:
                others.append(Waiting(first.pop(digest).usage))
            else:
                reversals[digest] = revising.Reversal(
                    charge, stamp.period or None, usage.event.revision, usage.record.partition, usage.record.offset,
                    schedules.get(charge.schedule),
                )  # fmt: skip
        return Revision(locked, reversals)

    def _holding(
        self,
        digest: bytes,
        accepted: Mapping[bytes, Acceptable],
        current: Mapping[bytes, store.Found],
        sealed: Mapping[bytes, store.Found],
    ) -> Holding | None:
        """The revision of a fact that holds now, if any does: what is current is higher than what is sealed."""
        if (each := accepted.get(digest)) is not None:
            event = each.usage.event
            return Holding(event.revision, each.state, event.content)
        row = current.get(digest) or sealed.get(digest)
        return None if row is None else Holding(row.revision, row.state, row.content.bytes)

    def _recognise(self, work: Work, usage: Usage, holding: Holding, absorbed: list[Usage]) -> None:
        """The fact is known in this revision or a higher one: the same event again, or a lower revision, is counted, another
        event under its name is a conflict. What a void absorbs is noted."""
        event = usage.event
        if event.revision < holding.revision and holding.state == VOIDED:
            absorbed.append(usage)
        elif event.revision < holding.revision or event.content == holding.content:
            usage.record.verdict = DUPLICATE
        else:
            message = (
                "another event of this source has the same id and revision, and other content; a correction needs a higher"
                " revision, another event another id"
            )
            work.quarantine(usage.record, "conflict", message, field="id")

    async def _absorb(self, work: Work, absorbed: list[Usage]) -> None:
        """Of each revision that a void absorbs, the first record is in its class and all others are duplicates."""
        firsts: dict[tuple[bytes, int], Usage] = {}
        for usage in absorbed:
            usage.record.verdict = DUPLICATE
            firsts.setdefault((usage.digest, usage.event.revision), usage)
        rows = [_identity(usage, VOIDED) for usage in firsts.values()]
        for key in await store.absorb(work.connection, self.memory.generation, rows):
            firsts[key].record.verdict = CLASS_OF_STATE[VOIDED]

    async def _accept(
        self, work: Work, first: dict[bytes, Acceptable], revision: Revision, *, has_revisions: bool
    ) -> set[bytes]:
        """Insert the identities, and let higher revisions hold; returns those that nobody was faster with. The order keeps
        two workers from locking each other."""
        rows: dict[bool, list[store.IdentityRow]] = {True: [], False: []}
        for digest, each in sorted(first.items(), key=_digest_of):
            rows[digest in revision.locked].append(_identity(each.usage, each.state))
        new, higher = rows[False], rows[True]
        accepted = {row[0] for row in higher}
        if new:
            accepted |= await self._insert(work, new, has_revisions=has_revisions)
        if higher:
            await store.revise_identities(work.connection, self.memory.generation, higher)
        for digest in accepted:
            each = first[digest]
            each.usage.record.verdict = CLASS_OF_STATE[each.state]
        return accepted

    async def _insert(self, work: Work, rows: Sequence[store.IdentityRow], *, has_revisions: bool) -> set[bytes]:
        """Insert identities that nobody has; returns those. Nearly always that is all of them: only where one was known, and
        for a while after it, the statement is worth its price that goes around what is known."""
        connection, generation = work.connection, self.memory.generation
        if self._repeats_expected:
            self._repeats_expected -= 1
        elif len(rows) >= APPENDED_FROM:
            if await store.append_identities(connection, generation, rows):
                return {row[0] for row in rows}
            self._repeats_expected = REPEATS_LAST
        return await store.insert_identities(connection, generation, rows, has_revisions=has_revisions)

    async def _charge(self, work: Work, reversals: Sequence[revising.Reversal], charges: Sequence[Acceptable]) -> None:
        """Store and publish what a batch takes back, then its charges in the order of their records.

        Counters are locked after identities and before partitions are opened, in every batch.
        """
        await self._move_counters(
            work,
            [each for each in reversals if each.charge.schedule is not None],
            [each for each in charges if isinstance(each.rated, Counted)],
        )
        await self._open_days(
            work, {each.usage.event.event_time.date() for each in charges if isinstance(each.usage.event, Event)}
        )
        rows = []
        for reversal in reversals:
            row, id, data = reversal.written()
            rows.append(row)
            work.publish(USAGE_CHARGES, reversal.charge.account_id, id, data)
        for each in charges:
            row, id, data = self._charge_of(each)
            rows.append(row)
            work.publish(USAGE_CHARGES, each.usage.account.account_id, id, data)
        await store.append_charges(work.connection, rows)

    async def _move_counters(
        self, work: Work, reversals: Sequence[revising.Reversal], charges: Sequence[Acceptable]
    ) -> None:
        """Take quantities out of their counters and let others in, all at once; what that costs is each one's amount."""
        movements = [*(each.movement() for each in reversals), *map(movement_of, charges)]
        if not movements:
            return
        by = moved(movements)
        after = await store.move_counters(work.connection, by)
        shares = apportion(movements, {key: quantity - by[key] for key, quantity in after.items()})
        for reversal, share in zip(reversals, shares[: len(reversals)], strict=True):
            reversal.share = share
        entered = zip(charges, movements[len(reversals) :], shares[len(reversals) :], strict=True)
        for each, movement, share in entered:
            if each.rated is not None:
                each.rated = Rated(each.rated.price, movement.quantity, movement.per, share.amount_nano)
            each.share = share

    def _charge_of(self, each: Acceptable) -> tuple[tuple[Any, ...], str, bytes]:
        """One charge: its row in the order of `CHARGE_COLUMNS`, its id, and the data that is published."""
        usage, rated = each.usage, each.rated
        event, account, record = usage.event, usage.account, usage.record
        standing = each.standing
        if not isinstance(rated, Rated) or isinstance(event, Void) or standing is None:
            raise Corrupt("a charge without a price", code="charge_unpriced")
        price, use = rated.price, event.use
        id = DriverUUID(charge_id_bytes(usage.digest, event.revision))
        text = str(id)
        payer, period = standing.payer, standing.period
        group_id = payer.group_id if payer is not None else None
        period_name = period.name if period is not None else None
        cost_center_id = self.memory.registry.cost_center(account, use, event.event_time)
        named = (NAMED_ACCOUNT if use.account_id is not None else 0) | (
            NAMED_CENTER if cost_center_id is not None and cost_center_id == use.cost_center_id else 0
        )
        kind, name = use.resource
        outbound_profile = name if kind == "outbound_profile" else None
        publisher_id, used, duration_s, reference = (
            usage.publisher.publisher_id,
            use.used,
            use.duration_s,
            use.reference,
        )
        charge = Told(
            text,
            event.revision,
            None,
            account.account_id,
            account.organization_id,
            standing.plan,
            group_id,
            period_name,
            each.bill_to,
            cost_center_id,
            outbound_profile,
            account.version,
            use.event_time,
            publisher_id,
            event.source,
            event.event_id,
            reference,
            price.product,
            price.unit,
            rated.billed,
            duration_s,
            format_nano(rated.amount_nano),
            price.currency,
            price.book_id,
            price.version,
            price.prefix,
            price.unit_price,
            rated.per,
            price.connection_fee,
            price.minimum,
            price.increment,
            price.window or UNSET,
        )
        share, tier, surcharge = each.share, NO_TIER, None
        if share is not None and price.tiers is not None:
            tier = (price.schedule_version, share.before, share.after)
            charge.unit_price = None  # it has none of its own
            charge.tier = told(price.schedule_version, price.tiers.form, share)
            if share.is_adjustment:
                charge.kind = "tier_adjustment"
        if rated.surcharge is not None:
            charge.surcharge = rated.surcharge.told()
            surcharge = _encode(charge.surcharge).decode()
        row = (
            id,
            event.event_time,
            rated.amount_nano,
            used,
            rated.billed,
            rated.per,
            record.offset,
            record.partition,
            account.version,
            duration_s,
            price.version,
            publisher_id,
            event.source,
            event.event_id,
            reference,
            account.account_id,
            account.organization_id,
            standing.plan,
            group_id,
            period_name,
            each.bill_to,
            cost_center_id,
            outbound_profile,
            use.origin,
            use.destination,
            price.product,
            price.unit,
            price.currency,
            price.book_id,
            price.prefix,
            price.window or None,
            *tier,
            surcharge,
            event.revision,
            None,
            named,
        )
        return row, text, _encode(charge)

    async def _open_days(self, work: Work, days: set[date]) -> None:
        """Partitions for event days that came up for the first time; certain only when this batch is committed."""
        new = days - self.memory.charge_days
        if new:
            await store.open_charge_days(work.connection, new)
            work.after_commit.append(partial(self.memory.charge_days.update, new))

    async def _note_sources(
        self, work: Work, first: Mapping[bytes, Acceptable], others: Sequence[Acceptable | Rejected | Waiting]
    ) -> None:
        """Sources that were seen in a month for the first time; certain only when this batch is committed.

        Whatever became of their events, but for one out of time: it could name any month.
        """
        came = [each.usage for each in first.values()]
        came += [each.usage for each in others if not (isinstance(each, Rejected) and each.reason in OUT_OF_TIME)]
        new = {
            (event.use.event_time[:7], usage.publisher.publisher_id, event.source)
            for usage in came
            if isinstance(event := usage.event, Event)  # a void has no time of its own
        } - self.memory.sources_seen
        if new:
            await store.note_sources(work.connection, new)
            work.after_commit.append(partial(self.memory.sources_seen.update, new))

    async def _count(self, work: Work, records: Sequence[Record]) -> None:
        """Count what was classified here; what was parked is counted where it is told (`rejections`)."""
        counts: dict[bool, Counter[store.ClassKey]] = {False: Counter(), True: Counter()}
        for record in records:
            if record.verdict not in PARKED:
                count_record(self.memory, counts[record.replayed], record)
        for replayed, counted in counts.items():
            await store.add_class_counts(work.connection, counted, replayed=replayed)


def count_record(memory: Memory, counts: Counter[store.ClassKey], record: Record) -> None:
    """Count a record in its class; a replayed one is taken out of the class it was parked in."""
    if record.verdict is None:
        raise Corrupt("a record ended in no class", code="unclassified")
    segment = memory.cuts.segment((record.topic, record.partition), record.offset)
    place = (record.topic, record.partition, segment)
    counts[*place, record.verdict] += 1
    if record.replayed:
        counts[*place, "waiting" if record.was_waiting else "quarantined"] -= 1


def movement_of(each: Acceptable) -> Movement:
    """What an event does to the counter of its account, payer group, month, product and schedule."""
    usage, rated = each.usage, each.rated
    event, schedule = usage.event, rated.price.tiers if rated is not None else None
    standing = each.standing
    if rated is None or schedule is None or isinstance(event, Void) or standing is None:
        raise Corrupt("a charge without a price", code="charge_unpriced")
    price, payer, period = rated.price, standing.payer, standing.period or period_of(event.event_time)
    key = CounterKey(
        usage.account.account_id,
        payer.group_id if payer is not None else "",
        period.name,
        price.product,
        standing.plan != "invoiced",
        price.schedule_version,
    )
    place = (event.event_time, usage.publisher.publisher_id, event.source, event.event_id)
    return Movement(key, schedule, per_of(price, key.period), rated.billed, place)


def _outside(usage: Usage, event: Event) -> Rejected | None:
    """The time tolerance, against the broker's clock of the record."""
    publisher = usage.publisher
    after_ms = event.event_time.timestamp() * 1000 - usage.record.timestamp_ms  # exact: both fit a float's 53 bits
    if after_ms < -publisher.late_ms:
        message = f"is more than {publisher.late_ms / 86_400_000:g} days before the event was published"
        return Rejected(usage, "too_old", message, event.use.dated_by)
    if after_ms > publisher.early_ms:
        message = f"is more than {publisher.early_ms / 60_000:g} minutes after the event was published"
        return Rejected(usage, "in_future", message, event.use.dated_by)
    return None


def _identity(usage: Usage, state: int) -> store.IdentityRow:
    event, record = usage.event, usage.record
    day = 0 if isinstance(event, Void) else revising.day_of(event.event_time)
    return usage.digest, event.content, state, day, record.partition, record.offset, event.revision


def _digest_of(item: tuple[bytes, Acceptable]) -> bytes:
    return item[0]


# ---- registry and closing ------------------------------------------------------------------------------------------


async def registry(work: Work, records: list[Record]) -> None:
    """Project timelines; of several versions of one object the highest holds, however they come. Where it says another thing
    than was known, charges are looked at again."""
    latest: dict[tuple[str, str], AccountTimeline | ResourceTimeline | CostCenter | Publisher] = {}
    for record in records:
        timeline: AccountTimeline | ResourceTimeline | CostCenter | Publisher = record.message["data"]
        match timeline:
            case AccountTimeline():
                key = ("account", timeline.account_id)
            case ResourceTimeline():
                key = ("resource", timeline.resource_id)
            case CostCenter():
                key = ("cost_center", timeline.cost_center_id)
            case Publisher():
                key = ("publisher", timeline.publisher_id)
        if key not in latest or latest[key].version < timeline.version:
            latest[key] = timeline
    await store.lock_state(work.connection)
    changed = await store.bump(work.connection, "registry_version")
    before = await store.timelines(work.connection, latest)
    now = {key: timeline.data() for key, timeline in latest.items()}
    await store.project_timelines(
        work.connection, changed, [(*key, latest[key].version, now[key]) for key in sorted(latest)]
    )
    zones = {
        interval.group_id: interval.zone
        for timeline in latest.values()
        if isinstance(timeline, AccountTimeline)
        for interval in timeline.groups
    }
    if zones:
        await store.note_zones(work.connection, changed, zones)
    await reassignments.registry_changed(work, before, latest)
    await retrying.registry_changed(work.connection, before, now)
    accounts = [id for kind, id in latest if kind == "account"]
    numbers = [id for kind, id in latest if kind == "resource" and now[kind, id]["number"] is not None]
    await renting.registry_changed(work, accounts, numbers)


async def closing(work: Work, records: list[Record]) -> None:
    """Note the cuts that are asked for, and what groups says of them."""
    told = [record.message["data"] for record in records]
    named = {
        each.cutoff_id: {"cutoff_id": each.cutoff_id, "boundary": each.boundary}
        for each in told
        if isinstance(each, Cutoff)
    }
    covered = {
        each.cutoff_id: {
            "cutoff_id": each.cutoff_id,
            "boundary": each.boundary,
            "groups_marks": [mark.data() for mark in each.marks],
        }
        for each in told
        if isinstance(each, Covered) and each.room == "groups"
    }
    if named:
        await store.name_cuts(work.connection, [named[key] for key in sorted(named)])
    if covered:
        await store.note_groups_covered(work.connection, [covered[key] for key in sorted(covered)])
