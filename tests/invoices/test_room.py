"""The room on a real database: what is accumulated, when it closes, what it tells."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update

from services.invoices import accumulation, api, handler
from services.invoices.documents import canonical, sha256_of
from services.invoices.tables import cutoff, invoice, line, number_series, paid, tally
from services.kernel.errors import Corrupt, InvalidInput, NotFound, Refused
from services.kernel.ids import cutoff_id
from services.kernel.period import next_period, period_named
from services.runtime.database import transaction
from services.runtime.room import Tick
from services.runtime.work import Work
from tests.invoices.neighbours import SOON, Neighbours, neighbours, records_of, sums_to_zero

GRACE = timedelta(hours=48)


@pytest.fixture
async def around(database):
    made = await neighbours(database)
    yield made
    await made.rooms.__aexit__()


def engine(around: Neighbours):
    return around.rooms.processors["invoices"].engine


async def cut_the_month(around: Neighbours):
    """The running month ends, its grace passes, and it is cut."""
    boundary = around.period.end
    await around.settle()
    await around.move_to(boundary + GRACE + SOON)
    await around.settle()
    return boundary


async def close_the_month(around: Neighbours):
    boundary = await cut_the_month(around)
    around.all_covered(boundary)
    await around.settle()
    return boundary


async def states(around: Neighbours):
    rows = await around.rooms.query("invoices", select(invoice.c.group_id, invoice.c.period, invoice.c.state))
    return {(row.group_id, row.period): row.state for row in rows}


def northwind(around: Neighbours):
    around.group("northwind", tax_rate="0.20")
    for account_id, amount in (("east", "0.3630"), ("west", "0.1244"), ("offshore", "0.1080")):
        around.account(account_id, account_id.title(), "northwind", around.period.start)
        around.charge(account_id, amount)


async def close_two_invoices(around: Neighbours):
    """Northwind's of the month, postpaid, and one of a prepaid account."""
    northwind(around)
    around.group("lakeside")
    around.charge("frontdesk", "0.028", group_id="lakeside", plan="payg")
    await close_the_month(around)


# ---- accumulation ----------------------------------------------------------------------------------------------------


async def test_the_estimate_runs_with_the_charges_and_is_rounded_like_the_invoice(around):
    northwind(around)
    await around.settle()
    document = await api.estimate(engine(around), "northwind")
    assert document["state"] == "estimate"
    assert (document["totals"]["net"], document["rounding"], document["totals"]["due"]) == ("0.60", "0.01", "0.72")
    assert {each["account_name"] for each in document["lines"]} == {"East", "West", "Offshore"}
    around.charge("east", "0.0370")
    await around.settle()
    document = await api.estimate(engine(around), "northwind", around.period.name)
    assert (document["evidence"]["charges"], document["evidence"]["exact_sum"]) == (4, "0.6324")
    assert "ESTIMATE" in api.as_text(document)


async def test_a_group_without_charges_has_an_estimate_of_zero_and_an_unknown_one_none(around):
    around.group("quiet")
    await around.settle()
    assert (await api.estimate(engine(around), "quiet"))["totals"]["total"] == "0.00"
    with pytest.raises(NotFound, match="group_id"):
        await api.estimate(engine(around), "nobody")


async def test_many_batches_add_up_on_few_rows(around):
    around.group("northwind")
    for number in range(60):
        around.charge(f"a{number % 3}", "0.000141667", quantity=1)
        if number % 7 == 0:
            await around.rooms.pump()
    await around.rooms.pump()
    rows = await around.rooms.query("invoices", select(line.c.charges, line.c.quantity, line.c.exact_nano))
    assert sorted(rows) == [(20, 20, 2_833_340)] * 3
    ((charges, exact),) = await around.rooms.query("invoices", select(tally.c.charges, tally.c.exact_nano))
    assert (charges, int(exact)) == (60, 8_500_020)


