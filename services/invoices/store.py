"""SQL of the room and nothing else: one function, one statement, named by what it asks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.closing import Covered
from contracts.groups import BillingGroup
from contracts.invoices import CreditNoteIssued, InvoiceClosed
from contracts.receivables import GroupEvent
from services.invoices.accumulation import InvoiceKey, Paid, Tally
from services.invoices.closing import Coverage, LinkKey, Terms
from services.invoices.rounding import Bill, LineKey, LineSum
from services.invoices.tables import (
    Instant,
    Quantity,
    Total,
    account,
    billing_group,
    close_request,
    covered,
    credit_note,
    cutoff,
    cutoff_evidence,
    document,
    invoice,
    line,
    number_series,
    paid,
    settlement,
    tally,
    terms,
    undone,
    zone,
)
from services.kernel.money import parse_amount
from services.runtime.database import unnest
from services.runtime.lanes import CLOCK_NOW
from services.runtime.tables import runtime_tables

WHOLE_CUT = ""

_IDS = bindparam("ids", type_=ARRAY(Uuid))


# ---- terms and what the registry told ------------------------------------------------------------------------------


async def install_terms(connection: AsyncConnection, grace: timedelta) -> None:
    """Closing is automatic from the first start of the room on; later starts change nothing."""
    row = select(literal(True), CLOCK_NOW, literal(int(grace.total_seconds())))
    statement = insert(terms).from_select(["only_row", "automatic_from", "grace_s"], row)
    await connection.execute(statement.on_conflict_do_nothing())


async def load_terms(connection: AsyncConnection) -> Terms | None:
    row = (await connection.execute(select(terms.c.automatic_from, terms.c.grace_s))).first()
    return None if row is None else Terms(row.automatic_from, timedelta(seconds=row.grace_s))


async def save_grace(connection: AsyncConnection, grace: timedelta) -> None:
    await connection.execute(update(terms).values(grace_s=int(grace.total_seconds())))


async def clock_now(connection: AsyncConnection) -> datetime:
    now: datetime = (await connection.execute(select(CLOCK_NOW))).scalar_one()
    return now


async def save_groups(connection: AsyncConnection, groups: Collection[BillingGroup]) -> None:
    """Keep each group as last told; a lower version changes nothing."""
    new = unnest("new", group_id=Text(), version=BigInteger(), zone=Text(), told=Text())
    statement = insert(billing_group).from_select(
        ["group_id", "version", "zone", "told"], select(new.c.group_id, new.c.version, new.c.zone, new.c.told)
    )
    statement = statement.on_conflict_do_update(
        index_elements=["group_id"],
        set_={name: statement.excluded[name] for name in ("version", "zone", "told")},
        where=billing_group.c.version < statement.excluded.version,
    )
    ordered = sorted(groups, key=lambda each: each.group_id)
    await connection.execute(
        statement,
        {
            "new_group_id": [each.group_id for each in ordered],
            "new_version": [each.version for each in ordered],
            "new_zone": [each.zone for each in ordered],
            "new_told": [each.model_dump_json() for each in ordered],
        },
    )


async def save_accounts(connection: AsyncConnection, names: Mapping[str, tuple[int, str]]) -> None:
    """Keep each account's (version, name) as last told."""
    new = unnest("new", account_id=Text(), version=BigInteger(), name=Text())
    statement = insert(account).from_select(
        ["account_id", "version", "name"], select(new.c.account_id, new.c.version, new.c.name)
    )
    statement = statement.on_conflict_do_update(
        index_elements=["account_id"],
        set_={name: statement.excluded[name] for name in ("version", "name")},
        where=account.c.version < statement.excluded.version,
    )
    ordered = sorted(names)
    await connection.execute(
        statement,
        {
            "new_account_id": ordered,
            "new_version": [names[each][0] for each in ordered],
            "new_name": [names[each][1] for each in ordered],
        },
    )


async def save_zones(connection: AsyncConnection, since: Mapping[str, datetime]) -> None:
    """Remember the zones and the earliest instant at which a group of each existed."""
    new = unnest("new", zone=Text(), since=Instant)
    statement = insert(zone).from_select(["zone", "since"], select(new.c.zone, new.c.since))
    statement = statement.on_conflict_do_update(
        index_elements=["zone"],
        set_={"since": statement.excluded.since},
        where=statement.excluded.since < zone.c.since,
    )
    ordered = sorted(since)
    await connection.execute(statement, {"new_zone": ordered, "new_since": [since[each] for each in ordered]})


