"""The auditor: proves from what is stored and what is in Kafka that closed periods are complete, single and exact.

It believes no total that a room keeps. Records are classified again one by one, links are counted on their topics, charges
are added up again, invoices are computed again from their lines, the ledger from its entries. Each room is read through
its `api.py` (and the runtime's tables in its schema) with that room's own role. Source: designs/closing, "Auditor".

Open invoices are compared as well, but only while nothing is under way; the facts say when something was.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.openings import OPENING
from contracts.topics import INVOICES_EVENTS, TOPICS, topic_of
from services.balance import api as balance
from services.balance import receivables_api
from services.cli.reading import room
from services.invoices import api as invoices
from services.invoices import credit_note_api as credit_notes
from services.kernel.errors import Corrupt
from services.kernel.money import format_nano, parse_amount
from services.kernel.period import instant_text, period_named
from services.runtime import resuming
from services.runtime.broker import start_client
from services.runtime.database import transaction
from services.runtime.kafka_access import client_options
from services.runtime.lanes import transaction_instant
from services.runtime.links import holds, load_bounds
from services.runtime.settings import ROOMS, Settings
from services.runtime.tables import runtime_tables
from services.usage import api as usage

DIFFERENCES_MAX = 20  # of one check are shown; one is enough to fail it
ALL = 2**31 - 1  # rows of a listing
ARRIVAL_S_MAX = 5.0  # what was given out by one room has reached the next long before
ZONES_APART = timedelta(hours=14)  # from UTC: a month ends so much earlier or later somewhere on earth
RECORDS_AT_ONCE = 2_000  # of a partition are looked up in one question
REPEATS_COMPARED = 50_000  # a relay that starts over repeats a few thousand records at most
COMPACTION_LAG = timedelta(days=14)  # a state topic loses nothing that is younger
CLOCK_SLACK = timedelta(
    seconds=5
)  # a transaction's instant is its start: what ends this near each other has no known order
OPEN = ("waiting", "quarantined")  # classes that a record leaves when somebody decides

Lane = tuple[str, int]  # topic, partition
Link = tuple[str, str, int]  # link, topic, partition
_Told = dict[str, Mapping[str, Any]]  # what was told of documents, by their ids
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One thing that must hold: how much was looked at, and what differs."""

    name: str
    looked_at: str
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.differences