async def test_a_quantity_that_fits_no_bigint_keeps_nobody_waiting(around):
    """The largest that usage bills, many times: bytes in steps of a mistyped price, which nobody can take back at once."""
    around.group("northwind")
    used = 2 * 10**15
    for _ in range(5):
        for _ in range(1_000):
            around.charge("sensors", "0.000001", product="data", unit="byte", quantity=used, posted=False)
        await around.rooms.pump()
    around.charge("east", "1")
    await around.settle()
    document = await api.estimate(engine(around), "northwind")
    quantities = {each["account_id"]: each["quantity"] for each in document["lines"]}
    assert quantities == {"sensors": 5_000 * used, "east": 60}
    assert 5_000 * used > 2**63


async def test_charges_of_trial_accounts_stand_on_no_invoice(around):
    around.charge("try", "0.07", group_id=None, bill_to=None, period=None, plan="trial")
    await around.settle()
    assert await states(around) == {}


async def test_late_charges_are_prior_period_lines_of_the_next_invoice(around):
    northwind(around)
    await close_the_month(around)
    after = around.period
    around.charge("east", "0.1974", bill_to=after.name)
    around.charge("offshore", "0.1230", bill_to=after.name)
    before = after.start - timedelta(days=1)
    around.charge("east", "0.0250", bill_to=after.name, period=before.strftime("%Y-%m"))
    await around.settle()
    document = await api.estimate(engine(around), "northwind", after.name)
    assert document["evidence"]["exact_sum"] == "0.3454"
    assert [(each["period"], each["exact"]) for each in document["lines"] if each["prior_period"]] == [
        (before.strftime("%Y-%m"), "0.025")
    ]


# ---- the cut ---------------------------------------------------------------------------------------------------------


async def test_a_boundary_is_cut_once_when_its_grace_is_over(around):
    around.group("northwind")
    boundary = around.period.end
    await around.settle()
    await around.move_to(boundary + GRACE - SOON)
    await around.settle()
    assert around.log.data("closing.cutoffs") == []
    await around.move_to(boundary + GRACE + SOON)
    await around.settle()
    await around.settle()
    assert around.log.data("closing.cutoffs") == [
        {"cutoff_id": str(cutoff_id(boundary)), "boundary": boundary.isoformat().replace("+00:00", "Z")}
    ]


async def test_a_month_before_the_installation_is_cut_when_an_operator_names_it(around):
    around.group("northwind")
    await around.move_to(around.period.start + timedelta(days=20) if around.now.day < 4 else around.now + SOON)
    before = period_named((around.period.start - timedelta(days=1)).strftime("%Y-%m"))
    around.charge("east", "0.0250", bill_to=before.name)
    await around.settle()
    assert around.log.data("closing.cutoffs") == []
    (standing,) = await api.status(engine(around), before.name)
    assert (standing.state, standing.waiting_for) == ("open", "an operator to name the period")
    asked = await api.request_close(engine(around), before.name, "olga")
    assert (asked.boundaries, asked.again) == ((before.end,), False)
    assert (await api.request_close(engine(around), before.name, "olga")).again
    await around.settle()
    assert [each["cutoff_id"] for each in around.log.data("closing.cutoffs")] == [str(cutoff_id(before.end))]


async def test_naming_a_period_too_early_is_refused_and_the_grace_can_be_set(around):
    around.group("northwind")
    await around.settle()
    with pytest.raises(Refused, match="only a period that has ended"):
        await api.request_close(engine(around), around.period.name, "olga")
    await around.move_to(around.period.end)
    name = (around.now - timedelta(days=1)).strftime("%Y-%m")
    with pytest.raises(Refused, match="grace of 48 hours"):
        await api.request_close(engine(around), name, "olga")
    await api.set_grace(engine(around), timedelta(0))
    assert (await api.request_close(engine(around), name, "olga")).boundaries
    with pytest.raises(InvalidInput, match="grace"):
        await api.set_grace(engine(around), timedelta(days=31))


async def test_each_zone_is_cut_at_its_own_midnight_and_closes_on_its_own(around):
    around.group("northwind")
    around.group("detroit", zone="America/Detroit")
    around.charge("east", "1")
    around.charge("office", "2", group_id="detroit")
    in_detroit = period_named(around.period.name, "America/Detroit").end
    boundary = await close_the_month(around)
    assert await states(around) == {
        ("northwind", period_of_charge(around, boundary)): "closed",
        ("detroit", period_of_charge(around, boundary)): "open",
    }
    await around.move_to(in_detroit + GRACE + SOON)
    await around.settle()
    around.all_covered(in_detroit)
    await around.settle()
    assert set((await states(around)).values()) == {"closed"}
    events = {each["group_id"]: each for each in around.log.data("invoices.events")}
    assert events["detroit"]["boundary"] == in_detroit.isoformat().replace("+00:00", "Z")