async def load_zones(connection: AsyncConnection) -> dict[str, datetime]:
    rows = (await connection.execute(select(zone.c.zone, zone.c.since))).all()
    return {row.zone: row.since for row in rows}


async def load_groups(connection: AsyncConnection, group_ids: Iterable[str]) -> dict[str, BillingGroup]:
    statement = select(billing_group.c.told).where(billing_group.c.group_id == func.any(bindparam("ids", type_=_TEXTS)))
    rows = (await connection.execute(statement, {"ids": sorted(set(group_ids))})).all()
    return {each.group_id: each for each in (BillingGroup.model_validate_json(row.told) for row in rows)}


async def load_account_names(connection: AsyncConnection, account_ids: Iterable[str]) -> dict[str, str]:
    statement = select(account.c.account_id, account.c.name)
    statement = statement.where(account.c.account_id == func.any(bindparam("ids", type_=_TEXTS)))
    rows = (await connection.execute(statement, {"ids": sorted(set(account_ids))})).all()
    return {row.account_id: row.name for row in rows}


# ---- accumulation --------------------------------------------------------------------------------------------------


async def share_invoices(connection: AsyncConnection, ids: Iterable[UUID]) -> dict[UUID, str]:
    """The states of these invoices, held FOR SHARE: while the batch runs they cannot close."""
    statement = (
        select(invoice.c.invoice_id, invoice.c.state)
        .where(invoice.c.invoice_id == func.any(_IDS))
        .order_by(invoice.c.invoice_id)
        .with_for_update(read=True)
    )
    rows = (await connection.execute(statement, {"ids": sorted(ids)})).all()
    return {row.invoice_id: row.state for row in rows}


async def create_invoices(connection: AsyncConnection, keys: Iterable[InvoiceKey]) -> None:
    """Open the invoices that do not exist yet."""
    new = unnest("new", invoice_id=Uuid(), group_id=Text(), period=Text())
    statement = insert(invoice).from_select(
        ["invoice_id", "group_id", "period", "state"],
        select(new.c.invoice_id, new.c.group_id, new.c.period, literal("open")),
    )
    ordered = sorted(keys, key=lambda key: key.invoice_id)
    await connection.execute(
        statement.on_conflict_do_nothing(),
        {
            "new_invoice_id": [key.invoice_id for key in ordered],
            "new_group_id": [key.group_id for key in ordered],
            "new_period": [key.period for key in ordered],
        },
    )


async def share_passed_cuts(
    connection: AsyncConnection, boundaries: Iterable[datetime]
) -> dict[datetime, tuple[UUID, frozenset[str]]]:
    """Cuts that are passed, by boundary, with the groups they held; held FOR SHARE."""
    statement = (
        select(cutoff.c.boundary, cutoff.c.cutoff_id, cutoff.c.held)
        .where(cutoff.c.boundary == func.any(bindparam("boundaries", type_=ARRAY(Instant))))
        .where(cutoff.c.passed_at.is_not(None))
        .order_by(cutoff.c.boundary)
        .with_for_update(read=True)
    )
    rows = (await connection.execute(statement, {"boundaries": sorted(set(boundaries))})).all()
    return {row.boundary: (row.cutoff_id, frozenset(row.held)) for row in rows}


async def add_lines(connection: AsyncConnection, lines: Mapping[InvoiceKey, Sequence[LineSum]]) -> None:
    """Add the sums of a batch to their lines; a line is born by its first charge."""
    new = unnest("new", **_LINE)
    statement = insert(line).from_select(list(_LINE), select(*new.c))
    statement = statement.on_conflict_do_update(
        index_elements=_LINE_KEY,
        set_={name: line.c[name] + statement.excluded[name] for name in ("charges", "quantity", "exact_nano")}
        | {
            "unit_price_min_nano": func.least(line.c.unit_price_min_nano, statement.excluded.unit_price_min_nano),
            "unit_price_max_nano": func.greatest(line.c.unit_price_max_nano, statement.excluded.unit_price_max_nano),
        },
    )
    rows = sorted(
        (
            (
                key.invoice_id, each.key.account_id, each.key.product, each.key.cost_center_id, each.key.period,
                each.key.prepaid, each.key.currency, each.key.schedule, each.charges, Decimal(each.quantity), each.exact_nano,
                each.unit_price_min_nano, each.unit_price_max_nano,
            )
            for key, sums in lines.items()
            for each in sums
        ),
        key=lambda row: row[: len(_LINE_KEY)],
    )  # fmt: skip
    columns = zip(_LINE, zip(*rows, strict=True), strict=True)
    await connection.execute(statement, {f"new_{name}": list(values) for name, values in columns})


