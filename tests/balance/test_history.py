"""What has been costs nothing: one more day of an account and its group reads no more where years lie behind them."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from services.balance import drift, vouchers
from services.kernel.period import instant_text
from services.runtime.database import open_engine
from tests.balance.test_drift import answers, covered
from tests.support.callers import Callers
from tests.support.history import copies, rows_read
from tests.support.receivables_factory import Debtors
from tests.support.servers import Database

PAST = 10_000  # rows that lie behind, in every table that grows with what happens
MORE_MAX = PAST // 2  # that may be read more than on the day before: of small tables it is all, each time

_LONG_AGO = "'2020-01-01'::timestamptz + n * interval '1 minute'"
_NEW_ID = "gen_random_uuid()"

_SPENT = f"'credit_id', {_NEW_ID}, 'created_at', {_LONG_AGO}"

OF_ITS_OWN = (
    (
        "attempt",
        "kind = 'group' and state = 'settled'",
        f"'attempt_id', {_NEW_ID}, 'account_id', 'desk', 'trigger_version', -n, 'requested_at', {_LONG_AGO}",
    ),
    ("credit", "account_id = 'desk' and remaining_nano = 0", _SPENT),
    ("credit", "account_id is null and group_id = 'h' and remaining_nano = 0", _SPENT),
    ("command", "account_id = 'desk'", "'command_id', 'old-' || n"),
    ("group_command", "true", "'command_id', 'old-' || n"),
    ("receivable", "paid_nano = due_nano", f"'invoice_id', {_NEW_ID}, 'number', 'OLD-' || n"),
    ("covered", "true", f"'cutoff_id', {_NEW_ID}"),
    ("redemption", "true", "'beneficiary', 'old-' || n"),
)
"""Of which row a past is made, and what is another one in each, with n from 1 to `PAST`."""

_ATTEMPTS = "attempt where requested_at < '2021-01-01'"
_CREDITS = "credit where created_at < '2021-01-01' and account_id is null"
_INVOICES = "receivable where number like 'OLD-%'"

OF_ANOTHER = {
    "result": (_ATTEMPTS, "kind = 'settled'", "'attempt_id', o.attempt_id, 'result_id', o.attempt_id"),
    "refund": (_ATTEMPTS, "ended_at is not null", f"'attempt_id', o.attempt_id, 'refund_id', {_NEW_ID}"),
    "card_payment": (_ATTEMPTS, "has_paid", "'attempt_id', o.attempt_id"),
    "group_payment": (_ATTEMPTS, "group_id <> account_id", "'payment_id', o.attempt_id, 'reference', o.attempt_id"),
    "funding": (_CREDITS, "true", f"'credit_id', o.credit_id, 'charge_id', {_NEW_ID}"),
    "receivable_share": (_INVOICES, "open_nano = 0", "'invoice_id', o.invoice_id"),
    "application": (_INVOICES, "true", "'invoice_id', o.invoice_id"),
}
"""The same for what hangs on rows of that past, o: one for each."""

_NEXT_SEALS = """
insert into balance.seal (lane, seq, batch_id, transaction_ids, content, hash)
select last.lane, last.seq + row_number() over (), covered.*, sha256(''), sha256('')
  from {covered}, (select lane, max(seq) as seq from balance.seal group by lane limit 1) last
"""
"""Of one lane, so that what is written afterwards follows."""

LEDGER = (
    f"""
with batch as (
  insert into balance.charge_batch (at, links) select {_LONG_AGO}, '{{}}' from generate_series(1, {PAST}) n returning id
), charged as (
  insert into balance.charged
  select id, 'old-' || id % 100, 'USD', 1, 0, 0, '{{}}', '{{}}' from batch returning batch_id
)
{_NEXT_SEALS.format(covered="(select batch_id, null::uuid[] from charged) covered")}
""",
    f"""