def period_of_charge(around: Neighbours, boundary) -> str:
    return (boundary - timedelta(hours=12)).strftime("%Y-%m")


# ---- the close -------------------------------------------------------------------------------------------------------


async def test_northwind_closes_on_one_invoice_of_072(around):
    northwind(around)
    boundary = await close_the_month(around)
    (event,) = around.log.data("invoices.events")
    assert (event["number"], event["net"], event["tax"], event["due"]) == ("TB-000001", "0.60", "0.12", "0.72")
    assert sums_to_zero(event)
    shown = await api.show(engine(around), "TB-000001")
    assert sha256_of(shown.body) == shown.sha256 == event["sha256"]
    assert canonical(shown.document) == shown.body
    assert shown.document["evidence"]["charges"] == event["charges"] == 3
    assert "DUE USD" in shown.text
    by_id = await api.show(engine(around), event["invoice_id"])
    assert by_id.sha256 == shown.sha256
    (standing,) = await api.status(engine(around), event["period"])
    assert (standing.state, standing.number) == ("closed", "TB-000001")
    (cut,) = await api.cuts(engine(around))
    assert cut.boundary == boundary
    assert cut.finished_at is not None
    with pytest.raises(Refused, match="TB-000001"):
        await api.estimate(engine(around), "northwind", event["period"])
    with pytest.raises(NotFound):
        await api.show(engine(around), "TB-000002")


async def test_prepaid_use_is_paid_from_the_balance(around):
    around.group("lakeside")
    around.charge("frontdesk", "0.028", group_id="lakeside", plan="payg")
    await close_the_month(around)
    (event,) = around.log.data("invoices.events")
    assert (event["total"], event["paid_from_balance"], event["due"]) == ("0.03", "0.03", "0.00")
    assert event["postings"] == [{"account_id": "frontdesk", "wallet": "-0.002", "unbilled": "0", "receivable": "0"}]


async def test_more_taken_back_than_used_is_an_invoice_below_zero(around):
    """A void of what was invoiced stands on the next month; what it gives back goes to the balance or is owed."""
    around.group("northwind", tax_rate="0.20")
    before, after = around.period, next_period(around.period, "UTC")
    used = ("east", "invoiced", "10.006"), ("west", "payg", "10.004")
    for account_id, plan, amount in used:
        around.account(account_id, account_id.title(), "northwind", before.start)
        around.charge(account_id, amount, plan=plan)
    await close_the_month(around)
    for account_id, plan, amount in used:
        back = {"reverses": str(uuid4()), "quantity": -60, "period": before.name, "bill_to": after.name, "plan": plan}
        around.charge(account_id, f"-{amount}", **back)
    await around.settle()
    await around.move_to(after.end + GRACE + SOON)
    await around.settle()
    around.all_covered(after.end)
    await around.settle()
    first, second = around.log.data("invoices.events")
    told = ("net", "tax", "total", "paid_from_balance", "due")
    assert [second[name] for name in told] == [f"-{first[name]}" for name in told]
    assert [first[name] for name in told] == ["20.01", "4.00", "24.01", "12.00", "12.01"]
    assert sums_to_zero(second)
    assert (await api.show(engine(around), second["number"])).document["totals"]["due"] == "-12.01"


async def test_a_group_without_charges_gets_neither_invoice_nor_number(around):
    northwind(around)
    around.group("night")
    await close_the_month(around)
    name = around.log.data("invoices.events")[0]["period"]
    found = {each.group_id: each.state for each in await api.status(engine(around), name)}
    assert found == {"northwind": "closed", "night": "nothing to bill"}
    assert [each.group_id for each in await api.list_invoices(engine(around))] == ["northwind"]