async def add_tallies(connection: AsyncConnection, tallies: Mapping[InvoiceKey, Tally]) -> None:
    """Count the charges of a batch on their invoices."""
    new = unnest("new", invoice_id=Uuid(), charges=BigInteger(), exact_nano=Total, xor=BigInteger())
    statement = insert(tally).from_select(
        ["invoice_id", "charges", "exact_nano", "xor"],
        select(new.c.invoice_id, new.c.charges, new.c.exact_nano, new.c.xor),
    )
    statement = statement.on_conflict_do_update(
        index_elements=["invoice_id"],
        set_={
            "charges": tally.c.charges + statement.excluded.charges,
            "exact_nano": tally.c.exact_nano + statement.excluded.exact_nano,
            "xor": tally.c.xor.bitwise_xor(statement.excluded.xor),
        },
    )
    ordered = sorted(tallies, key=lambda key: key.invoice_id)
    await connection.execute(
        statement,
        {
            "new_invoice_id": [key.invoice_id for key in ordered],
            "new_charges": [tallies[key].charges for key in ordered],
            "new_exact_nano": [Decimal(tallies[key].exact_nano) for key in ordered],
            "new_xor": [tallies[key].xor for key in ordered],
        },
    )


async def add_paid(connection: AsyncConnection, posted: Mapping[InvoiceKey, Sequence[Paid]]) -> None:
    """Add what balance posted."""
    new = unnest("new", **_PAID)
    statement = insert(paid).from_select(list(_PAID), select(*new.c))
    statement = statement.on_conflict_do_update(
        index_elements=["invoice_id", "account_id", "currency"],
        set_={name: paid.c[name] + statement.excluded[name] for name in _PAID if name.endswith("_nano")},
    )
    rows = sorted(
        (
            key.invoice_id, each.account_id, each.currency, each.charged_nano, each.credits_nano, each.wallet_nano,
            each.unbilled_nano,
        )
        for key, sums in posted.items()
        for each in sums
    )  # fmt: skip
    columns = zip(_PAID, zip(*rows, strict=True), strict=True)
    await connection.execute(statement, {f"new_{name}": list(values) for name, values in columns})


_TEXTS = ARRAY(Text)
_LINE: dict[str, Any] = {
    "invoice_id": Uuid(), "account_id": Text(), "product": Text(), "cost_center_id": Text(), "period": Text(),
    "prepaid": Boolean(), "currency": Text(), "schedule": Text(), "charges": BigInteger(), "quantity": Quantity,
    "exact_nano": BigInteger(), "unit_price_min_nano": BigInteger(), "unit_price_max_nano": BigInteger(),
}  # fmt: skip
_LINE_KEY = list(_LINE)[: list(_LINE).index("charges")]
_PAID: dict[str, Any] = {
    "invoice_id": Uuid(), "account_id": Text(), "currency": Text(), "charged_nano": BigInteger(),
    "credits_nano": BigInteger(), "wallet_nano": BigInteger(), "unbilled_nano": BigInteger(),
}  # fmt: skip


# ---- cuts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """A boundary that was cut."""

    cutoff_id: UUID
    boundary: datetime
    cut_at: datetime
    passed_at: datetime | None
    held: tuple[str, ...]
    finished_at: datetime | None


async def request_close(connection: AsyncConnection, period: str, by: str) -> bool:
    """An operator names a period; False if it was named before."""
    row = select(literal(period), literal(by), CLOCK_NOW)
    statement = insert(close_request).from_select(["period", "requested_by", "requested_at"], row)
    statement = statement.on_conflict_do_nothing()
    return (await connection.execute(statement.returning(close_request.c.period))).first() is not None


async def named_periods(connection: AsyncConnection) -> list[str]:
    rows = (await connection.execute(select(close_request.c.period).order_by(close_request.c.period))).all()
    return [row.period for row in rows]


async def cut_boundaries(connection: AsyncConnection) -> frozenset[datetime]:
    return frozenset((await connection.execute(select(cutoff.c.boundary))).scalars())