with posted as (
  insert into balance.transaction (id, kind, ref, currency, at)
  select {_NEW_ID}, 'payment', 'old-' || n, 'USD', {_LONG_AGO} from generate_series(1, {PAST}) n returning id, ref
), entries as (
  insert into balance.entry (transaction_id, ledger, account_id, nano)
  select id, 'wallet', ref, nano from posted, (values (1), (-1)) as side (nano)
)
{_NEXT_SEALS.format(covered="(select null::bigint, array[id] from posted) covered")}
""",
    "update balance.summed_to set seq = (select max(seq) from balance.seal where seal.lane = summed_to.lane)",
)
"""What lies behind the room: it is of no account in sight, and in the sums that are checked."""


@pytest.mark.parametrize("planned", ["force_custom_plan", "force_generic_plan"])
async def test_a_day_reads_no_more_where_years_lie_behind(
    database: Database, planned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the server plans: for the values at hand, or once for any."""
    async with database.connected() as owner:
        await owner.execute(f"alter database {database.name} set plan_cache_mode = {planned}")
    # The sweep adds up all that ever was, and is to: a piece each time, however much there is.
    for piece in ("ACCOUNTS_SWEPT", "TRANSACTIONS_SWEPT"):
        monkeypatch.setattr(drift, piece, 0)
    async with Debtors(database) as town:
        await town.account("desk", level_2=True, group="g")
        await town.account("west", group="h")
        await town.member("east", "northwind")
        town.open("desk", "100")
        town.method("desk", "tok_ok")
        town.method("east", "tok_ok")
        town.command("set_levels", "desk", currency="USD", levels=["60", "20"])
        town.limit("desk", "1000", 10)
        await town.settle()
        code = await shared_code(database)
        await a_day(town, 1, code)
        young = await read_by(town, 2, code)
        await age(database)
        old = await read_by(town, 3, code)
        grown = {name: (young[name], old[name]) for name in old if old[name] > young[name] + MORE_MAX}
        assert not grown, f"rows read without and with a past, by table or index: {grown}"


async def shared_code(database: Database) -> str:
    """A code that many have redeemed, and many more may."""
    engine = open_engine(database.room("balance"), application="test.vouchers", pool_size=1)
    (made,) = await vouchers.create_vouchers(engine, actor="ops", role="operator", amount="0.01", redemptions=2 * PAST)
    await engine.dispose()
    return str(made.code)


async def a_day(town: Debtors, number: int, code: str) -> None:
    """A little of everything that happens to an account and to its group."""
    soon = instant_text(await town.now() + timedelta(hours=1))
    newcomer = f"new-{number}"
    await town.account(newcomer)
    town.prefer("desk", "50", "70")  # each day again: a refund pauses it
    town.grant("desk", "1")
    town.grant("desk", "1", expires_at=soon)
    town.grant("west", "1", shared=True)
    town.grant("desk", "1", shared=True)
    town.command("pay", "desk", amount="12")
    await town.settle()
    town.command("redeem_code", newcomer, code=code)
    async with Callers(town) as calls:
        assert await calls.starts(f"call-{number}")
        await calls.renew(f"call-{number}", 1)
        await calls.settle(f"call-{number}", 61)
    now = instant_text(await town.now())
    town.charge("west", "0.4", group_id="h", event_time=now)
    await town.settle()
    town.charge("desk", "100", event_time=now, call_leg_id=f"call-{number}")
    taken_back = town.charge("desk", "20", event_time=now)
    town.charge("west", "2", group_id="h", event_time=now)
    await town.settle()
    town.charge("desk", "-20", event_time=now, reverses=taken_back)
    paid = town.events("desk", "payment_settled")[-1]
    town.command("refund_payment", "desk", role="finance", attempt_id=paid["attempt_id"], amount="2")
    await town.settle()
    await town.close(f"TB-{number}a", {"east": "10"})
    await town.close(f"TB-{number}b", {"east": "10"})
    town.pay("10", invoice=f"TB-{number}a")
    town.order("pay_by_card", account_id="east", currency="USD", role="owner")
    await town.settle()
    covered(town)
    await town.settle(after=timedelta(days=1))
    told = Counter(town.kinds("desk"))
    assert [told[each] for each in ("payment_settled", "recharge_settled", "refunded")] == [number] * 3, told
    assert Counter(town.kinds(newcomer))["credit_granted"] == 1
    assert Counter(town.told_kinds())["invoice_paid"] == 2 * number
    assert answers(town) == number


async def read_by(town: Debtors, number: int, code: str) -> Counter[str]:
    """The rows that such a day reads, by table and index."""
    before = await rows_read(town.database, town.rooms)
    await a_day(town, number, code)
    return await rows_read(town.database, town.rooms) - before


async def age(database: Database) -> None:
    """Give the account, the group, their payments and the room a past."""
    async with database.connected() as owner:
        for table, which, other in OF_ITS_OWN:
            assert await copies(owner, f"balance.{table}", which, other, f"generate_series(1, {PAST}) n") == PAST, table
        for table, (beside, which, other) in OF_ANOTHER.items():
            times = f"(select * from balance.{beside}) o"
            assert await copies(owner, f"balance.{table}", which, other, times) == PAST, table
        for statement in LEDGER:
            await owner.execute(statement)
