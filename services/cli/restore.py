"""`tollbook restore`: PostgreSQL was restored from a backup, Kafka was not touched, and every room stands still.

It looks before it writes, so that `--check` says what it would do. What it writes is one transaction, after everybody outside has
been told of the new epoch; killed at any step, it is run again. Source: designs/closing, RESTORE.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import msgspec
import typer
from pydantic import TypeAdapter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.balance import BalanceEvent
from contracts.closing import Covered, Cutoff
from contracts.invoices import CreditNoteIssued, InvoiceEvent
from contracts.payments import PaymentRequest
from contracts.receivables import GroupEvent
from contracts.topics import (
    BALANCE_EVENTS,
    BALANCE_GROUP_EVENTS,
    CLOSING_CUTOFFS,
    CLOSING_PROGRESS,
    GROUPS_ACCOUNTS,
    GROUPS_COMMANDS,
    GROUPS_EVENTS,
    INVOICES_EVENTS,
    PAYMENTS_REQUESTS,
    USAGE_CHARGES,
    USAGE_REJECTIONS,
    topic_of,
)
from services.balance import api as balance
from services.cli.asking import me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, plain, show_json, show_rows
from services.cli.reading import room
from services.groups import api as groups
from services.invoices import api as invoices
from services.kernel.errors import InvalidInput
from services.kernel.period import instant_text
from services.payments import api as payments
from services.runtime import faults, restoring
from services.runtime.broker import Offsets
from services.runtime.database import OnlyLooked, open_engine, transaction
from services.runtime.known_topics import KnownTopics
from services.runtime.restoring import Told
from services.runtime.settings import Settings, load
from services.usage import api as usage

STATE = frozenset(each.name for each in groups.STATE_TOPICS)
VERSIONED = {
    "groups": STATE,
    "balance": frozenset({BALANCE_EVENTS.name, BALANCE_GROUP_EVENTS.name, INVOICES_EVENTS.name}),
}
"""The topics on which a room's objects have versions, which nobody outside may meet again with another meaning."""

_VERSION = re.compile(rb'"version":([0-9]+)')
_REQUEST: TypeAdapter[PaymentRequest] = TypeAdapter(PaymentRequest)
_INVOICE_EVENT: TypeAdapter[InvoiceEvent] = TypeAdapter(InvoiceEvent)