async def insert_cutoffs(connection: AsyncConnection, cuts: Mapping[UUID, datetime], now: datetime) -> list[UUID]:
    """Cut these boundaries; returns those that were not cut before."""
    new = unnest("new", cutoff_id=Uuid(), boundary=Instant)
    statement = insert(cutoff).from_select(
        ["cutoff_id", "boundary", "cut_at"], select(new.c.cutoff_id, new.c.boundary, literal(now, Instant))
    )
    statement = statement.on_conflict_do_nothing()
    ordered = sorted(cuts, key=lambda each: cuts[each])
    rows = await connection.execute(
        statement.returning(cutoff.c.cutoff_id),
        {"new_cutoff_id": ordered, "new_boundary": [cuts[each] for each in ordered]},
    )
    return list(rows.scalars())


async def save_covered(connection: AsyncConnection, told: Sequence[Covered]) -> None:
    """Keep what rooms say of cuts; of a repeat the first holds."""
    new = unnest("new", cutoff_id=Uuid(), room=Text(), group_id=Text(), told=Text())
    statement = insert(covered).from_select(["cutoff_id", "room", "group_id", "told"], select(*new.c))
    await connection.execute(
        statement.on_conflict_do_nothing(),
        {
            "new_cutoff_id": [each.cutoff_id for each in told],
            "new_room": [each.room for each in told],
            "new_group_id": [each.group_id or WHOLE_CUT for each in told],
            "new_told": [each.model_dump_json() for each in told],
        },
    )


async def load_cuts(connection: AsyncConnection, *, unfinished: bool = False) -> list[Cut]:
    """Cuts, oldest first."""
    columns = cutoff.c
    statement = select(
        columns.cutoff_id, columns.boundary, columns.cut_at, columns.passed_at, columns.held, columns.finished_at
    ).order_by(columns.boundary)
    if unfinished:
        statement = statement.where(columns.finished_at.is_(None))
    rows = (await connection.execute(statement)).all()
    return [Cut(*row[:4], tuple(row.held or ()), row.finished_at) for row in rows]


async def load_coverage(connection: AsyncConnection, cutoff_id: UUID) -> Coverage:
    statement = select(covered.c.told).where(covered.c.cutoff_id == cutoff_id)
    rows = (await connection.execute(statement)).all()
    return Coverage.of(Covered.model_validate_json(row.told) for row in rows)


async def mark_passed(connection: AsyncConnection, cutoff_id: UUID, held: Collection[str], now: datetime) -> None:
    statement = update(cutoff).where(cutoff.c.cutoff_id == cutoff_id)
    await connection.execute(statement.values(passed_at=now, held=sorted(held)))


async def mark_finished(connection: AsyncConnection, cutoff_id: UUID, now: datetime) -> None:
    await connection.execute(update(cutoff).where(cutoff.c.cutoff_id == cutoff_id).values(finished_at=now))


async def save_evidence(connection: AsyncConnection, cutoff_id: UUID, evidence: Mapping[str, tuple[str, str]]) -> None:
    """Keep (body, SHA-256) per group; what is kept already stays as it is."""
    rows = [
        {"cutoff_id": cutoff_id, "group_id": group_id, "body": body, "sha256": sha256}
        for group_id, (body, sha256) in sorted(evidence.items())
    ]
    await connection.execute(insert(cutoff_evidence).on_conflict_do_nothing(), rows)


async def load_evidence(
    connection: AsyncConnection, cutoff_ids: Iterable[UUID] | None = None
) -> list[tuple[UUID, str, str, str]]:
    """(cutoff, group, body, SHA-256) of these cuts or of all, in order; group empty: of the whole cut."""
    columns = cutoff_evidence.c
    statement = select(columns.cutoff_id, columns.group_id, columns.body, columns.sha256)
    statement = statement.order_by(columns.cutoff_id, columns.group_id)
    if cutoff_ids is not None:
        statement = statement.where(columns.cutoff_id.in_(sorted(set(cutoff_ids))))
    return [(row.cutoff_id, row.group_id, row.body, row.sha256) for row in (await connection.execute(statement)).all()]


# ---- close ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """An open invoice of a period that is cut, locked."""

    key: InvoiceKey
    refused: str | None