async def test_nothing_closes_before_every_mark_is_reached(around):
    northwind(around)
    boundary = await cut_the_month(around)
    name = period_of_charge(around, boundary)

    async def waits_for():
        (standing,) = await api.status(engine(around), name)
        assert around.log.data("invoices.events") == []
        return standing.waiting_for

    assert await waits_for() == "groups"
    around.covered("groups", boundary)
    await around.settle()
    assert await waits_for() == "usage"
    around.covered("usage", boundary, ahead=1)  # the last charge of each link is still on its way
    around.covered("balance", boundary, ahead=1)
    await around.settle()
    assert await waits_for() == "records of usage"
    late = [around.charge(each, "0.0100", bill_to=name, posted=False) for each in ("east", "west", "offshore")]
    await around.settle()
    assert await waits_for() == "records of balance"
    for each in late:
        around.posting(each)
    await around.settle()
    (event,) = around.log.data("invoices.events")
    assert event["charges"] == 6


async def test_a_held_group_waits_for_its_own_coverage_while_the_others_close(around):
    northwind(around)
    around.group("support")
    around.charge("desk", "0.5660", group_id="support", plan="payg")
    boundary = await cut_the_month(around)
    name = period_of_charge(around, boundary)
    around.all_covered(boundary, held=("support",), silent=("pbx/2",))
    await around.settle()
    assert [each["group_id"] for each in around.log.data("invoices.events")] == ["northwind"]
    found = {each.group_id: (each.state, each.waiting_for) for each in await api.status(engine(around), name)}
    assert found["support"] == ("waiting", "quarantine")
    (cut,) = await api.cuts(engine(around))
    assert (cut.held, cut.finished_at) == ({"support": "quarantine"}, None)
    around.charge("desk", "0.3498", group_id="support", plan="payg", product="voice.toll_free", bill_to=name)
    around.covered("usage", boundary, group_id="support")
    await around.settle()
    assert len(around.log.data("invoices.events")) == 1
    around.covered("balance", boundary, group_id="support")
    await around.settle()
    by_group = {each["group_id"]: each for each in around.log.data("invoices.events")}
    assert (by_group["support"]["net"], by_group["support"]["charges"]) == ("0.92", 2)
    evidence = (await api.audit(engine(around))).evidence[cutoff_id(boundary)]
    assert evidence["support"]["whole_sha256"] == sha256_of(canonical(evidence[""]))
    assert evidence[""]["held"] == ["support"]
    assert evidence[""]["silent_sources"] == [{"publisher_id": "switch", "source": "pbx/2"}]
    assert evidence[""]["counts"] == {"rated": 2, "duplicate": 1}
    (cut,) = await api.cuts(engine(around))
    assert cut.finished_at is not None


async def test_repeated_statements_of_a_room_change_nothing(around):
    northwind(around)
    boundary = await cut_the_month(around)
    for _ in range(3):
        around.all_covered(boundary)
    await around.settle()
    around.all_covered(boundary)
    await around.settle()
    assert len(around.log.data("invoices.events")) == 1


async def test_a_sum_changed_by_hand_refuses_the_close_until_it_is_right_again(around, caplog):
    northwind(around)
    around.group("other")
    around.charge("desk", "1", group_id="other")
    boundary = await cut_the_month(around)
    name = period_of_charge(around, boundary)
    wrong = update(paid).where(paid.c.account_id == "east").values(unbilled_nano=paid.c.unbilled_nano + 1)
    async with transaction(engine(around)) as connection:
        await connection.execute(wrong)
    around.all_covered(boundary)
    await around.settle()
    assert [each["group_id"] for each in around.log.data("invoices.events")] == ["other"]
    found = {each.group_id: each for each in await api.status(engine(around), name)}
    assert found["northwind"].state == "refused"
    assert "sum" in (found["northwind"].waiting_for or "")
    alarms = [each for each in caplog.records if each.levelname == "CRITICAL"]
    assert len(alarms) == 1  # once, however often it is tried again
    right = update(paid).where(paid.c.account_id == "east").values(unbilled_nano=paid.c.unbilled_nano - 1)
    async with transaction(engine(around)) as connection:
        await connection.execute(right)
    await around.settle()
    assert {each["group_id"]: each["number"] for each in around.log.data("invoices.events")} == {
        "other": "TB-000001",
        "northwind": "TB-000002",
    }


