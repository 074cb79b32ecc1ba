"""A command costs the same among many accounts: it reads the timelines of those that it names, and no others."""

from __future__ import annotations

from collections import Counter

from tests.groups.desk import Desk, open_desk
from tests.support.history import copies, rows_read
from tests.support.servers import Database

OTHERS = 5_000
MORE_MAX = OTHERS // 2  # rows that may be read more: of small tables it is all, each time

LIKE_THESE = {
    "payer_group": ("group_id = 'a1'", "'group_id', 'other-' || n, 'account_id', null"),
    "account": ("account_id = 'a1'", "'account_id', 'other-' || n, 'account_no', -n"),
    "account_plan": ("true", "'account_no', -n"),
    "account_group": ("true", "'account_no', -n, 'group_id', 'other-' || n"),
    "resource": ("resource_id = 'r1'", "'resource_id', 'other-' || n, 'resource_no', -n, 'account_id', 'other-' || n"),
    "resource_owner": ("true", "'resource_no', -n, 'account_id', 'other-' || n"),
    "resource_cost_center": ("true", "'resource_no', -n"),
    "command": ("organization_id = 'lakeside'", "'command_id', 'other-' || n"),
}
"""Of which row there are others, and what is another one in each, with n from 1 to `OTHERS`."""


async def test_a_command_reads_no_more_among_many_accounts(database: Database) -> None:
    async with open_desk(database) as rooms:
        desk = Desk(rooms)
        await desk.seller()
        await desk.found()
        await desk.group("shared")
        await desk.done("create_cost_center", cost_center_id="sales", name="Sales")
        await commands(desk, 1)
        few = await read_by(desk, database, 2)
        async with database.connected() as owner:
            for table, (which, other) in LIKE_THESE.items():
                times = f"generate_series(1, {OTHERS}) n"
                assert await copies(owner, f"groups.{table}", which, other, times) == OTHERS, table
        many = await read_by(desk, database, 3)
        grown = {name: (few[name], many[name]) for name in many if many[name] > few[name] + MORE_MAX}
        assert not grown, f"rows read among few and many accounts, by table or index: {grown}"


async def commands(desk: Desk, number: int) -> None:
    """An account is made, gets something to call with, changes its plan and moves."""
    name = f"a{number}"
    await desk.account(name)
    resource = {"resource_id": f"r{number}", "resource": "outbound_profile"}
    await desk.done("assign_resource", account_id=name, cost_center_id="sales", **resource)
    await desk.done("change_plan", role="operator", account_id=name, plan="invoiced", credit_limit="100")
    await desk.done("release_resource", resource_id=f"r{number}")


async def read_by(desk: Desk, database: Database, number: int) -> Counter[str]:
    """The rows that these commands read, by table and index."""
    before = await rows_read(database, desk.rooms)
    await commands(desk, number)
    return await rows_read(database, desk.rooms) - before