def _open_in(ends: Mapping[str, str]) -> tuple[Select[Any], dict[str, Any]]:
    """Open invoices of the periods that end, by zone; those of unknown groups too, so that they are seen."""
    pairs = unnest("end", zone=Text(), period=Text())
    ending = exists(select(literal(1)).where(pairs.c.zone == billing_group.c.zone, pairs.c.period == invoice.c.period))
    statement = (
        select(invoice.c.group_id, invoice.c.period, invoice.c.refused)
        .select_from(invoice.outerjoin(billing_group, billing_group.c.group_id == invoice.c.group_id))
        .where(invoice.c.state == "open", invoice.c.period == func.any(bindparam("periods", type_=_TEXTS)))
        .where(or_(billing_group.c.group_id.is_(None), ending))
    )
    zones = sorted(ends)
    parameters = {
        "end_zone": zones,
        "end_period": [ends[each] for each in zones],
        "periods": sorted(set(ends.values())),
    }
    return statement, parameters


async def lock_open(
    connection: AsyncConnection, ends: Mapping[str, str], waiting: Collection[str], limit: int
) -> list[Candidate]:
    """Open invoices that may close, FOR UPDATE; those that another closer or a batch holds are left to the next round."""
    statement, parameters = _open_in(ends)
    statement = (
        statement.where(invoice.c.group_id != func.all(bindparam("waiting", type_=_TEXTS)))
        .order_by(invoice.c.refused_at.nulls_first(), invoice.c.group_id)
        .limit(limit)
        .with_for_update(of=invoice, skip_locked=True)
    )
    rows = (await connection.execute(statement, parameters | {"waiting": sorted(waiting)})).all()
    return [Candidate(InvoiceKey(row.group_id, row.period), row.refused) for row in rows]


async def any_open(connection: AsyncConnection, ends: Mapping[str, str]) -> bool:
    statement, parameters = _open_in(ends)
    return (await connection.execute(statement.limit(1), parameters)).first() is not None


async def load_lines(connection: AsyncConnection, ids: Iterable[UUID]) -> dict[UUID, list[LineSum]]:
    statement = select(*(line.c[name] for name in _LINE)).where(line.c.invoice_id == func.any(_IDS))
    lines: dict[UUID, list[LineSum]] = {}
    key = len(_LINE_KEY)
    for row in (await connection.execute(statement, {"ids": sorted(ids)})).all():
        of_line = LineSum(LineKey(*row[1:key]), *row[key:])
        lines.setdefault(row.invoice_id, []).append(replace(of_line, quantity=int(row.quantity)))
    return lines


async def load_tallies(connection: AsyncConnection, ids: Iterable[UUID]) -> dict[UUID, Tally]:
    columns = tally.c
    statement = select(columns.invoice_id, columns.charges, columns.exact_nano, columns.xor)
    statement = statement.where(columns.invoice_id == func.any(_IDS))
    rows = (await connection.execute(statement, {"ids": sorted(ids)})).all()
    return {row.invoice_id: Tally(row.charges, int(row.exact_nano), row.xor) for row in rows}


async def load_paid(connection: AsyncConnection, ids: Iterable[UUID]) -> dict[UUID, list[Paid]]:
    statement = select(*(paid.c[name] for name in _PAID)).where(paid.c.invoice_id == func.any(_IDS))
    posted: dict[UUID, list[Paid]] = {}
    for row in (await connection.execute(statement, {"ids": sorted(ids)})).all():
        posted.setdefault(row.invoice_id, []).append(Paid(*row[1:]))
    return posted


async def take_numbers(connection: AsyncConnection, counts: Mapping[str, int]) -> dict[str, int]:
    """Draw numbers per billing entity and return the first of each; the rows stay locked until the commit, so no gap."""
    new = unnest("new", billing_entity_id=Text(), taken=BigInteger())
    statement = insert(number_series).from_select(
        ["billing_entity_id", "last_number"], select(new.c.billing_entity_id, new.c.taken)
    )
    statement = statement.on_conflict_do_update(
        index_elements=["billing_entity_id"],
        set_={"last_number": number_series.c.last_number + statement.excluded.last_number},
    )
    ordered = sorted(counts)
    rows = await connection.execute(
        statement.returning(number_series.c.billing_entity_id, number_series.c.last_number),
        {"new_billing_entity_id": ordered, "new_taken": [counts[each] for each in ordered]},
    )
    return {row.billing_entity_id: row.last_number - counts[row.billing_entity_id] + 1 for row in rows.all()}