async def test_two_closers_at_once_make_one_invoice_each_and_numbers_without_a_gap(around, monkeypatch):
    monkeypatch.setattr(handler, "CLOSE_GROUPS_MAX", 7)
    processor = around.rooms.processors["invoices"]
    groups = [f"g{number:03d}" for number in range(60)]
    for number, group_id in enumerate(groups):
        around.group(group_id)
        around.charge(f"a{number}", f"{number}.25", group_id=group_id)
    boundary = await cut_the_month(around)
    around.all_covered(boundary)
    await around.rooms.pump()
    closers = [
        Tick(f"close.{number}", handler.close) for number in range(3)
    ]  # lanes of their own: none waits for another
    for _ in range(30):
        await asyncio.gather(*(processor.tick(each) for each in closers))
    await around.settle()
    assert len({each["link"] for each in around.log.read("invoices.events")}) > 1  # several did close
    events = around.log.data("invoices.events")
    assert sorted(each["group_id"] for each in events) == groups
    assert sorted(each["number"] for each in events) == [f"TB-{number:06d}" for number in range(1, 61)]
    assert len({each["invoice_id"] for each in events}) == 60
    ((last,),) = await around.rooms.query("invoices", select(number_series.c.last_number))
    assert last == 60
    assert (await api.audit(engine(around))).findings == ()


async def test_a_close_that_fails_at_its_end_leaves_no_gap_in_the_numbers(around, monkeypatch):
    northwind(around)
    boundary = await cut_the_month(around)
    around.all_covered(boundary)
    await around.rooms.pump()

    async def broken(*_):
        raise RuntimeError("the server is gone")

    processor = around.rooms.processors["invoices"]
    tick = Tick("close", handler.close)
    with monkeypatch.context() as patched:
        patched.setattr(handler.store, "save_documents", broken)
        with pytest.raises(RuntimeError):
            await processor.tick(tick)
    await around.settle()
    assert [each["number"] for each in around.log.data("invoices.events")] == ["TB-000001"]


async def test_a_batch_in_hand_keeps_its_invoice_open(around):
    northwind(around)
    boundary = await cut_the_month(around)
    around.all_covered(boundary)
    await around.rooms.pump()
    processor = around.rooms.processors["invoices"]
    async with transaction(processor.engine) as batch:
        await batch.execute(select(invoice.c.invoice_id).with_for_update(read=True))
        await processor.tick(Tick("close", handler.close))
        assert set((await states(around)).values()) == {"open"}
    await around.settle()
    assert set((await states(around)).values()) == {"closed"}


@pytest.mark.parametrize("group_id", ["northwind", "night"])
async def test_a_charge_for_a_closed_month_stops_the_lane(around, group_id):
    northwind(around)
    around.group("night")
    boundary = await close_the_month(around)
    made = around.charge("late", "1", group_id=group_id, bill_to=period_of_charge(around, boundary))
    (record,) = records_of(accumulation.READING, [made])
    processor = around.rooms.processors["invoices"]
    async with transaction(processor.engine) as connection:
        work = Work(connection, processor.tables, "invoices", "", around.now, 0, None, around.log)  # type: ignore[arg-type]
        with pytest.raises(Corrupt, match="after it was closed"):
            await handler.charges(work, [record])


async def test_a_lower_version_of_a_group_changes_nothing(around):
    around.group("northwind", version=2, tax_rate="0.20")
    await around.settle()
    around.group("northwind", version=1, tax_rate="0.10")
    around.charge("east", "1")
    await around.settle()
    assert (await api.estimate(engine(around), "northwind"))["tax_rate"] == "0.20"


# ---- the auditor -----------------------------------------------------------------------------------------------------