@dataclass(frozen=True, slots=True)
class ToDo:
    """Something for a person. ``before_start``: while the rooms still stand."""

    what: str
    about: str
    how: str
    before_start: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a restore found and did, or would do."""

    epoch: int
    ran_until: datetime | None
    undone: Mapping[str, int]
    cuts: tuple[datetime, ...]
    documents: int
    named_again: tuple[str, ...]
    payments: tuple[balance.UndoneAttempt, ...]
    refunds: tuple[balance.UndoneRefund, ...]
    to_do: tuple[ToDo, ...]


class _Surcharge(msgspec.Struct):
    book_id: str
    book_version: int


class _Charge(msgspec.Struct):
    book_id: str
    book_version: int
    surcharge: _Surcharge | None = None
    replaces: str | None = None


class _BalanceEvent(msgspec.Struct):
    account_id: str
    kind: str


class _GroupEvent(msgspec.Struct):
    kind: str


_event = msgspec.json.Decoder(_BalanceEvent).decode
_group_event = msgspec.json.Decoder(_GroupEvent).decode
_charge = msgspec.json.Decoder(_Charge).decode


@dataclass
class Found:
    """What of the undone records matters: few are kept, of charges only which prices they were rated by."""

    counts: Counter[str] = field(default_factory=Counter)
    versions: dict[str, int] = field(default_factory=dict)
    kept: dict[str, list[Told]] = field(default_factory=dict)
    books: set[tuple[str, int]] = field(default_factory=set)
    replacing: int = 0
    suspensions: set[str] = field(default_factory=set)
    requests: list[tuple[PaymentRequest, bool]] = field(default_factory=list)  # all, and whether they are undone
    asked_by: list[BalanceEvent | GroupEvent] = field(default_factory=list)  # which command asked for a payment

    def take(self, told: Told) -> None:
        """Look at one record of the log."""
        name = topic_of(told.topic).name
        if name == PAYMENTS_REQUESTS.name:
            self.requests.append((_REQUEST.validate_json(bytes(told.data)), told.undone))
        if not told.undone:
            return
        self.counts[told.topic] += 1
        for owner, topics in VERSIONED.items():
            if name in topics:
                versions = map(int, _VERSION.findall(bytes(told.data)))
                self.versions[owner] = max(self.versions.get(owner, 0), *versions, 0)
        if name == USAGE_CHARGES.name:
            charge = _charge(told.data)
            for each in (charge, charge.surcharge):
                if each is not None:
                    self.books.add((each.book_id, each.book_version))
            self.replacing += charge.replaces is not None
        elif name == BALANCE_EVENTS.name:
            event = _event(told.data)
            if event.kind in ("suspended", "restored"):
                self.suspensions.add(event.account_id)
            elif event.kind == "payment_requested":
                self.asked_by.append(BalanceEvent.model_validate_json(bytes(told.data)))
        elif name == BALANCE_GROUP_EVENTS.name:
            if _group_event(told.data).kind == "card_payment_requested":
                self.asked_by.append(GroupEvent.model_validate_json(bytes(told.data)))
        elif name in _KEPT:
            self.kept.setdefault(name, []).append(told)

    def of(self, name: str) -> list[Told]:
        """The undone records of a topic or family."""
        return self.kept.get(name, [])


_KEPT = STATE | {
    each.name for each in (CLOSING_CUTOFFS, CLOSING_PROGRESS, GROUPS_EVENTS, INVOICES_EVENTS, USAGE_REJECTIONS)
}


async def run(
    settings: Settings, by: str, reason: str, *, write: bool = True, tell: Callable[[str], None] = lambda _: None
) -> Report:
    """Begin a new epoch; without ``write`` say what that would do. ``tell`` hears what is done next."""
    engine = open_engine(settings.owner_database_url(), application="tollbook.restore", pool_size=3)
    offsets = Offsets(settings)
    try:
        async with restoring.alone(engine):
            await offsets.start()
            return await _run(settings, engine, offsets, by, reason, write=write, tell=tell)
    finally:
        await offsets.stop()
        await engine.dispose()


async def _run(
    settings: Settings,
    engine: AsyncEngine,
    offsets: Offsets,
    by: str,
    reason: str,
    *,
    write: bool,
    tell: Callable[[str], None],
) -> Report:
    async with transaction(engine) as connection:
        await restoring.refuse_running(connection)
        life = await restoring.restored_life(connection)
        now = (await connection.execute(text("select now()"))).scalar_one()
        known = await restoring.known_epoch(connection)
    restoring.refuse_old(life, now)
    log = restoring.Log(settings, offsets, life)
    await log.look()
    restoring.refuse_other_log(life, log.begins, log.ends)
    tell("reading what the rooms have not read")
    found = Found()
    async for told in log.read():
        found.take(told)
    restoring.refuse_abandoned(life, log.openings)
    waiting = await log.commands(GROUPS_COMMANDS) if found.of(GROUPS_EVENTS.name) else set()
    undone = [request for request, is_undone in found.requests if is_undone]
    objects = {name: [each.fields() for each in found.of(name)] for name in STATE}
    epoch = max(log.epoch_max, known) + 1
    if write:
        await restoring.begin(engine, epoch, by, reason)
        tell(f"telling of epoch {epoch} on {len(log.partitions)} partitions")
        await restoring.open_epoch(settings, life, epoch, log.partitions)
    with suppress(OnlyLooked):
        async with transaction(engine) as connection:
            await restoring.refuse_running(connection)
            await restoring.begin_epoch(connection, life, epoch)
            for name, version in found.versions.items():
                await restoring.raise_versions(connection, name, version)
            cuts = await usage.adopt_cuts(
                connection, [Covered.model_validate_json(bytes(each.data)) for each in found.of(CLOSING_PROGRESS.name)]
            )
            events = [_INVOICE_EVENT.validate_json(bytes(each.data)) for each in found.of(INVOICES_EVENTS.name)]
            cutoffs = [Cutoff.model_validate_json(bytes(each.data)) for each in found.of(CLOSING_CUTOFFS.name)]
            adopted = await invoices.adopt(connection, events, cutoffs, f"restore by {by}")
            await groups.adopt_numbers(connection, objects[GROUPS_ACCOUNTS.name])
            missing = found.books - await usage.known_books(connection)
            to_do = tuple(_to_do(found, missing, waiting, events, adopted, life.ran_until))
            faults.step("restore.adopted")
            if not write:
                raise OnlyLooked
    faults.step("restore.written")
    if write:
        async with room("payments", settings) as own:
            await payments.adopt_requests(own, [request for request, _ in found.requests])
    async with room("balance", settings) as own:
        paid = await balance.adopt_undone_requests(own, undone, found.asked_by, write=write)
    faults.step("restore.paid")
    report = Report(
        epoch,
        life.ran_until,
        dict(sorted(found.counts.items())),
        tuple(cuts),
        adopted.documents,
        adopted.periods,
        tuple(paid.attempts),
        tuple(paid.refunds),
        to_do,
    )
    if not write:
        return report
    topics = KnownTopics(Counter(topic for topic, _ in log.ends))
    async with room("groups", settings) as own:
        await groups.tell_again(own, topics, objects)
    async with room("balance", settings) as own:
        await balance.tell_again(own, topics, found.suspensions)
    faults.step("restore.told")
    async with transaction(engine) as connection:
        await restoring.end(connection, epoch, plain(report))
    return report


# ---- what people must do again -------------------------------------------------------------------------------------


def _to_do(
    found: Found,
    missing: Iterable[tuple[str, int]],
    waiting: set[str],
    events: Iterable[InvoiceEvent],
    adopted: invoices.Adopted,
    ran_until: datetime | None,
) -> Iterable[ToDo]:
    for book_id, version in sorted(missing):
        yield ToDo(
            "price book",
            f"{book_id} version {version}",
            "import the same file again, from the same day on; else its use waits in quarantine or is rated by other prices",
            before_start=True,
        )
    for told in found.of(USAGE_REJECTIONS.name):
        said = told.fields()
        if said["action"] == "quarantined":
            continue  # what was told of it is told again
        place = f"{said['topic']}/{said['partition']} offset {said['offset']}"
        what = " ".join(each for each in (said["source"], said["event_id"]) if each)
        yield ToDo(
            f"{said['action']} record",
            f"{place} {what}: {said['message']}".strip(),
            "decide again by `tollbook quarantine`",
        )
    for told in found.of(GROUPS_EVENTS.name):
        said = told.fields()
        if said["accepted"] and said["command_id"] not in waiting:
            yield ToDo(
                "command", f"{said['kind']} {said['command_id']}: {said['message']}", "replay it from the quarantine"
            )
    for event in events:
        if isinstance(event, CreditNoteIssued):
            yield ToDo(
                "credit note",
                f"{event.number} against {event.invoice_number}, {event.total} {event.currency}",
                "propose and approve it again; its number stays its own and is not used again",
            )
    for number in adopted.unnumbered:
        yield ToDo("number", number, "its seller is not known: make sure that no invoice gets this number again", True)
    if ran_until is not None:
        yield ToDo(
            "what was entered directly",
            f"since {instant_text(ran_until)}",
            "no topic tells of webhooks, voucher codes, pay-outs, highest prices, or of what was proposed or planned and not"
            " carried out: enter it again",
        )
    if found.replacing:
        yield ToDo(
            "corrected charges",
            str(found.replacing),
            "amendments and moves are made again by themselves; a re-rate that ran since must be planned and approved again",
        )


def restore(
    reason: Annotated[str, typer.Option(help="why the database was restored; kept for good")],
    by: Annotated[str, typer.Option("--by", help="who does it; default: your login")] = "",
    check: Annotated[bool, typer.Option("--check", help="say what would be done, and write nothing")] = False,
    output: Output = Format.table,
) -> None:
    """Go on after PostgreSQL was restored from a backup and Kafka was not touched; every room and the gateway stand still.

    No record is lost or counted twice, no invoice number names two documents, no payment is asked for twice. What people must do
    again is listed; price books before the rooms are started. Killed at any step, run it again.
    """
    if not reason.strip():
        raise InvalidInput("say why the database was restored", field="reason")
    _restore(reason, by or me(), check, output)


@asynchronous
async def _restore(reason: str, by: str, check: bool, output: Format) -> None:
    def said(what: str) -> None:
        if output is not Format.json:
            console.print(f"{what} …", markup=False)

    report = await run(load(), by, reason, write=not check, tell=said)
    if output is Format.json:
        show_json(report)
    else:
        show(report, is_done=not check)


def show(report: Report, *, is_done: bool) -> None:
    """What was done, or would be, and what is left to people."""
    until = "an empty database" if report.ran_until is None else f"the backup of {instant_text(report.ran_until)}"
    begins = "begins" if is_done else "would begin"
    said = [
        f"epoch {report.epoch} {begins} on {until}; undone: {sum(report.undone.values())} records",
        *(f"  {topic}: {count}" for topic, count in report.undone.items()),
        f"adopted: {len(report.cuts)} cuts, {report.documents} numbered documents",
        f"periods named again: {', '.join(report.named_again) or 'none'}",
        f"payments whose end is asked for: {len(report.payments)}; refunds: {len(report.refunds)}",
    ]
    for line in said:
        console.print(line, markup=False)
    columns = {"before_start": "before the start", "what": "what", "about": "about", "how": "what to do"}
    show_rows(report.to_do, columns, Format.table, empty="nothing is to be done again by people")