@dataclass(frozen=True, slots=True)
class Closed:
    """An invoice with everything that its close decided."""

    key: InvoiceKey
    billing_entity_id: str
    number: str
    issued_on: datetime
    currency: str
    amounts: Bill
    body: str
    sha256: str


async def save_closed(connection: AsyncConnection, closed: Sequence[Closed], cutoff_id: UUID) -> None:
    """The invoices are closed, with number and totals."""
    names = ("net_nano", "tax_nano", "total_nano", "due_nano")
    new = unnest(
        "new", invoice_id=Uuid(), closed_at=Instant, billing_entity_id=Text(), number=Text(), currency=Text(),
        net_nano=Total, tax_nano=Total, total_nano=Total, due_nano=Total,
    )  # fmt: skip
    statement = update(invoice).where(invoice.c.invoice_id == new.c.invoice_id)
    statement = statement.values(
        state="closed", cutoff_id=cutoff_id, refused=None, refused_at=None,
        **{name: new.c[name] for name in ("closed_at", "billing_entity_id", "number", "currency", *names)},
    )  # fmt: skip
    parameters: dict[str, list[Any]] = {
        "new_invoice_id": [each.key.invoice_id for each in closed],
        "new_closed_at": [each.issued_on for each in closed],
        "new_billing_entity_id": [each.billing_entity_id for each in closed],
        "new_number": [each.number for each in closed],
        "new_currency": [each.currency for each in closed],
    }
    for name in names:
        parameters[f"new_{name}"] = [Decimal(getattr(each.amounts, name)) for each in closed]
    await connection.execute(statement, parameters)


async def save_documents(connection: AsyncConnection, closed: Sequence[Closed]) -> None:
    """The documents of closed invoices; never written again."""
    rows = [{"invoice_id": each.key.invoice_id, "body": each.body, "sha256": each.sha256} for each in closed]
    await connection.execute(insert(document), rows)


async def save_nothing(connection: AsyncConnection, ids: Iterable[UUID], cutoff_id: UUID, now: datetime) -> None:
    """Invoices on which no charge stands are closed without a number."""
    statement = update(invoice).where(invoice.c.invoice_id == func.any(_IDS))
    statement = statement.values(state="nothing", closed_at=now, cutoff_id=cutoff_id, refused=None, refused_at=None)
    await connection.execute(statement, {"ids": sorted(ids)})


async def save_refused(connection: AsyncConnection, refused: Mapping[UUID, str], now: datetime) -> None:
    """Why invoices may not close, for a person to look at; they stay open and are tried again."""
    new = unnest("new", invoice_id=Uuid(), refused=Text())
    statement = update(invoice).where(invoice.c.invoice_id == new.c.invoice_id)
    statement = statement.values(refused=new.c.refused, refused_at=now)
    ordered = sorted(refused)
    await connection.execute(statement, {"new_invoice_id": ordered, "new_refused": [refused[each] for each in ordered]})


async def save_settlements(connection: AsyncConnection, told: Sequence[GroupEvent]) -> set[tuple[UUID, int]]:
    """Steps of closed invoices as balance told them; returns (invoice, version) of those that were not known."""
    names = [column.name for column in settlement.columns]
    new = unnest("new", **{column.name: column.type for column in settlement.columns})
    statement = (
        insert(settlement)
        .from_select(names, select(*[new.c[name] for name in names]))
        .on_conflict_do_nothing()
        .returning(settlement.c.invoice_id, settlement.c.version)
    )
    rows = []
    for event in told:
        standing = event.invoice
        if standing is None:
            continue
        amounts = (standing.paid, standing.written_off, standing.open, standing.credited)
        rows.append(
            (
                standing.invoice_id, standing.version, event.kind, event.at, standing.state,
                Decimal(parse_amount(event.amount or "0", signed=True)), event.source, event.reference,
                *(Decimal(parse_amount(each, signed=True)) for each in amounts),
            )
        )  # fmt: skip
    columns = zip(*rows, strict=True)
    parameters = {f"new_{name}": list(column) for name, column in zip(names, columns, strict=True)}
    return {(row.invoice_id, row.version) for row in (await connection.execute(statement, parameters)).all()}


# ---- after a restore -----------------------------------------------------------------------------------------------


async def sellers(connection: AsyncConnection) -> dict[str, tuple[str, str]]:
    """Of each group who issues its invoices, and the prefix of the numbers."""
    rows = (await connection.execute(select(billing_group.c.told))).all()
    groups = (BillingGroup.model_validate_json(row.told) for row in rows)
    return {
        each.group_id: (each.billing_entity.billing_entity_id, each.billing_entity.number_prefix) for each in groups
    }