async def test_the_audit_finds_what_was_changed_by_hand_after_the_close(around, database):
    northwind(around)
    await close_the_month(around)
    good = await api.audit(engine(around))
    assert good.findings == ()
    (audited,) = good.invoices
    assert (audited.charges, audited.exact_nano, audited.mismatch) == (3, 595_400_000, None)
    assert good.received_to == await api.received(engine(around))
    changes = [
        "update invoices.line set exact_nano = exact_nano + 1 where account_id = 'east'",
        "update invoices.tally set xor = xor # 1",
        'update invoices.document set body = replace(body, \'"due":"0.72"\', \'"due":"0.71"\')',
        "update invoices.document set sha256 = repeat('a', 64)",
        "update invoices.cutoff_evidence set body = body || ' '",
        "update invoices.number_series set last_number = last_number + 1",
        "delete from invoices.number_series",
        "delete from invoices.paid where account_id = 'east'",
        "update invoices.paid set wallet_nano = unbilled_nano, unbilled_nano = wallet_nano where account_id = 'east'",
        "update invoices.paid set charged_nano = charged_nano + 1 where account_id = 'east'",
        "update invoices.paid set unbilled_nano = unbilled_nano + case account_id when 'east' then 1 else -1 end,"
        " charged_nano = charged_nano + case account_id when 'east' then 1 else -1 end where account_id in ('east', 'west')",
        "update invoices.line set currency = 'EUR' where account_id = 'east'",
        "delete from invoices.document",
        "update invoices.document set body = '{'",
        "update invoices.document set body = '[]', sha256 = encode(sha256('[]'), 'hex')",
        "update invoices.document set body = '{}', sha256 = encode(sha256('{}'), 'hex')",
        "update invoices.cutoff_evidence set body = ''",
    ]
    for change in changes:
        async with database.connected() as owner:
            await owner.execute("begin")
            saved = [
                (table, json.loads(await owner.fetchval(f"select coalesce(json_agg(t), '[]') from invoices.{table} t")))
                for table in ("line", "tally", "paid", "document", "cutoff_evidence", "number_series")
            ]
            await owner.execute(change)
            await owner.execute("commit")
            assert (await api.audit(engine(around))).findings, change
            await owner.execute("begin")
            for table, rows in saved:
                await owner.execute(f"delete from invoices.{table}")
                await owner.execute(
                    f"insert into invoices.{table} select * from json_populate_recordset(null::invoices.{table}, $1)",
                    json.dumps(rows),
                )
            await owner.execute("commit")
        assert (await api.audit(engine(around))).findings == (), change


@pytest.mark.parametrize(
    "change",
    [
        "currency = 'EUR'",
        "closed_at = closed_at - interval '1 day'",
        "cutoff_id = gen_random_uuid()",
        "number = 'TB-9'",
    ],
)
async def test_the_audit_finds_a_closed_invoice_that_is_kept_otherwise_than_its_document_says(around, database, change):
    northwind(around)
    await close_the_month(around)
    async with database.connected() as owner:
        await owner.execute(f"update invoices.invoice set {change}")
    findings = (await api.audit(engine(around))).findings
    assert [each for each in findings if f"its {change.split()[0]} is kept as " in each]


async def test_the_sums_of_an_open_invoice_are_judged_too(around, database):
    northwind(around)
    await around.settle()
    assert [each.mismatch for each in (await api.audit(engine(around))).invoices] == [None]
    async with database.connected() as owner:
        await owner.execute("delete from invoices.paid where account_id = 'east'")
    (audited,) = (await api.audit(engine(around))).invoices
    assert audited.state == "open"
    assert audited.mismatch.endswith("the postings of balance to 0.2324")


async def test_the_room_itself_cannot_change_a_closed_document(around):
    northwind(around)
    await close_the_month(around)
    with pytest.raises(Exception, match="permission denied"):
        await around.rooms.query("invoices", text("update invoices.document set body = '{}'"))


async def test_an_invoice_is_made_once_per_group_and_period(around):
    northwind(around)
    await close_the_month(around)
    (event,) = around.log.data("invoices.events")
    ((count,),) = await around.rooms.query("invoices", select(func.count()).select_from(invoice))
    assert count == 1
    assert (await api.list_invoices(engine(around), state="closed"))[0].invoice_id == UUID(event["invoice_id"])
    ((passed,),) = await around.rooms.query("invoices", select(cutoff.c.passed_at.is_not(None)))
    assert passed