@dataclass(frozen=True)
class Report:
    """All checks, and facts that are no failures but that an auditor wants to see."""

    period: str | None
    checks: tuple[Check, ...]
    facts: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether all holds."""
        return all(check.ok for check in self.checks)


@dataclass
class _Findings:
    """What one check finds while it looks; keeps the first differences and counts the rest."""

    name: str
    differences: list[str] = field(default_factory=list)
    left_out: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def differs(self, what: str) -> None:
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(what)
        else:
            self.left_out += 1

    def expect(self, what: str, have: object, want: object) -> None:
        if have != want:
            self.differs(f"{what}: {have}, expected {want}")

    def check(self) -> Check:
        looked_at = ", ".join(f"{count:,} {what}" for what, count in self.seen.items()) or "nothing"
        more = (f"and {self.left_out} more",) if self.left_out else ()
        return Check(self.name, looked_at, (*self.differences, *more))


@dataclass(frozen=True)
class _Links:
    """Every link of every room: the last seq given out by its producer, and how far each consumer has applied it."""

    given: Mapping[Link, int]
    received: Mapping[str, Mapping[Link, int]]
    reads: Mapping[str, frozenset[str]]

    def behind(self) -> list[tuple[str, Link, int, int]]:
        """(room, link, received, given) of all that is under way."""
        return [
            (name, link, self.received[name].get(link, 0), last)
            for name, topics in self.reads.items()
            for link, last in sorted(self.given.items())
            if topic_of(link[1]).name in topics and self.received[name].get(link, 0) < last
        ]


class _Log:
    """Kafka, read from outside of every consumer group."""

    def __init__(self, consumer: Any, prefix: str) -> None:
        self._consumer = consumer
        self._prefix = prefix

    async def ranges(self, lanes: Iterable[Lane]) -> dict[Lane, tuple[int, int]]:
        """Per partition the first offset that is there, and the end; none for a partition that does not exist."""
        places = {lane: TopicPartition(self._prefix + lane[0], lane[1]) for lane in lanes}
        if not places:
            return {}
        starts = await self._consumer.beginning_offsets(list(places.values()))
        ends = await self._consumer.end_offsets(list(places.values()))
        return {lane: (starts[place], ends[place]) for lane, place in places.items()}

    async def read(self, ranges: Mapping[Lane, tuple[int, int]]) -> AsyncIterator[tuple[Lane, Sequence[Any]]]:
        """Committed records of [start, end) of each partition, in pieces, each partition in order."""
        places = {
            TopicPartition(self._prefix + lane[0], lane[1]): (lane, start, end)
            for lane, (start, end) in ranges.items()
            if start < end
        }
        if not places:
            return
        self._consumer.assign(list(places))
        for place, (_, start, _) in places.items():
            self._consumer.seek(place, start)
        left = set(places)
        while left:
            found = await self._consumer.getmany(*left, timeout_ms=500, max_records=RECORDS_AT_ONCE)
            for place, records in found.items():
                lane, _, end = places[place]
                piece = [record for record in records if record.offset < end]
                if piece:
                    yield lane, piece
            left = {place for place in left if await self._consumer.position(place) < places[place][2]}


@dataclass
class _Count:
    """One link as it stands on its topic: repeats are not counted, and must say what was said first."""

    first: int | None = None
    highest: int = 0
    records: int = 0
    recent: dict[int, bytes] = field(default_factory=dict)

    def add(self, seq: int, value: bytes) -> str | None:
        """Count a record; what is wrong with it, if anything."""
        digest = blake2b(value, digest_size=8).digest()
        if self.first is not None and seq <= self.highest:
            known = self.recent.get(seq, digest)
            return None if known == digest else f"seq {seq} was sent with two contents"
        gap = self.first is not None and seq != self.highest + 1
        before, self.highest = self.highest, seq
        self.first = seq if self.first is None else self.first
        self.records += 1
        self.recent[seq] = digest
        self.recent.pop(seq - REPEATS_COMPARED, None)
        return f"seq {seq} follows {before}" if gap else None


@dataclass(frozen=True)
class _Evidence:
    """One kept statement of a cut: of all of it (group None) or of a group that was held."""

    cutoff_id: UUID
    group_id: str | None
    body: str
    sha256: str
    document: Mapping[str, Any]
    passed_at: datetime | None


class Auditor:
    """The nine checks over one period, or over all; the last three are always over all."""

    def __init__(self, engines: Mapping[str, AsyncEngine], log: _Log, period: str | None, tell: Tell) -> None:
        self._engines = engines
        self._log = log
        self._period = period
        self._tell = tell
        self._sealed = "none"

    async def run(self) -> Report:
        """All checks, in the order of the design, and the facts."""
        links = await self._read_links()
        evidence = await self._read_evidence()
        charges = await usage.charge_totals(self._engines["usage"])
        posted = await balance.charge_totals(self._engines["balance"])
        audit = await invoices.audit(self._engines["invoices"], self._period)
        is_at_rest = not links.behind() and await self._given() == links.given
        self._tell("records of the cuts")
        first = await self._classes(evidence)
        self._tell("links")
        second, closed_events, note_events = await self._links(links)
        self._tell("invoices and ledger")
        third = self._charges_on_invoices(charges, audit, is_at_rest=is_at_rest)
        fourth = await self._invoices(audit, closed_events, note_events)
        fifth = await self._ledger(charges, posted, is_at_rest=is_at_rest)
        sixth = await self._evidence(evidence, audit)
        seventh = await self._tiers_and_reversals()
        self._tell("the chain over the ledger")
        eighth = await self._chain()
        self._tell("what is owed")
        ninth = await self._receivables(is_at_rest=is_at_rest)
        checks = (first, second, third, fourth, fifth, sixth, seventh, eighth, ninth)
        return Report(self._period, checks, await self._facts(evidence, is_at_rest=is_at_rest))

    # ---- what is read once -------------------------------------------------------------------------------------------

    async def _read_links(self) -> _Links:
        """What was given out by now, and how far it is applied; what is under way gets a moment to arrive."""
        reads = {
            name: frozenset(topic.name for topic in TOPICS if name in topic.read_by and not topic.bare)
            for name in ROOMS
        }
        given = await self._given()
        give_up = time.monotonic() + ARRIVAL_S_MAX
        while True:
            links = _Links(given, {name: await self._received(name) for name in ROOMS}, reads)
            if not links.behind() or time.monotonic() > give_up:
                return links
            await asyncio.sleep(0.2)

    async def _given(self) -> dict[Link, int]:
        given: dict[Link, int] = {}
        for name in ROOMS:
            columns = runtime_tables(name).link_out.c
            statement = select(columns.link, columns.topic, columns.partition, columns.last_seq)
            async with transaction(self._engines[name]) as connection:
                given |= {(row[0], row[1], row[2]): row[3] for row in (await connection.execute(statement)).all()}
        return given

    async def _received(self, name: str) -> dict[Link, int]:
        columns = runtime_tables(name).link_in.c
        statement = select(columns.link, columns.topic, columns.partition, columns.received_to)
        async with transaction(self._engines[name]) as connection:
            return {(row[0], row[1], row[2]): row[3] for row in (await connection.execute(statement)).all()}

    async def _read_evidence(self) -> list[_Evidence]:
        cuts = {each.cutoff_id: each for each in await usage.cuts(self._engines["usage"])}
        passes = await usage.group_passes(self._engines["usage"])
        found = []
        for kept in await invoices.kept_evidence(self._engines["invoices"]):
            cut = cuts.get(kept.cutoff_id)
            group_id = kept.group_id or None
            passed_at = passes.get((kept.cutoff_id, group_id)) if group_id else cut.passed_at if cut else None
            try:
                document = json.loads(kept.body)
            except ValueError:
                document = {}
            if cut is None or self._ends(cut.boundary):
                found.append(_Evidence(kept.cutoff_id, group_id, kept.body, kept.sha256, document, passed_at))
        return found

    def _ends(self, boundary: datetime) -> bool:
        """Whether the period may end at a boundary: in some zone it does."""
        return self._period is None or abs(boundary - period_named(self._period).end) <= ZONES_APART

    # ---- 1: every record is in one class -----------------------------------------------------------------------------

    async def _classes(self, evidence: Iterable[_Evidence]) -> Check:
        found = _Findings("1 every usage record below a cut is in exactly one class")
        decided = await usage.decided_records(self._engines["usage"])
        given_up = await self._given_up()
        told: dict[Lane, list[tuple[_Evidence, Mapping[str, Any]]]] = defaultdict(list)
        for each in evidence:
            found.seen["cuts"] += each.group_id is None
            for lane in each.document.get("lanes", ()):
                told[lane["topic"], lane["partition"]].append((each, lane))
        there = await self._log.ranges(told)
        for lane in sorted(told):
            start = min(statement["from_offset"] for _, statement in told[lane])
            for lost in given_up[lane]:
                start = lost.stop if start in lost else start
            end = max(statement["to_offset"] for _, statement in told[lane])
            if there[lane][0] > start:
                found.differs(
                    f"{lane[0]}/{lane[1]} begins at {there[lane][0]}: records from {start} on cannot be read any more"
                )
                continue
            if there[lane][1] < end:
                found.differs(f"{lane[0]}/{lane[1]} ends at {there[lane][1]}, below the cut at {end}")
                continue
            classes = await self._classes_of(found, lane, start, end, given_up[lane])
            for each, statement in told[lane]:
                self._compare_classes(found, each, statement, classes, decided)
        return found.check()

    async def _given_up(self) -> dict[Lane, list[range]]:
        """The offsets of usage records that a person gave up by name, to let a lane go on."""
        offsets: dict[Lane, list[range]] = defaultdict(list)
        async with transaction(self._engines["usage"]) as connection:
            for each in await resuming.resumed(connection, runtime_tables("usage")):
                offsets[each.topic, each.partition].append(range(each.from_offset, each.to_offset))
        return offsets

    async def _classes_of(
        self, found: _Findings, lane: Lane, start: int, end: int, given_up: Sequence[range]
    ) -> dict[int, str]:
        """The class of every record of a partition in [start, end) as it is now, but of those that were given up."""
        classes: dict[int, str] = {}
        async for _, piece in self._log.read({lane: (start, end)}):
            named = await usage.classify(self._engines["usage"], *lane, [(r.offset, r.headers, r.value) for r in piece])
            for record in piece:
                if any(record.offset in each for each in given_up):
                    found.seen["records given up by a person"] += 1
                    continue
                found.seen["records"] += 1
                name = named.get(record.offset)
                if name is None:
                    found.differs(f"{lane[0]}/{lane[1]}/{record.offset} is in no class")
                else:
                    classes[record.offset] = name
        return classes

    def _compare_classes(
        self,
        found: _Findings,
        evidence: _Evidence,
        told: Mapping[str, Any],
        classes: Mapping[int, str],
        decided: Mapping[tuple[str, int, int], datetime],
    ) -> None:
        """Against one statement. A record that somebody decided about since was undecided when it was made."""
        lane: Lane = (told["topic"], told["partition"])
        start, end = told["from_offset"], told["to_offset"]
        where = f"{lane[0]}/{lane[1]} [{start}, {end}) of cut-off {evidence.cutoff_id}"
        if evidence.group_id is not None:
            where += f" for {evidence.group_id}"
        certain: Counter[str] = Counter()
        near: Counter[str] = Counter()  # decided so near to the statement that either may have come first
        since = 0
        for offset, name in classes.items():
            if not start <= offset < end:
                continue
            at = decided.get((*lane, offset))
            if at is None or evidence.passed_at is None or at < evidence.passed_at - CLOCK_SLACK:
                certain[name] += 1
            elif at > evidence.passed_at + CLOCK_SLACK:
                since += 1
            else:
                near[name] += 1
        counts = Counter({name: count for name, count in told["counts"].items() if count})
        if not since and not near:
            found.expect(f"{where} classes", dict(sorted(counts.items())), dict(sorted(certain.items())))
            return
        found.expect(f"{where} records", counts.total(), certain.total() + near.total() + since)
        for name in sorted((counts.keys() | certain.keys()) - set(OPEN)):
            low, high = certain[name], certain[name] + near[name]
            if not low <= counts[name] <= high:
                found.differs(f"{where} {name}: {counts[name]} were told, found {low} to {high}")
        low = sum(certain[name] for name in OPEN) + since
        high = low + near.total()
        if not low <= sum(counts[name] for name in OPEN) <= high:
            found.differs(f"{where}: {dict(counts)} were told, but {low} to {high} were undecided")

    # ---- 2: links ----------------------------------------------------------------------------------------------------

    async def _links(self, links: _Links) -> tuple[Check, _Told, _Told]:
        """Count every link on its topic; also what `invoices.events` says of each invoice and of each credit note, by id."""
        found = _Findings("2 every link between rooms is dense and applied to its end")
        closed_events: _Told = {}
        note_events: _Told = {}
        for name, link, received, last in links.behind():
            found.differs(f"{name} has applied {received} of {last} on link {link[0]} of {link[1]}/{link[2]}")
        ranges = await self._log.ranges(sorted({(topic, partition) for _, topic, partition in links.given}))
        async with transaction(self._engines["usage"]) as connection:  # every room has the same
            tables = runtime_tables("usage")
            epoch = (await transaction_instant(connection, tables)).epoch
            bounds = await load_bounds(connection, tables, ranges) if ranges else {}
        counts: dict[Link, _Count] = defaultdict(_Count)
        ages: dict[Lane, tuple[int, int]] = {}
        async for lane, piece in self._log.read(ranges):
            ages[lane] = (ages.get(lane, (piece[0].timestamp, 0))[0], piece[-1].timestamp)
            for record in piece:
                if record.value is None:
                    continue
                envelope = json.loads(record.value)
                if envelope["type"] == OPENING:
                    continue
                link = (envelope["link"], *lane)
                if not holds(bounds, epoch, envelope["epoch"], link, envelope["seq"]):
                    found.seen["records that a restore undid"] += 1
                    continue
                count = counts[link]
                if (wrong := count.add(envelope["seq"], record.value)) is not None:
                    found.differs(f"link {envelope['link']} of {lane[0]}/{lane[1]}: {wrong}")
                if lane[0] == INVOICES_EVENTS.name and envelope["data"]["kind"] == "closed":
                    closed_events[envelope["data"]["invoice_id"]] = envelope["data"]
                if lane[0] == INVOICES_EVENTS.name and envelope["data"]["kind"] == "credit_note":
                    note_events[envelope["data"]["credit_note_id"]] = envelope["data"]
        for link, last in sorted(links.given.items()):
            lane, count = (link[1], link[2]), counts.pop(link, _Count())
            where = f"link {link[0]} of {lane[0]}/{lane[1]}"
            found.seen["links"] += 1
            found.seen["records"] += count.records
            first, newest = ages.get(lane, (0, 0))
            is_whole = ranges[lane][0] == 0 and newest - first < COMPACTION_LAG / timedelta(milliseconds=1)
            if is_whole or topic_of(lane[0]).cleanup == "delete":
                wanted = last if is_whole else last - (count.first or 1) + 1 if count.records else 0
                found.expect(
                    f"{where}: records, highest seq", (count.records, count.highest), (wanted, last if wanted else 0)
                )
            elif count.highest > last:
                found.differs(f"{where}: the topic holds seq {count.highest}, {last} were given out")
        for link in counts:
            found.differs(f"{link[1]}/{link[2]} holds records of link {link[0]}, which nobody gave out")
        return found.check(), closed_events, note_events

    # ---- 3: charges and invoices -------------------------------------------------------------------------------------

    def _charges_on_invoices(
        self,
        charges: Mapping[tuple[str | None, str | None], usage.ChargeTotal],
        audit: invoices.Audit,
        *,
        is_at_rest: bool,
    ) -> Check:
        found = _Findings("3 every charge is on the one invoice of its group and period, and on no other")
        have = {
            (each.group_id, each.period): (each.state, (each.charges, each.exact_nano, each.xor))
            for each in audit.invoices
        }
        want = {
            (group_id, bill_to): (total.count, total.amount_nano, total.xor)
            for (group_id, bill_to), total in charges.items()
            if group_id is not None and bill_to is not None and self._period in (None, bill_to)
        }
        for key in sorted(have.keys() | want.keys()):
            state, sums = have.get(key, ("open", (0, 0, 0)))
            if state == "open" and not is_at_rest:
                continue
            found.seen["invoices"] += 1
            found.seen["charges"] += want.get(key, (0, 0, 0))[0]
            found.expect(f"invoice {key[0]} {key[1]} (charges, nanos, xor)", sums, want.get(key, (0, 0, 0)))
        for each in audit.invoices:
            total = charges.get((each.group_id, each.period))
            if total is not None and (each.state != "open" or is_at_rest):
                for line in sorted(total.lines.keys() | each.lines.keys(), key=str):
                    billed, made = each.lines.get(line, (0, 0, 0)), total.lines.get(line, (0, 0, 0))
                    what = f"line {', '.join(map(str, line))} of {each.group_id} {each.period}"
                    found.expect(f"{what} (charges, quantity, nanos)", billed, made)
            if each.mismatch is not None and (each.state == "nothing" or (each.state == "open" and is_at_rest)):
                found.differs(f"invoice {each.group_id} {each.period}: {each.mismatch}")
        return found.check()

    # ---- 4: documents ------------------------------------------------------------------------------------------------

    async def _invoices(self, audit: invoices.Audit, closed_events: _Told, note_events: _Told) -> Check:
        found = _Findings(
            "4 every closed invoice and credit note is computed again to the last digit, unchanged, and numbered without gap"
        )
        for finding in audit.findings:
            if not finding.startswith("evidence of"):
                found.differs(finding)
        engine = self._engines["invoices"]
        seen = set()
        for each in await invoices.list_invoices(engine, period=self._period):
            if each.state != "closed" or each.sha256 is None:
                continue
            found.seen["invoices"] += 1
            name, invoice_id = f"invoice {each.number}", str(each.invoice_id)
            seen.add(invoice_id)
            try:
                document = (await invoices.show(engine, invoice_id)).document
                totals = document["totals"]
            except (Corrupt, LookupError):
                continue  # the audit of invoices says so
            for column, told in (
                ("net", each.net_nano), ("tax", each.tax_nano), ("total", each.total_nano), ("due", each.due_nano),
            ):  # fmt: skip
                found.expect(f"{name} {column}", told, parse_amount(totals[column], signed=True))
            found.expect(f"{name} number", each.number, document["number"])
            event = closed_events.get(invoice_id)
            if event is None:
                found.differs(f"{name} was never told on {INVOICES_EVENTS.name}")
                continue
            for what in ("number", "group_id", "period", "sha256", "charges"):
                found.expect(f"{name} {what} as it was told", getattr(each, what), event[what])
            for what in ("net", "tax", "total", "paid_from_balance", "due"):
                found.expect(f"{name} {what} as it was told", totals[what], event[what])
        for invoice_id, event in closed_events.items():
            if invoice_id not in seen and self._period in (None, event["period"]):
                found.differs(f"invoice {event['number']} was told on {INVOICES_EVENTS.name} and is not there")
        await self._credit_notes(found, note_events)
        return found.check()

    async def _credit_notes(self, found: _Findings, note_events: _Told) -> None:
        """What was told of each is what it says."""
        engine, seen = self._engines["invoices"], set()
        for each in await credit_notes.credit_notes(engine, state="issued", limit=ALL):
            name, note_id = f"credit note {each.number}", str(each.credit_note_id)
            seen.add(note_id)
            if self._period not in (None, each.period):
                continue
            found.seen["credit notes"] += 1
            try:
                shown = await credit_notes.show(engine, note_id)
            except Corrupt:
                continue  # the audit of invoices says so
            event = note_events.get(note_id)
            if event is None:
                found.differs(f"{name} was never told on {INVOICES_EVENTS.name}")
                continue
            for what in ("number", "invoice_number", "group_id", "period", "voids"):
                found.expect(f"{name} {what} as it was told", getattr(each, what), event[what])
            totals = shown.document["totals"]
            for what, kept in (("net", each.net_nano), ("tax", each.tax_nano), ("total", each.total_nano)):
                found.expect(f"{name} {what}", kept, parse_amount(totals[what]))
                found.expect(f"{name} {what} as it was told", totals[what], event[what])
            found.expect(f"{name} sha256 as it was told", shown.sha256, event["sha256"])
        for note_id in note_events.keys() - seen:
            found.differs(f"credit note {note_id} was told on {INVOICES_EVENTS.name} and is not there")

    # ---- 5: ledger ---------------------------------------------------------------------------------------------------

    async def _ledger(
        self,
        charges: Mapping[tuple[str | None, str | None], usage.ChargeTotal],
        totals: Sequence[balance.ChargeTotals],
        *,
        is_at_rest: bool,
    ) -> Check:
        found = _Findings("5 the ledger sums to zero, wallets are their entries, and charges are posted once")
        engine = self._engines["balance"]
        for ref, nano in await balance.unbalanced_transactions(engine):
            found.differs(f"transaction {ref} sums to {format_nano(nano)}, not to zero")
        sums: Counter[str] = Counter()
        for (currency, _), nano in (await balance.ledger_totals(engine)).items():
            sums[currency] += nano
        for currency, nano in sums.items():
            found.expect(f"all entries in {currency}", format_nano(nano), "0")
        for wrong in await balance.wallet_differences(engine):
            found.differs(
                f"{wrong.kind} of {wrong.account_id} is {format_nano(wrong.held_nano)}, its entries sum to"
                f" {format_nano(wrong.entries_nano)}"
            )
        holding, unequal = await balance.held_differences(engine)
        for each in unequal:
            found.differs(
                f"{each.account_id} holds {format_nano(each.held_nano)}, its calls hold {format_nano(each.calls_nano)}"
            )
        for sentence in await balance.share_differences(engine):
            found.differs(sentence)
        for sentence in await balance.credit_differences(engine):
            found.differs(sentence)
        for sentence in await balance.drifts(engine):
            found.differs(f"{sentence}; no cut is answered until it is mended")
        for link, expected, seq in await balance.batch_gaps(engine):
            found.differs(f"batches of link {link} go on at {seq}, expected {expected}")
        posted = {each.account_id: (each.charges, each.charged_nano) for each in totals}
        rated: dict[str, tuple[int, int]] = {}
        for total in charges.values():
            for account_id, own in total.accounts.items():
                count, nano = rated.get(account_id, (0, 0))
                rated[account_id] = (count + own.count, nano + own.amount_nano)
        found.seen["accounts"] = len(rated.keys() | posted.keys())
        found.seen["calls that hold money"] = holding
        if is_at_rest:
            for account_id in sorted(rated.keys() | posted.keys()):
                found.expect(
                    f"charges of {account_id} (number, nanos)",
                    posted.get(account_id, (0, 0)),
                    rated.get(account_id, (0, 0)),
                )
        await self._payments(found)
        if is_at_rest:
            await self._closings(found)
            await self._credited(found)
        return found.check()

    async def _payments(self, found: _Findings) -> None:
        """Every settled attempt is credited once and nothing else is; with its refunds and disputes it moved what its results
        say together."""
        engine = self._engines["balance"]
        before = await balance.transaction_totals(engine, "payment")
        settled = {
            str(each.attempt_id): {"wallet": parse_amount(each.amount), "clearing": -parse_amount(each.amount)}
            for each in await balance.attempts(engine, limit=ALL)
            if each.state == "settled"
        }
        after = await balance.transaction_totals(engine, "payment")
        found.seen["payments"] = len(settled)
        for ref in sorted(settled.keys() | before.keys()):  # one that settles at this moment may be in `after` alone
            found.expect(f"payment {ref}", after.get(ref, {}), settled.get(ref, {}))
        said = await balance.moved_by_payments(engine)
        moved = dict.fromkeys(said, 0)
        for kind in ("payment", "refund", "reversal", "dispute_opened", "dispute_won", "dispute_lost"):
            for ref, sums in (await balance.transaction_totals(engine, kind)).items():
                attempt_id = ref.partition(":")[0]
                if attempt_id in moved:  # else it came at this moment
                    moved[attempt_id] += sums.get("wallet", 0)
        again = await balance.moved_by_payments(engine)
        for attempt_id in sorted(said):
            if said[attempt_id] == again[attempt_id]:
                found.expect(f"what payment {attempt_id} moved", moved[attempt_id], said[attempt_id])

    async def _closings(self, found: _Findings) -> None:
        """Every closed invoice is posted once, to its total: what its wallets and receivables moved, rounding and tax."""
        posted = await balance.transaction_totals(self._engines["balance"], "closing")
        listed = await invoices.list_invoices(self._engines["invoices"], state="closed")
        found.seen["closings"] = len(posted)
        for each in listed:
            sums = posted.pop(str(each.invoice_id), None)
            if sums is None:
                found.differs(f"invoice {each.number} is not posted")
                continue
            net, exact = each.net_nano or 0, each.exact_nano - each.credits_nano
            want = {"rounding": net - exact, "tax": each.tax_nano or 0, "receivable": -(each.due_nano or 0)}
            have = {name: sums.get(name, 0) for name in want}
            found.expect(f"closing of invoice {each.number}", have, want)
        for ref in posted:
            found.differs(f"a closing is posted for invoice {ref}, which is not closed")

    async def _credited(self, found: _Findings) -> None:
        """Every issued credit note is posted once: what it gives back, and what is no revenue and no tax any more."""
        posted = await balance.transaction_totals(self._engines["balance"], "credit_note")
        engine = self._engines["invoices"]
        found.seen["credit notes"] = len(posted)
        for each in await credit_notes.credit_notes(engine, state="issued", limit=ALL):
            sums = posted.pop(str(each.credit_note_id), None)
            if sums is None:
                found.differs(f"credit note {each.number} is not posted")
                continue
            try:
                totals = (await credit_notes.show(engine, str(each.credit_note_id))).document["totals"]
            except Corrupt:
                continue  # the audit of invoices says so
            to_balance = parse_amount(totals["to_balance"])
            want = {"given back": to_balance + parse_amount(totals["owed"]), "tax": parse_amount(totals["tax"])}
            have = {
                "given back": sum(sums.get(name, 0) for name in ("wallet", "receivable", "unapplied", "write_off")),
                "tax": -sums.get("tax", 0),
            }
            found.expect(f"what credit note {each.number} moved", have, want)
            if sums.get("wallet", 0) < to_balance:  # more where a wallet had paid what was owed
                found.differs(
                    f"credit note {each.number} gave {to_balance} back to balances, and posted {sums.get('wallet', 0)}"
                )
        for ref in posted:
            found.differs(f"credit note {ref} is posted, which is not issued")

    # ---- 6: evidence -------------------------------------------------------------------------------------------------

    async def _evidence(self, evidence: Sequence[_Evidence], audit: invoices.Audit) -> Check:
        found = _Findings("6 the evidence of every cut has the hash that its invoices carry")
        for finding in audit.findings:
            if finding.startswith("evidence of"):
                found.differs(finding)
        whole = {each.cutoff_id: each for each in evidence if each.group_id is None}
        cuts = {each.cutoff_id: each for each in await usage.cuts(self._engines["usage"])}
        kept = {each.cutoff_id: each for each in await invoices.cuts(self._engines["invoices"])}
        for taken in cuts.values():
            known = kept.get(taken.cutoff_id)
            if not self._ends(taken.boundary):
                continue
            name = f"cut-off {taken.cutoff_id} of {taken.boundary.isoformat()}"
            if known is None or known.boundary != taken.boundary:
                found.differs(f"{name} is not one that invoices asked for")
            elif known.passed_at is not None and taken.cutoff_id not in whole:
                found.differs(f"{name} has passed and has no evidence")
        for each in evidence:
            found.seen["statements"] += 1
            name = f"evidence of cut-off {each.cutoff_id}" + (f" for {each.group_id}" if each.group_id else "")
            found.expect(f"{name} hash", invoices.sha256_of(each.body), each.sha256)
            cut = cuts.get(each.cutoff_id)
            if cut is None:
                found.differs(f"{name}: usage knows no such cut")
                continue
            told = {(lane["topic"], lane["partition"]): lane for lane in each.document.get("lanes", ())}
            found.expect(f"{name} ends", {lane: told[lane]["to_offset"] for lane in told}, cut.positions)
            found.expect(f"{name} begins", {lane: told[lane]["from_offset"] for lane in told}, cut.begins)
            found.expect(f"{name} held", set(each.document.get("held", ())) - set(cut.held), set())
            if each.group_id is not None:
                base = whole.get(each.cutoff_id)
                found.expect(f"{name} names", each.document.get("whole_sha256"), base.sha256 if base else None)
        return found.check()

    # ---- 7: charges that depend on others ----------------------------------------------------------------------------

    async def _tiers_and_reversals(self) -> Check:
        found = _Findings(
            "7 what tiers priced costs what its counters say, what was taken back was, exactly and once, and what the registry"
            " moved stands where it says"
        )
        kept = await usage.tiers_and_reversals(self._engines["usage"])
        found.seen["counters"], found.seen["reversals"] = kept.counters, kept.reversals
        for finding in kept.findings:
            found.differs(finding)
        return found.check()

    # ---- 8: the chain ------------------------------------------------------------------------------------------------

    async def _chain(self) -> Check:
        found = _Findings("8 nothing in the ledger was edited, dropped, swapped or put in by hand")
        kept = await balance.broken_seals(self._engines["balance"])
        found.seen |= Counter(seals=kept.seals, batches=kept.batches, transactions=kept.transactions, days=kept.days)
        for problem in kept.problems:
            found.differs(problem)
        if kept.last_day is not None:
            self._sealed = f"{kept.last_day}: {kept.last_hash}"
        return found.check()

    # ---- 9: what is owed ---------------------------------------------------------------------------------------------

    async def _receivables(self, *, is_at_rest: bool) -> Check:
        """Each figure against one from another source: tables, ledger, and what invoices shows."""
        found = _Findings(
            "9 every invoice is due, paid, written off and credited as the ledger says, and accounts owe their shares"
        )
        kept = await receivables_api.audit(self._engines["balance"])
        found.seen["invoices"], found.seen["payments"] = len(kept.invoices), len(kept.payments)
        for each in kept.invoices:
            name = f"invoice {each.number} of {each.group_id}"
            settled = each.paid_nano + each.written_off_nano + each.credited_nano
            for what, have, want in (
                ("due, and what its close posted", each.due_nano, each.closing_nano),
                ("paid, written off and credited, and what was applied to it", settled, each.applied_nano),
                ("credited, and what notes took off it", each.credited_nano, each.applied_by_credit_notes_nano),
                ("written off, and what was given up of it", each.written_off_nano, each.applied_as_written_off_nano),
                (
                    "paid from the balance, and what wallets paid",
                    each.applied_from_balance_nano,
                    each.from_wallets_nano,
                ),
                ("open, and its accounts' shares", each.due_nano - settled, each.shares_nano),
            ):
                found.expect(f"{name} {what}", format_nano(have), format_nano(want))
        noted = {str(each.invoice_id) for each in kept.invoices if "credit_note" in dict(each.applied.values())}
        for (invoice_id, account_id), (left, used) in sorted(kept.wallets.items()):
            if left != used and not (invoice_id in noted and 0 <= left < used):
                found.differs(
                    f"the wallet of {account_id} has paid {format_nano(left)} of invoice {invoice_id}, its entries say"
                    f" {format_nano(used)}"
                )
        for invoice_id in sorted(kept.unknown):
            found.differs(f"invoice {invoice_id} was posted or paid, and nothing is known of what is owed of it")
        for payment_id, (amount, applied, through, is_named_so, about) in sorted(kept.payments.items()):
            if (posted_about := kept.posted_about.get(payment_id)) is not None:
                found.expect(f"payment {payment_id}, and its transaction", about, posted_about)
            if not is_named_so:
                found.differs(f"payment {payment_id} was recorded by another bank or reference")
            sums = {
                "receivable": applied,
                "unapplied": amount - applied,
                "wallet" if through == "card" else "clearing": -amount,
            }
            if through == "wallet":
                sums = {"wallet": amount, "clearing": -amount}
            sums = {name: nano for name, nano in sums.items() if nano}
            found.expect(f"payment {payment_id}", kept.posted.get(payment_id), sums)
        for payment_id in kept.posted.keys() - kept.payments.keys():
            found.differs(f"payment {payment_id} is posted and was never recorded")
        for group_id, (unapplied, entries) in sorted(kept.unapplied.items()):
            found.expect(f"unapplied of {group_id}, and its entries", format_nano(unapplied), format_nano(entries))
            if unapplied < 0:
                found.differs(f"unapplied of {group_id} is below zero: {format_nano(unapplied)}")
        for account_id, (receivable, shares) in sorted(kept.accounts.items()):
            found.expect(f"receivable of {account_id}, and its shares", format_nano(receivable), format_nano(shares))
        if is_at_rest:
            await self._standings(found, kept)
        return found.check()

    async def _standings(self, found: _Findings, kept: receivables_api.ReceivableAudit) -> None:
        """What invoices shows of each is what balance has."""
        engine = self._engines["invoices"]
        shown = {each.invoice_id: each for each in await invoices.list_invoices(engine, state="closed")}
        settled = await invoices.settled(engine)
        names = ("number", "group_id", "period", "due_on", "due", "paid", "written_off", "credited", "open", "state")
        for each in kept.invoices:
            name = f"invoice {each.number}"
            one = shown.pop(each.invoice_id, None)
            if one is None:
                found.differs(f"{name} of {each.group_id} is owed, and is not closed")
                continue
            open_nano = each.due_nano - each.paid_nano - each.written_off_nano - each.credited_nano
            have = (
                one.number, one.group_id, one.period, one.due_on, one.due_nano, one.paid_nano, one.written_off_nano,
                one.credited_nano, one.open_nano, one.standing,
            )  # fmt: skip
            want = (
                each.number, each.group_id, each.period, each.due_on, each.due_nano, each.paid_nano,
                each.written_off_nano, each.credited_nano, open_nano, each.state,
            )  # fmt: skip
            for what, is_shown, is_kept in zip(names, have, want, strict=True):
                found.expect(f"{name} {what} as it is shown", is_shown, is_kept)
            found.expect(f"{name} steps as they are shown", settled.pop(each.invoice_id, {}), each.applied)
        for one in shown.values():
            if one.due_nano:
                found.differs(f"invoice {one.number} is due, and nothing is known of what is owed of it")
        for invoice_id in settled:
            found.differs(f"invoice {invoice_id} is shown as paid, and nothing is known of what is owed of it")

    # ---- facts -------------------------------------------------------------------------------------------------------

    async def _facts(self, evidence: Sequence[_Evidence], *, is_at_rest: bool) -> dict[str, str]:
        facts: dict[str, str] = {"last sealed day, and its hash": self._sealed}
        facts["at rest"] = "yes" if is_at_rest else "no: something is under way, so open invoices were not compared"
        stopped, resumed, open_records = [], [], []
        for name in ROOMS:
            tables = runtime_tables(name)
            async with transaction(self._engines[name]) as connection:
                lanes = (
                    select(tables.lane.c.name).where(tables.lane.c.stopped.is_not(None)).order_by(tables.lane.c.name)
                )
                stopped += [f"{name}: {lane}" for lane in (await connection.execute(lanes)).scalars()]
                resumed += [f"{name}: {each.sentence}" for each in await resuming.resumed(connection, tables)]
                columns = tables.parked.c
                count = (
                    select(columns.reason, func.count())
                    .where(columns.state.in_(["quarantined", "waiting", "replaying", "discarding"]))
                    .group_by(columns.reason)
                    .order_by(columns.reason)
                )
                open_records += [
                    f"{name} {reason} {number}" for reason, number in (await connection.execute(count)).all()
                ]
        facts["stopped lanes"] = ", ".join(stopped) or "none"
        facts["lanes that a person let go on"] = "; ".join(resumed) or "none"
        async with transaction(self._engines["usage"]) as connection:
            told = (
                await connection.execute(text("select epoch, by, reason, begun_at from runtime.restore order by epoch"))
            ).all()
        facts["restores"] = (
            "; ".join(
                f"epoch {each.epoch} at {instant_text(each.begun_at)} by {each.by}: {each.reason}" for each in told
            )
            or "none"
        )
        facts["undecided records"] = ", ".join(open_records) or "none"
        async with transaction(self._engines["usage"]) as connection:
            clock = (await connection.execute(text("select movable, ahead from runtime.clock"))).one()
        ahead = f", {clock.ahead} ahead" if clock.ahead else ""
        facts["clock"] = f"movable{ahead}: not a production database" if clock.movable else "cannot be moved"
        cuts = await invoices.cuts(self._engines["invoices"])
        waiting = [
            f"{each.boundary.isoformat()} for {each.waiting_for or ', '.join(n for n, w in each.held.items() if w) or 'invoices'}"
            for each in cuts
            if each.finished_at is None
        ]
        silent = [
            f"{each.boundary.isoformat()}: {', '.join(sources)}"
            for each in cuts
            if self._ends(each.boundary) and (sources := each.coverage.silent_sources)
        ]
        facts["cuts"] = str(sum(each.group_id is None for each in evidence))
        facts["cuts that wait"] = "; ".join(waiting) or "none"
        facts["silent sources"] = "; ".join(silent) or "none"
        return facts


async def run(settings: Settings, period: str | None = None, *, tell: Tell = lambda _: None) -> Report:
    """Audit one period, or all that was ever closed. ``tell`` hears what is looked at next."""
    if period is not None:
        period_named(period)
    async with _opened(settings) as (engines, log):
        return await Auditor(engines, log, period, tell).run()


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[dict[str, AsyncEngine], _Log]]:
    async with AsyncExitStack() as stack:
        engines = {name: await stack.enter_async_context(room(name, settings)) for name in ROOMS}
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            client_id="tollbook-verify",
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=50,
        )
        stack.push_async_callback(consumer.stop)
        await start_client(consumer, settings)
        yield engines, _Log(consumer, settings.topic_prefix)