async def save_undone(
    connection: AsyncConnection, documents: Sequence[tuple[InvoiceClosed | CreditNoteIssued, str | None]]
) -> None:
    """Keep documents that a restore undid, each with its seller, in the order they were told."""
    place = func.nextval("invoices.undone_place_seq")
    for told, seller_id in documents:
        row = {"period": told.period, "kind": told.kind, "billing_entity_id": seller_id, "told": told.model_dump_json()}
        statement = insert(undone).values(number=told.number, group_id=told.group_id, place=place, **row)
        statement = statement.on_conflict_do_update(index_elements=["number", "group_id"], set_={**row, "place": place})
        await connection.execute(statement)


async def raise_numbers(connection: AsyncConnection, highest: Mapping[str, int]) -> None:
    """The numbers of these sellers go on above these."""
    statement = insert(number_series).values(
        [{"billing_entity_id": each, "last_number": highest[each]} for each in sorted(highest)]
    )
    last = func.greatest(number_series.c.last_number, statement.excluded.last_number)
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["billing_entity_id"], set_={"last_number": last})
    )


async def load_undone(connection: AsyncConnection, keys: Iterable[InvoiceKey]) -> dict[InvoiceKey, InvoiceClosed]:
    """Of these invoices the documents that were told last in a life that a restore undid."""
    wanted = unnest("wanted", group_id=Text(), period=Text())
    statement = (
        select(undone.c.told)
        .where(undone.c.kind == "closed")
        .where(tuple_(undone.c.group_id, undone.c.period).in_(select(wanted.c.group_id, wanted.c.period)))
        .order_by(undone.c.place)
    )
    ordered = sorted(keys)
    parameters = {
        "wanted_group_id": [key.group_id for key in ordered],
        "wanted_period": [key.period for key in ordered],
    }
    told = [InvoiceClosed.model_validate_json(row.told) for row in await connection.execute(statement, parameters)]
    return {InvoiceKey(each.group_id, each.period): each for each in told}


# ---- reading -------------------------------------------------------------------------------------------------------


async def load_received(connection: AsyncConnection) -> dict[LinkKey, int]:
    """``received_to`` of every link of this room."""
    columns = runtime_tables("invoices").link_in.c
    statement = select(columns.link, columns.topic, columns.partition, columns.received_to)
    rows = (await connection.execute(statement)).all()
    return {(row.link, row.topic, row.partition): row.received_to for row in rows}


# How a closed invoice stands: void once all of it is credited; else as balance told it last; before it told anything, one of
# which nothing is due is paid.
_newest = (
    select(settlement)
    .where(settlement.c.invoice_id == invoice.c.invoice_id)
    .order_by(settlement.c.version.desc())
    .limit(1)
    .lateral("newest")
)
_VOIDED = exists(
    select(literal(1)).where(
        credit_note.c.invoice_id == invoice.c.invoice_id, credit_note.c.state == "issued", credit_note.c.voids
    )
)
_STANDING = case(
    (invoice.c.state != "closed", invoice.c.state),
    (_VOIDED, "void"),
    (_newest.c.state.is_not(None), _newest.c.state),
    (invoice.c.due_nano == 0, "paid"),
    else_="closed",
)

_CREDITS = (
    select(func.coalesce(func.sum(paid.c.credits_nano), 0))
    .where(paid.c.invoice_id == invoice.c.invoice_id)
    .scalar_subquery()
)


async def list_invoices(
    connection: AsyncConnection,
    *,
    period: str | None = None,
    group_id: str | None = None,
    state: str | None = None,
    standings: Collection[str] | None = None,
    limit: int | None = None,
) -> list[Any]:
    """Invoice rows with their tallies and standing, by period, then number, then group."""
    statement = (
        select(
            invoice,
            tally.c.charges,
            tally.c.exact_nano,
            tally.c.xor,
            _CREDITS.label("credits_nano"),
            document.c.sha256,
            _STANDING.label("standing"),
            _newest.c.paid_nano,
            _newest.c.written_off_nano,
            _newest.c.credited_nano,
            _newest.c.open_nano,
        )
        .select_from(
            invoice.outerjoin(tally, tally.c.invoice_id == invoice.c.invoice_id)
            .outerjoin(document, document.c.invoice_id == invoice.c.invoice_id)
            .outerjoin(_newest, true())
        )
        .order_by(invoice.c.period, invoice.c.billing_entity_id, invoice.c.number, invoice.c.group_id)
        .limit(limit)
    )
    for column, wanted in ((invoice.c.period, period), (invoice.c.group_id, group_id), (invoice.c.state, state)):
        if wanted is not None:
            statement = statement.where(column == wanted)
    if standings is not None:
        statement = statement.where(_STANDING.in_(sorted(standings)))
    return list((await connection.execute(statement)).all())


