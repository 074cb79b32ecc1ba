"""The auditor: passes after a real run of the whole chain, and finds every corruption that is planted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.cli import verify
from services.runtime import resuming
from services.runtime.database import transaction
from services.runtime.lanes import stop_lane
from services.runtime.tables import runtime_tables
from tests.support.chain import Chain, running
from tests.support.servers import TestedServers

SEED = 20


@pytest.fixture(scope="module")
async def closed(servers: TestedServers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    """A month of usage, closed, with held groups, replays, discards, late records, a credit note; the rooms are stopped."""
    folder: Path = tmp_path_factory.mktemp("verify")
    async with running(servers, folder, seed=SEED) as chain:
        chain.start_rooms()
        await chain.found()
        await chain.publish(chain.factory.mix(700))
        await chain.publish_aborted(chain.factory.inputs[:20])
        await give_up_a_record(chain)
        await chain.end_grace()
        await chain.name_period(chain.period_before(1))
        await chain.passed(chain.period_before(1))
        await chain.name_period(chain.period)
        await chain.publish(chain.factory.mix(200))
        await chain.passed(chain.period)
        await chain.decide_quarantine()
        await chain.finished()
        await chain.credit("late-payers")
        await chain.publish(chain.factory.mix(200))
        await chain.idle()
        chain.processes.stop()
        yield chain


async def give_up_a_record(chain: Chain) -> None:
    """A lane of usage stops, and goes on without a record by the word of a person."""
    await chain.idle()
    chain.processes.stop("usage1")
    topic = chain.factory.inputs[0].topic
    sent = await (await chain.send(topic, b"k", b"never read"))
    lane = f"events/{topic}/{sent.partition}"
    tables = runtime_tables("usage")
    async with chain.engine("usage") as engine:
        async with transaction(engine) as connection:
            await stop_lane(connection, tables, lane, "a test")
        plan = await resuming.plan(engine, tables, chain.settings, lane, offset=sent.offset + 1, earliest=False)
        await resuming.resume(engine, tables, plan, by="ann", reason="nobody can read it")
    chain.start("usage")


async def test_a_run_of_the_whole_chain_is_what_the_model_says(closed: Chain) -> None:
    assert await closed.retried()
    assert closed.discards
    assert await closed.judged() == []


async def test_the_auditor_passes_after_a_real_run(closed: Chain) -> None:
    report = await verify.run(closed.settings)
    assert [check for check in report.checks if not check.ok] == []
    assert report.ok
    assert [check.name[0] for check in report.checks] == list("123456789")
    assert all(check.looked_at != "nothing" for check in report.checks)
    assert report.facts["at rest"] == "yes"
    assert report.facts["stopped lanes"] == "none"
    assert "by ann: nobody can read it" in report.facts["lanes that a person let go on"]
    assert "1 records given up by a person" in report.checks[0].looked_at
    assert report.facts["cuts that wait"] == "none"
    assert "movable" in report.facts["clock"]
    assert "invalid_event" in report.facts["undecided records"]


async def test_one_period_can_be_audited_by_itself(closed: Chain) -> None:
    report = await verify.run(closed.settings, closed.period)
    assert report.ok
    assert report.facts["cuts"] == "2"  # its end in each of the two zones


SHOWN = (
    "insert into {{table}} (invoice_id, version, kind, at, state, amount_nano, source, paid_nano, written_off_nano,"
    " credited_nano, open_nano) select invoice_id, 1, 'invoice_paid', closed_at, '{state}', 10000000, {source}, 0, 0, 0,"
    " due_nano from invoices.invoice where state = 'closed' and due_nano > 0 and invoice_id not in"
    " (select invoice_id from {{table}}) limit 1"
)

CORRUPTIONS = {
    "an identity is gone": (1, "usage.identity", "delete from {table} where ctid in (select ctid from {table} limit 1)"),
    "a parked record is gone": (1, "usage.parked", "delete from {table} where id = (select min(id) from {table})"),
    "a link was not received to its end": (
        2,
        "invoices.link_in",
        "update {table} set received_to = received_to - 1 where topic = 'usage.charges'",
    ),
    "more was given out than was sent": (
        2,
        "balance.link_out",
        "update {table} set last_seq = last_seq + 1 where topic = 'balance.postings'",
    ),
    "a charge is gone": (
        3,
        "usage.charge",
        "delete from {table} where charge_id = (select charge_id from {table} where group_id is not null limit 1)",
    ),
    "a charge stands on another invoice": (
        3,
        "usage.charge",
        "update {table} set group_id = 'night' where charge_id ="
        " (select charge_id from {table} where group_id = 'northwind' limit 1)",
    ),
    "a charge costs a nano more": (
        3,
        "usage.charge",
        "update {table} set amount_nano = amount_nano + 1 where charge_id ="
        " (select charge_id from {table} where group_id is not null limit 1)",
    ),
    "a charge is of another quantity": (
        3,
        "usage.charge",
        "update {table} set quantity = quantity + 1 where charge_id ="
        " (select charge_id from {table} where group_id is not null and schedule is null limit 1)",
    ),
    "a charge is of another plan": (
        3,
        "usage.charge",
        "update {table} set plan = 'payg' where charge_id = (select charge_id from {table} where plan = 'invoiced' limit 1)",
    ),
    "a line of an invoice was edited": (
        4,
        "invoices.line",
        "update {table} set exact_nano = exact_nano + 1 where invoice_id ="
        " (select invoice_id from invoices.invoice where state = 'closed' limit 1)",
    ),
    "the total of an invoice was edited": (
        4,
        "invoices.invoice",
        "update {table} set tax_nano = tax_nano + 10000000, total_nano = total_nano + 10000000 where number ="
        " (select min(number) from {table})",
    ),
    "a document was edited": (
        4,
        "invoices.document",
        "update {table} set body = replace(body, '\"charges\":', '\"charges\":1')"
        " where invoice_id = (select invoice_id from {table} limit 1)",
    ),
    "a document was edited, and its hash": (
        4,
        "invoices.document",
        "with edited as (select invoice_id, replace(body, 'Tollbook Inc.', 'Somebody Inc.') as body from {table})"
        " update {table} d set body = e.body, sha256 = encode(sha256(convert_to(e.body, 'UTF8')), 'hex')"
        " from edited e where e.invoice_id = d.invoice_id",
    ),
    "a credit note was edited, and its hash": (
        4,
        "invoices.credit_note_document",
        "with edited as (select credit_note_id, replace(body, '\"reason\":', '\"reason\":\"all\",\"was\":') as body from {table})"
        " update {table} d set body = e.body, sha256 = encode(sha256(convert_to(e.body, 'UTF8')), 'hex')"
        " from edited e where e.credit_note_id = d.credit_note_id",
    ),
    "a credit note is not issued any more": (
        4,
        "invoices.credit_note",
        "update {table} set state = 'approved', number = null, issued_at = null where state = 'issued'",
    ),
    "a credit note says another amount than its document": (
        4,
        "invoices.credit_note",
        "update {table} set net_nano = net_nano + 10000000, total_nano = total_nano + 10000000 where state = 'issued'",
    ),
    "a document cannot be read": (4, "invoices.document", "update {table} set body = left(body, 99)"),
    "a credit note cannot be read": (4, "invoices.credit_note_document", "update {table} set body = left(body, 99)"),
    "a closed invoice is dated otherwise": (
        4,
        "invoices.invoice",
        "update {table} set closed_at = closed_at + interval '1 day' where number = (select min(number) from {table})",
    ),
    "what balance posted is another account's": (
        4,
        "invoices.paid",
        "update {table} set unbilled_nano = unbilled_nano + case account_id when 'east' then 1 else -1 end,"
        " charged_nano = charged_nano + case account_id when 'east' then 1 else -1 end"
        " where account_id in ('east', 'west') and invoice_id = (select invoice_id from invoices.invoice"
        " where group_id = 'northwind' and state = 'closed')",
    ),
    "what a credit note gave back is gone": (
        5,
        "balance.entry",
        "delete from {table} where transaction_id in (select id from balance.transaction where kind = 'credit_note')",
    ),
    "a number was left out": (4, "invoices.number_series", "update {table} set last_number = last_number + 1"),
    "an entry of the ledger is gone": (
        5,
        "balance.entry",
        "delete from {table} where ctid = (select ctid from {table} where ledger = 'opening' limit 1)",
    ),
    "an entry is nobody's": (
        8,
        "balance.entry",
        "update {table} set account_id = null where ctid = (select ctid from {table} where ledger = 'wallet' limit 1)",
    ),
    "a closing is gone": (
        5,
        "balance.entry",
        "delete from {table} where transaction_id = (select id from balance.transaction where kind = 'closing' limit 1)",
    ),
    "charges of a batch are gone": (
        5,
        "balance.charged",
        "delete from {table} where ctid = (select ctid from {table} limit 1)",
    ),
    "a wallet was edited": (5, "balance.wallet", "update {table} set wallet_nano = wallet_nano + 1 where plan = 'payg'"),
    "a wallet holds what no call holds": (5, "balance.wallet", "update {table} set held_nano = held_nano + 1 where plan = 'payg'"),
    "a payment is credited to an attempt that was declined": (
        5,
        "balance.attempt",
        "update {table} set state = 'declined' where attempt_id = (select attempt_id from {table} where state = 'settled' limit 1)",
    ),
    "a share of an unpaid invoice was edited": (
        9,
        "balance.receivable_share",
        "update {table} set open_nano = open_nano + 10000000 where ctid = (select ctid from {table} limit 1)",
    ),
    "an invoice was made paid by hand": (
        9,
        "balance.receivable",
        "update {table} set paid_nano = due_nano where invoice_id = (select invoice_id from {table} where due_nano > 0 limit 1)",
    ),
    "an invoice is due later": (9, "balance.receivable", "update {table} set due_on = due_on + interval '30 days'"),
    "an invoice is shown as paid that nobody paid": (9, "invoices.settlement", SHOWN.format(state="paid", source="null")),
    "a payment is shown that nobody made": (9, "invoices.settlement", SHOWN.format(state="closed", source="'transfer'")),
    "a group was given what it never paid": (
        9,
        "balance.payer",
        "update {table} set unapplied_nano = unapplied_nano + 10000000 where group_id = 'northwind'",
    ),
    "evidence was edited": (
        6,
        "invoices.cutoff_evidence",
        "update {table} set body = replace(body, '\"rated\":', '\"rated\":1')",
    ),
    "evidence was edited, and its hash": (
        4,
        "invoices.cutoff_evidence",
        "with edited as (select cutoff_id, group_id, replace(body, '\"rated\":', '\"rated\":1') as body from {table})"
        " update {table} d set body = e.body, sha256 = encode(sha256(convert_to(e.body, 'UTF8')), 'hex')"
        " from edited e where (e.cutoff_id, e.group_id) = (d.cutoff_id, d.group_id)",
    ),
    "a cut was moved": (
        6,
        "usage.cut_position",
        'update {table} set position = position + 1 where cutoff_id = (select cutoff_id from usage.cut limit 1)',
    ),
    "a cut was dated otherwise": (
        6,
        "invoices.cutoff",
        "update {table} set boundary = boundary - interval '1 hour' where boundary = (select min(boundary) from {table})",
    ),
    "a seal was edited": (
        8,
        "balance.seal",
        "update {table} set content = sha256(content) where (lane, seq) = (select lane, seq from {table} limit 1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("corruption", CORRUPTIONS)
async def test_the_auditor_finds(closed: Chain, corruption: str) -> None:
    number, table, statement = CORRUPTIONS[corruption]
    async with corrupted(closed, table, statement.format(table=table)):
        report = await verify.run(closed.settings)
        assert not report.ok
        failed = [check.name[0] for check in report.checks if not check.ok]
        assert str(number) in failed, f"failed: {failed}"
    if number == 6:
        assert (await verify.run(closed.settings)).ok, "what was put back is whole again"


async def test_the_auditor_says_what_waits(closed: Chain) -> None:
    """A cut that is asked for while the rooms stand still is no failure, but it is shown."""
    async with corrupted(closed, "invoices.cutoff", "update invoices.cutoff set finished_at = null"):
        report = await verify.run(closed.settings)
        assert report.ok
        assert report.facts["cuts that wait"] != "none"


async def test_the_auditor_names_silent_sources(closed: Chain) -> None:
    assert (await verify.run(closed.settings)).facts["silent sources"] == "none"
    silent = '"silent_sources":[{"publisher_id":"switch","source":"pbx/1"}],"silent_sources_count":3'
    statement = (
        'update invoices.covered set told = replace(told, \'"silent_sources":[],"silent_sources_count":0\', '
        f"'{silent}') where room = 'usage' and group_id = ''"
    )
    async with corrupted(closed, "invoices.covered", statement):
        assert "switch pbx/1, and 2 more" in (await verify.run(closed.settings)).facts["silent sources"]


@asynccontextmanager
async def corrupted(chain: Chain, table: str, statement: str) -> AsyncIterator[None]:
    """Change a table behind everybody's back, and put it back as it was."""
    async with chain.owner.acquire() as owner:
        await owner.execute(f"alter table {table} disable trigger user")
        await owner.execute(f"create temporary table kept as table {table}")
        try:
            done = await owner.execute(statement)
            assert not done.endswith(" 0"), f"{statement} changed nothing"
            yield
        finally:
            await put_back(owner, table)
            await owner.execute("drop table kept")
            await owner.execute(f"alter table {table} enable trigger user")


async def put_back(owner: Any, table: str) -> None:
    """Rows are put back in place where there is a key, since others may refer to them; else taken away and added."""
    columns = await owner.fetch(
        "select quote_ident(a.attname) as name, coalesce(a.attnum = any(i.indkey), false) as is_key"
        " from pg_attribute a left join pg_index i on i.indrelid = a.attrelid and i.indisprimary"
        " where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped and a.attidentity = ''",
        table,
    )
    key = " and ".join(f"x.{row['name']} = k.{row['name']}" for row in columns if row["is_key"])
    others = [row["name"] for row in columns if not row["is_key"]]
    if key:
        changes = ", ".join(f"{name} = k.{name}" for name in others)
        await owner.execute(f"delete from {table} x where not exists (select from kept k where {key})")
        await owner.execute(f"update {table} x set {changes} from kept k where {key} and x::text <> k::text")
    else:
        await owner.execute(f"delete from {table} x where not (x::text = any(select k::text from kept k))")
    missing = "not (k::text = any(select x::text from {0} x))"
    await owner.execute(f"insert into {table} select * from kept k where {missing.format(table)}")
