"""Commands and cuts: one batch, one transaction. Rules between two store calls."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from pydantic_core import to_json

from contracts.closing import Covered, Cutoff, Mark
from contracts.groups import CommandAnswer, GroupsCommand
from contracts.invoices import InvoiceEvent
from contracts.topics import CLOSING_PROGRESS
from services.groups import messages, store
from services.groups.commands import decode, readable
from services.groups.loading import load, save
from services.groups.registry import Registry, carry_out
from services.kernel.errors import InvalidInput, TollbookError
from services.kernel.ids import content_digest, derived_id
from services.kernel.money import parse_amount
from services.runtime import faults, links
from services.runtime.parking import Parked
from services.runtime.records import Record
from services.runtime.work import Work

Key = tuple[str, str]


async def carry_out_commands(work: Work, records: list[Record]) -> None:
    """Each command once, one after the other; each sees what those before it changed, a refused one changes nothing."""
    asked: list[tuple[Record, GroupsCommand]] = []
    for record in records:
        try:
            asked.append((record, decode(record.value)))
        except InvalidInput as error:
            work.quarantine(record, error.code, error.message, field=error.field, **readable(record.value))
    if not asked:
        return
    await store.lock_registry(work)
    decided = await store.decided_commands(work, [_key(command) for _, command in asked])
    fresh = [command for _, command in asked if _key(command) not in decided]
    registry = await load(work, fresh)
    entries: list[store.Entry] = []
    for record, command in asked:
        digest = content_digest(command.model_dump_json().encode())
        before = decided.get(_key(command))
        if before is None:
            said = _decide(work, registry, command)
            decided[_key(command)] = store.Decided(digest, said.data())
            entries.append(_entry(work, command, digest, said))
        elif before.digest == digest:
            said = CommandAnswer.model_validate_json(to_json(before.answer))
        else:
            said = _refusal(work, command, _CONFLICT)
        messages.answer(work, record, said)
    await save(work, registry, entries)
    messages.tell(work, registry)


async def answer_quarantined(work: Work, parked: Sequence[Parked]) -> None:
    """Tell the asker about a command that is kept in quarantine, where its id could be read."""
    for item in parked:
        read = readable(item.record.value)
        if "command_id" not in read:
            continue
        said = CommandAnswer(
            command_id=read["command_id"],
            kind=read.get("kind", ""),
            organization_id=read.get("organization_id"),
            accepted=False,
            reason=item.reason,
            field=item.field,
            message=item.message,
            objects={},
            warnings=(),
            at=work.now,
        )
        messages.answer(work, item.record, said)


async def cover_cutoffs(work: Work, records: list[Record]) -> None:
    """Say of each cut how far the registry had spoken. Source: designs/closing, line 5.

    Why the marks hold: every transaction that publishes on a state topic takes the registry's lock before its first seq
    and keeps it to its commit, as this one does. So while it is held here no seq of those links is given out and not
    committed, and the marks, read after the lock was got, cover each command that was accepted before this instant. A
    later command gets a seq above its mark: it cannot commit below one unnoticed. The rows of `link_out` need no lock of
    their own. This transaction publishes on `closing.progress` only, so it does not move what it states.
    """
    cutoffs: dict[object, Cutoff] = {record.message["data"].cutoff_id: record.message["data"] for record in records}
    await store.lock_registry(work)
    new = await store.remember_cuts(work, {each.cutoff_id: each.boundary for each in cutoffs.values()})
    if not new:
        return
    spoken = await links.marks(work.connection, work.tables, [topic.name for topic in messages.STATE_TOPICS])
    marks = tuple(
        Mark(link=each.link, topic=each.topic, partition=each.partition, last_seq=each.last_seq) for each in spoken
    )
    for cutoff in cutoffs.values():
        if cutoff.cutoff_id in new:
            said = Covered(cutoff_id=cutoff.cutoff_id, boundary=cutoff.boundary, room="groups", marks=marks)
            key = str(cutoff.cutoff_id)
            work.publish(CLOSING_PROGRESS, key, str(derived_id("groups.covered", key)), said.data())
    faults.step("groups.covered")


async def keep_owed(work: Work, records: list[Record]) -> None:
    """Keep what is open of closed invoices, and whose shares of it: who owes something stays invoiced."""
    told: list[InvoiceEvent] = [record.message["data"] for record in records]
    closed: dict[UUID, tuple[UUID, str, list[str], Decimal]] = {}
    moved: dict[UUID, tuple[UUID, int, Decimal, Sequence[str] | None]] = {}
    for each in told:
        if each.kind == "credit_note":
            continue  # what it takes off is told by a step of its invoice
        if each.kind != "closed":
            if each.invoice_id not in moved or moved[each.invoice_id][1] < each.version:
                nano = Decimal(parse_amount(each.open, signed=True))
                moved[each.invoice_id] = (each.invoice_id, each.version, nano, each.owed_by)
        elif (due := parse_amount(each.due, signed=True)) > 0:
            accounts = [one.account_id for one in each.postings if parse_amount(one.receivable, signed=True)]
            closed[each.invoice_id] = (each.invoice_id, each.number, accounts, Decimal(due))
    if closed:
        await store.save_closed(work, list(closed.values()))
    if moved:
        await store.save_open(work, list(moved.values()))


def _decide(work: Work, registry: Registry, command: GroupsCommand) -> CommandAnswer:
    try:
        outcome = carry_out(registry, command, work.now)
    except TollbookError as refusal:
        return _refusal(work, command, refusal)
    return CommandAnswer(
        command_id=command.command_id,
        kind=command.kind,
        organization_id=command.organization_id,
        accepted=True,
        reason=None,
        field=None,
        message=outcome.message,
        objects=outcome.objects,
        warnings=outcome.warnings,
        at=work.now,
    )


_CONFLICT = InvalidInput(
    "another command came with this id before; send this one under an id of its own",
    field="command_id",
    code="idempotency_conflict",
)


def _refusal(work: Work, command: GroupsCommand, refusal: TollbookError) -> CommandAnswer:
    return CommandAnswer(
        command_id=command.command_id,
        kind=command.kind,
        organization_id=command.organization_id,
        accepted=False,
        reason=refusal.code,
        field=refusal.field,
        message=refusal.message,
        objects={},
        warnings=(),
        at=work.now,
    )


def _entry(work: Work, command: GroupsCommand, digest: bytes, said: CommandAnswer) -> store.Entry:
    return store.Entry(
        organization_id=command.organization_id,
        command_id=command.command_id,
        digest=digest,
        kind=command.kind,
        actor=command.actor,
        role=command.role,
        at=work.now,
        accepted=said.accepted,
        content=command.data(),
        answer=said.data(),
    )


def _key(command: GroupsCommand) -> Key:
    return command.organization_id, command.command_id