async def load_settlements(connection: AsyncConnection, invoice_id: UUID) -> list[Any]:
    """Each step of an invoice after its close, in order."""
    statement = select(settlement).where(settlement.c.invoice_id == invoice_id).order_by(settlement.c.version)
    return list((await connection.execute(statement)).all())


async def load_applied(connection: AsyncConnection) -> list[Any]:
    """Each step of every invoice that applied something to it."""
    columns = settlement.c
    statement = select(columns.invoice_id, columns.version, columns.source, columns.amount_nano)
    return list((await connection.execute(statement.where(columns.source.is_not(None)))).all())


async def find_documents(connection: AsyncConnection, reference: str, as_id: UUID | None) -> list[tuple[str, str]]:
    """(body, SHA-256) of the documents with this number or invoice id."""
    same = invoice.c.number == reference
    if as_id is not None:
        same = or_(same, invoice.c.invoice_id == as_id)
    statement = (
        select(document.c.body, document.c.sha256)
        .join(invoice, and_(invoice.c.invoice_id == document.c.invoice_id, same))
        .order_by(invoice.c.billing_entity_id)
    )
    return [(row.body, row.sha256) for row in (await connection.execute(statement)).all()]


async def load_documents(connection: AsyncConnection, ids: Iterable[UUID]) -> dict[UUID, tuple[str, str]]:
    statement = select(document).where(document.c.invoice_id == func.any(_IDS))
    rows = (await connection.execute(statement, {"ids": sorted(ids)})).all()
    return {row.invoice_id: (row.body, row.sha256) for row in rows}


async def known_groups(connection: AsyncConnection, group_id: str | None) -> list[tuple[str, str]]:
    """(group, zone), in order."""
    statement = select(billing_group.c.group_id, billing_group.c.zone).order_by(billing_group.c.group_id)
    if group_id is not None:
        statement = statement.where(billing_group.c.group_id == group_id)
    return [(row.group_id, row.zone) for row in (await connection.execute(statement)).all()]


async def load_states(connection: AsyncConnection, keys: Iterable[InvoiceKey]) -> dict[InvoiceKey, Any]:
    """(state, number, refused) of the invoices that exist."""
    wanted = unnest("wanted", group_id=Text(), period=Text())
    statement = select(
        invoice.c.group_id, invoice.c.period, invoice.c.state, invoice.c.number, invoice.c.refused
    ).where(tuple_(invoice.c.group_id, invoice.c.period).in_(select(wanted.c.group_id, wanted.c.period)))
    ordered = sorted(keys)
    parameters = {
        "wanted_group_id": [key.group_id for key in ordered],
        "wanted_period": [key.period for key in ordered],
    }
    rows = (await connection.execute(statement, parameters)).all()
    return {InvoiceKey(row.group_id, row.period): row for row in rows}


async def number_ranges(connection: AsyncConnection) -> list[tuple[str, int, int]]:
    """(billing entity, last number given out, documents with a number of it): both are equal when there is no gap. Of those that
    a restore undid, one whose number was given out again counts once."""
    numbered = union(
        select(invoice.c.billing_entity_id, invoice.c.number),
        select(credit_note.c.billing_entity_id, credit_note.c.number),
        select(undone.c.billing_entity_id, undone.c.number),
    ).subquery()
    entity_id = func.coalesce(number_series.c.billing_entity_id, numbered.c.billing_entity_id)
    last_number = func.coalesce(number_series.c.last_number, 0)
    statement = (
        select(entity_id, last_number, func.count(numbered.c.number))
        .join_from(
            number_series, numbered, numbered.c.billing_entity_id == number_series.c.billing_entity_id, full=True
        )
        .where(entity_id.is_not(None))
        .group_by(entity_id, last_number)
        .order_by(entity_id)
    )
    return [(row[0], row[1], row[2]) for row in (await connection.execute(statement)).all()]
