"""The groups room on a real database: commands in, timelines and answers out, cuts covered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.exc import IntegrityError

from contracts.groups import groups_command
from contracts.topics import (
    GROUPS_ACCOUNTS,
    GROUPS_ASSIGNMENTS,
    GROUPS_BILLING_GROUPS,
    GROUPS_COMMANDS,
    GROUPS_COST_CENTERS,
    GROUPS_EVENTS,
    GROUPS_PUBLISHERS,
    INVOICES_EVENTS,
)
from services.groups import api, tables
from services.groups.messages import STATE_TOPICS
from services.kernel.errors import NotFound
from services.kernel.period import instant_text, period_of
from services.runtime import links, parking
from services.runtime.database import sqlstate, transaction
from services.runtime.records import Record, lane_name
from tests.groups.cast import LAKESIDE, LEVEL_2, NORTHWIND, cast
from tests.groups.desk import APPROVED, BILLING, Desk, open_desk
from tests.support.rooms import Rooms

ACCOUNTS, ASSIGNMENTS, PUBLISHERS = GROUPS_ACCOUNTS.name, GROUPS_ASSIGNMENTS.name, GROUPS_PUBLISHERS.name
BILLING_GROUPS, COMMANDS, EVENTS = GROUPS_BILLING_GROUPS.name, GROUPS_COMMANDS.name, GROUPS_EVENTS.name


@pytest.fixture
async def empty(database) -> AsyncIterator[Desk]:
    """Nothing is registered."""
    async with open_desk(database) as rooms:
        yield Desk(rooms)


@pytest.fixture
async def desk(empty) -> Desk:
    """A seller, and Lakeside, which is strict."""
    await empty.seller()
    await empty.found()
    return empty


def spans(timeline) -> list[tuple[str, str, str | None]]:
    return [(span.get("group_id") or span.get("plan"), span["from"], span["to"]) for span in timeline]


# ---- one command, once


async def test_a_command_is_carried_out_once_and_its_repeat_gets_the_same_answer(desk):
    first = await desk.account("desk", command_id="once")
    published = len(desk.log.read(ACCOUNTS))
    second = await desk.ask("create_account", command_id="once", account_id="desk", name="desk", plan="payg")
    assert second == first
    assert len(desk.log.read(ACCOUNTS)) == published
    assert len({record["id"] for record in desk.log.read(EVENTS)}) == len(desk.log.read(EVENTS))


async def test_repeats_in_one_batch_are_carried_out_once(desk):
    for _ in range(3):
        desk.write("create_account", command_id="once", account_id="desk", name="desk", plan="payg")
    await desk.rooms.pump()
    assert len(desk.answers("once")) == 3
    assert all(said == desk.answers("once")[0] and said["accepted"] for said in desk.answers("once"))
    assert len(desk.log.read(ACCOUNTS)) == 1


async def test_the_same_id_with_other_content_is_refused_and_the_first_answer_stands(desk):
    await desk.account("desk", command_id="once")
    again = {"command_id": "once", "account_id": "desk", "name": "other", "plan": "payg"}
    assert await desk.refused("create_account", **again) == ("idempotency_conflict", "command_id")
    assert (await api.answer(desk.rooms.processors["groups"].engine, "lakeside", "once")).accepted


async def test_a_refused_command_stays_refused_under_its_id(empty):
    await empty.found()
    account = {"account_id": "desk", "name": "desk", "plan": "payg"}
    assert await empty.refused("create_account", command_id="early", **account) == (
        "no_billing_entity",
        "billing_entity_id",
    )
    await empty.seller()
    assert await empty.refused("create_account", command_id="early", **account) == (
        "no_billing_entity",
        "billing_entity_id",
    )
    await empty.done("create_account", command_id="later", **account)


async def test_command_ids_of_two_organizations_do_not_meet(desk):
    await desk.done("create_organization", "northwind", name="Northwind", command_id="same")
    await desk.account("desk", command_id="same")


async def test_commands_of_a_batch_see_what_those_before_them_changed(empty):
    empty.write(
        "create_billing_entity", role="operator", billing_entity_id="seller", name="Seller", address="", command_id="1"
    )
    empty.write("create_organization", name="Lakeside", command_id="2")
    empty.write("create_account", account_id="desk", name="desk", plan="trial", command_id="3")
    empty.write("create_account", account_id="desk", name="other", plan="payg", command_id="4")
    empty.write("upgrade_account", account_id="desk", command_id="5")
    empty.write("upgrade_account", account_id="desk", command_id="6")
    await empty.rooms.pump()
    said = [empty.answers(str(number))[0] for number in range(1, 7)]
    assert [each["accepted"] for each in said] == [True, True, True, False, True, False]
    assert (said[3]["reason"], said[5]["reason"]) == ("already_exists", "not_a_trial")
    state = empty.state(ACCOUNTS, "desk")
    assert (state["version"], state["name"]) == (2, "desk")
    assert [span["plan"] for span in state["plans"]] == ["payg"]
    assert spans(state["groups"]) == [("desk", state["opened_at"], None)]


# ---- bad input


async def test_bad_records_are_quarantined_answered_where_an_id_can_be_read_and_disturb_nobody(desk):
    good = {"kind": "create_account", "actor": "Erin", "organization_id": "lakeside", "name": "a", "plan": "payg"}
    bad = [
        (b"not json", "not_json", None),
        (b"\xff\xfe", "not_json", None),
        (b"", "not_json", None),
        (None, "tombstone", None),
        (b"[" * 10_000, "not_json", None),
        (json.dumps(good).encode(), "invalid_command", "command_id"),
        (json.dumps(good | {"command_id": "b1", "plan": "gold"}).encode(), "invalid_command", "plan"),
        (json.dumps(good | {"command_id": "b2", "credit_limit": 5}).encode(), "invalid_command", "credit_limit"),
        (json.dumps(good | {"command_id": "b3", "a\x00": "\ud800"}).encode(), "not_json", None),
        (json.dumps(good | {"command_id": "b4", "pad": "x" * 900_000}).encode(), "invalid_command", "pad"),
    ]
    for value, _, _ in bad:
        desk.log.write(COMMANDS, value=value, partition=0)
        desk.write("create_account", name="neighbour", plan="payg")
    await desk.rooms.pump()
    processor = desk.rooms.processors["groups"]
    async with transaction(processor.engine) as connection:
        rows = await parking.listing(connection, processor.tables)
    found = {(row.value, row.reason, row.field) for row in rows}
    for value, reason, field in bad:
        if (
            reason == "not_json" and value and value.startswith(b"{")
        ):  # half a surrogate: refused by one reader or the other
            assert any(row.value == value for row in rows)
        else:
            assert (value, reason, field) in found
    assert len(rows) == len(bad)
    for command_id, field in (("b1", "plan"), ("b2", "credit_limit"), ("b4", "pad")):
        (said,) = desk.answers(command_id)
        assert (said["accepted"], said["reason"], said["field"]) == (False, "invalid_command", field)
    assert len(desk.log.read(ACCOUNTS)) == len(bad)


async def test_a_command_that_only_the_database_refuses_is_found_quarantined_and_answered(desk):
    async with desk.rooms.database.connected() as owner:
        await owner.execute("alter table groups.account add constraint planted check (name <> 'bad')")
    ids = [desk.write("create_account", account_id=f"a{number}", name="good", plan="payg") for number in range(4)]
    bad = desk.write("create_account", account_id="bad", name="bad", plan="payg")
    ids += [desk.write("create_account", account_id=f"b{number}", name="good", plan="payg") for number in range(4)]
    await desk.rooms.pump()
    assert all(desk.answers(each)[0]["accepted"] for each in ids)
    (said,) = desk.answers(bad)
    assert (said["accepted"], said["reason"]) == (False, "refused_by_store")
    async with desk.rooms.database.connected() as owner:
        await owner.execute("alter table groups.account drop constraint planted")
    processor = desk.rooms.processors["groups"]
    async with transaction(processor.engine) as connection:
        assert await parking.ask(connection, processor.tables, "replaying", "Olga", reason="refused_by_store") == 1
    await desk.rooms.pump()
    assert [said["accepted"] for said in desk.answers(bad)] == [False, True]
    assert desk.state(ACCOUNTS, "bad")["groups"]


# ---- organizations, publishers, billing entities


async def test_ids_are_given_once(desk):
    await desk.account("desk")
    await desk.group("g")
    await desk.done("create_cost_center", cost_center_id="sales", name="Sales")
    publisher = {"role": "operator", "publisher_id": "pbx", "organization_ids": [], "sources": ["s"]}
    await desk.done("create_publisher", **publisher)
    await desk.found("northwind")
    refusals = {
        "organization_id": await desk.refused("create_organization", name="Lakeside"),
        "account_id": await desk.refused("create_account", "northwind", account_id="desk", name="x", plan="payg"),
        "group_id": await desk.refused("create_group", group_id="g", name="x", billing_information=BILLING),
        "cost_center_id": await desk.refused("create_cost_center", "northwind", cost_center_id="sales", name="x"),
        "publisher_id": await desk.refused("create_publisher", **publisher),
        "billing_entity_id": await desk.refused(
            "create_billing_entity", role="operator", billing_entity_id="seller", name="x", address=""
        ),
    }
    assert refusals == {field: ("already_exists", field) for field in refusals}


async def test_ids_that_nobody_gives_are_made(desk):
    said = await desk.done("create_account", name="Front desk", plan="payg")
    identifier = said["objects"]["account_id"]
    assert desk.state(ACCOUNTS, identifier)["name"] == "Front desk"
    assert said["objects"]["group_id"] == identifier
    assert (await desk.done("create_cost_center", name="Sales"))["objects"]["cost_center_id"]
    assert (await desk.done("create_group", name="G", billing_information=BILLING))["objects"]["group_id"]


async def test_nothing_is_created_in_an_organization_that_is_not_there(desk):
    missing = ("not_found", "organization_id")
    assert await desk.refused("create_account", "nowhere", name="a", plan="trial") == missing
    assert await desk.refused("create_group", "nowhere", name="g", billing_information=BILLING) == missing
    assert await desk.refused("create_cost_center", "nowhere", name="c") == missing


async def test_a_publisher_owns_sources_and_bills_organizations_that_exist(desk):
    await desk.found("northwind")
    publisher = {"publisher_id": "pbx", "organization_ids": ["northwind"], "sources": ["a", "b", "a"]}
    assert await desk.refused("create_publisher", **publisher) == ("not_permitted", "role")
    unknown = publisher | {"organization_ids": ["nowhere"]}
    assert await desk.refused("create_publisher", role="operator", **unknown) == ("not_found", "organization_ids")
    silent = publisher | {"sources": []}
    assert await desk.refused("create_publisher", role="operator", **silent) == ("invalid", "sources")
    ours = publisher | {"publisher_id": "tollbook"}
    assert await desk.refused("create_publisher", role="operator", **ours) == ("reserved", "publisher_id")
    await desk.done("create_publisher", role="operator", **publisher)
    state = desk.state(PUBLISHERS, "pbx")
    assert state["organization_ids"] == ["lakeside", "northwind"]
    assert state["sources"] == ["a", "b"]
    assert (state["version"], state["late_s_max"], state["early_s_max"]) == (1, 35 * 86_400, 600)


async def test_a_publisher_bills_and_owns_more_or_less_from_then_on_and_keeps_what_is_not_named(desk):
    """A customer that is new, a second switch: the publisher's topic and its past stay."""
    await desk.found("northwind")
    publisher = {"publisher_id": "pbx", "role": "operator"}
    await desk.done("create_publisher", **publisher, organization_ids=["lakeside"], sources=["a"])
    for wrong, answer in (
        ({"role": "owner"}, ("not_permitted", "role")),
        ({"publisher_id": "nobody"}, ("not_found", "publisher_id")),
        ({"organization_ids": ["nowhere"]}, ("not_found", "organization_ids")),
        ({"without_sources": ["a"]}, ("invalid", "without_sources")),
        ({"without_organization_ids": ["northwind"]}, ("invalid", "without_organization_ids")),
        ({"sources": ["b"], "without_sources": ["b"]}, ("invalid", "without_sources")),
        ({"sources": ["a"]}, ("nothing_to_change", None)),
        ({"late_s_max": 36 * 86_400}, ("invalid_command", "late_s_max")),
    ):
        assert await desk.refused("change_publisher", **(publisher | wrong)) == answer
    await desk.done("change_publisher", **publisher, organization_ids=["northwind"], sources=["b"], late_s_max=3_600)
    state = desk.state(PUBLISHERS, "pbx")
    assert (state["version"], state["late_s_max"], state["early_s_max"]) == (2, 3_600, 600)
    assert (state["organization_ids"], state["sources"]) == (["lakeside", "northwind"], ["a", "b"])
    await desk.done("change_publisher", **publisher, without_organization_ids=["lakeside"], without_sources=["a"])
    state = desk.state(PUBLISHERS, "pbx")
    assert (state["organization_ids"], state["sources"], state["late_s_max"]) == (["northwind"], ["b"], 3_600)
    assert [each.data() for each in await api.publishers(desk.rooms.processors["groups"].engine)] == [state]


async def test_the_first_billing_entity_is_the_default_and_others_are_named(desk):
    await desk.done(
        "create_billing_entity",
        role="operator",
        billing_entity_id="eu",
        name="Seller BV",
        address="",
        number_prefix="EU-",
    )
    await desk.group("g1")
    await desk.group("g2", billing_entity_id="eu")
    assert desk.state(BILLING_GROUPS, "g1")["billing_entity"]["billing_entity_id"] == "seller"
    assert desk.state(BILLING_GROUPS, "g2")["billing_entity"]["number_prefix"] == "EU-"
    asked = {"name": "g", "billing_information": BILLING, "billing_entity_id": "nobody"}
    assert await desk.refused("create_group", **asked) == ("not_found", "billing_entity_id")
    entity = {"billing_entity_id": "us", "name": "x", "address": ""}
    assert await desk.refused("create_billing_entity", **entity) == ("not_permitted", "role")


# ---- payer groups


async def test_a_payer_group_is_published_with_all_that_its_invoice_needs(desk):
    information = {
        "company": "Lakeside",
        "address": "1 Lake Road",
        "vat_id": "DE136695976",
        "emails": ["a@b"],
        "extra": "PO 7",
    }
    given = information | {"vat_id": "de 136 695 976"}
    await desk.done(
        "create_group", group_id="g", name="G", billing_information=given, zone="Europe/Paris", tax_rate="0.20",
        pricing_model="wholesale",
    )  # fmt: skip
    state = desk.state(BILLING_GROUPS, "g")
    assert state["billing_information"] == information
    assert {key: state[key] for key in ("zone", "currency", "tax_rate", "pricing_model", "account_id", "deleted_at")} == {
        "zone": "Europe/Paris", "currency": "USD", "tax_rate": "0.20", "pricing_model": "wholesale", "account_id": None,
        "deleted_at": None,
    }  # fmt: skip


async def test_a_vat_id_whose_check_digit_is_wrong_is_refused(desk):
    given = BILLING | {"vat_id": "DE136695967"}
    said = await desk.refused("create_group", name="g", billing_information=given)
    assert said == ("invalid_command", "billing_information.vat_id")
    entity = {"billing_entity_id": "eu", "name": "x", "address": "", "role": "operator", "vat_id": "DE136695967"}
    assert await desk.refused("create_billing_entity", **entity) == ("invalid_command", "vat_id")


async def test_a_group_needs_a_zone_and_a_currency_that_exist(desk):
    group = {"name": "g", "billing_information": BILLING}
    assert await desk.refused("create_group", zone="Mars/Olympus", **group) == ("invalid", "zone")
    assert await desk.refused("create_group", zone="../../etc/passwd", **group) == ("invalid", "zone")
    assert await desk.refused("create_group", currency="XTS", **group) == ("unknown_currency", "currency")
    account = {"name": "a", "plan": "payg", "currency": "XTS"}
    assert await desk.refused("create_account", **account) == ("unknown_currency", "currency")


async def test_a_group_scoped_to_an_account_is_of_that_account_and_not_primary(desk):
    await desk.account("desk", "trial")
    group = {"name": "g", "billing_information": BILLING}
    assert await desk.refused("create_group", account_id="nobody", **group) == ("not_found", "account_id")
    assert await desk.refused("create_group", account_id="desk", primary=True, **group) == ("invalid", "primary")
    await desk.group("own", account_id="desk")
    asked = {"account_id": "other", "name": "x", "plan": "payg", "group_id": "own"}
    assert await desk.refused("create_account", **asked) == ("group_of_one_account", "group_id")
    await desk.done("upgrade_account", account_id="desk", group_id="own")
    assert [span["group_id"] for span in desk.state(ACCOUNTS, "desk")["groups"]] == ["own"]


async def test_the_next_primary_group_replaces_the_first_with_a_warning(desk):
    assert (await desk.group("p1", primary=True))["warnings"] == []
    assert "p1" in (await desk.group("p2", primary=True))["warnings"][0]
    await desk.account("a", "invoiced")
    assert desk.state(ACCOUNTS, "a")["groups"][0]["group_id"] == "p2"


# ---- accounts


async def test_a_trial_has_no_group_until_its_upgrade_creates_one_from_then_on(desk):
    opened = await desk.now() - timedelta(days=3)
    await desk.account("try", "trial", opened_at=instant_text(opened))
    before = desk.state(ACCOUNTS, "try")
    assert (before["groups"], spans(before["plans"])) == ([], [("trial", instant_text(opened), None)])
    assert desk.log.read(BILLING_GROUPS) == []
    said = await desk.done("upgrade_account", account_id="try")
    after = desk.state(ACCOUNTS, "try")
    assert spans(after["plans"]) == [("trial", instant_text(opened), said["at"]), ("payg", said["at"], None)]
    assert spans(after["groups"]) == [("try", said["at"], None)]
    assert (after["version"], before["version"]) == (2, 1)
    group = desk.state(BILLING_GROUPS, "try")
    assert (group["account_id"], group["billing_information"]["company"]) == ("try", "Lakeside")
    assert await desk.refused("upgrade_account", account_id="try") == ("not_a_trial", "account_id")
    assert await desk.refused("upgrade_account", account_id="nobody") == ("not_found", "account_id")
    trial = {"name": "t", "plan": "trial", "group_id": "try"}
    assert await desk.refused("create_account", **trial) == ("trial_has_no_group", "group_id")


async def test_an_own_group_gets_another_id_when_its_accounts_is_taken(desk):
    await desk.group("desk")
    said = await desk.account("desk")
    assert said["objects"]["group_id"] not in ("desk", None)
    assert desk.state(BILLING_GROUPS, said["objects"]["group_id"])["account_id"] == "desk"


async def test_in_strict_prepaid_accounts_get_their_own_group_in_spite_of_a_primary_one(desk):
    await desk.group("primary", primary=True)
    await desk.account("a")
    await desk.account("b", "trial")
    await desk.done("upgrade_account", account_id="b")
    await desk.account("c", "invoiced")
    groups = {name: desk.state(ACCOUNTS, name)["groups"][0]["group_id"] for name in "abc"}
    assert groups == {"a": "a", "b": "b", "c": "primary"}


async def test_in_open_new_accounts_join_the_primary_group_and_any_may_share(empty):
    await empty.seller()
    await empty.found(consolidation="open")
    await empty.account("alone")
    await empty.group("primary", primary=True)
    for name, plan in (("a", "payg"), ("b", "invoiced"), ("c", "trial")):
        await empty.account(name, plan)
    await empty.done("upgrade_account", account_id="c")
    groups = {name: empty.state(ACCOUNTS, name)["groups"][0]["group_id"] for name in ("alone", "a", "b", "c")}
    assert groups == {"alone": "alone", "a": "primary", "b": "primary", "c": "primary"}
    members = (await api.group(empty.rooms.processors["groups"].engine, "primary")).members
    assert members == ("a", "b", "c")


async def test_in_strict_a_prepaid_account_is_alone_in_its_group(desk):
    await desk.group("g")
    await desk.account("a", group_id="g")
    for plan in ("payg", "invoiced"):
        asked = {"name": "x", "plan": plan, "group_id": "g", "role": "operator"}
        assert await desk.refused("create_account", **asked) == ("payg_alone", "group_id")
    await desk.account("t", "trial")
    assert await desk.refused("upgrade_account", account_id="t", group_id="g") == ("payg_alone", "group_id")


async def test_in_strict_invoiced_accounts_share_after_an_operators_approval_only(desk):
    await desk.group("g")
    await desk.account("a", "invoiced", group_id="g")
    second = {"account_id": "b", "name": "b", "plan": "invoiced", "group_id": "g", "role": "operator"}
    assert await desk.refused("create_account", **second) == ("sharing_not_approved", "group_id")
    for changes, refusal in (
        ({"role": "owner"}, ("not_permitted", "role")),
        ({"yearly_spend": "99999.99"}, ("spend_below_threshold", "yearly_spend")),
        ({"credit_check_passed": False}, ("credit_check_not_passed", "credit_check_passed")),
        ({"group_id": "nobody"}, ("not_found", "group_id")),
    ):
        assert await desk.refused("approve_sharing", **({"group_id": "g"} | APPROVED | changes)) == refusal
    large = APPROVED | {"yearly_spend": "999999999999.999999999"}
    said = await desk.done("approve_sharing", group_id="g", **large)
    await desk.done("create_account", **second)
    shown = await api.group(desk.rooms.processors["groups"].engine, "g")
    assert shown.members == ("a", "b")
    assert shown.sharing is not None
    assert (shown.sharing.approved_by, shown.sharing.threshold_nano) == ("Erin", 100_000 * 10**9)
    assert shown.sharing.yearly_spend_nano == 10**21 - 1
    assert instant_text(shown.sharing.approved_at) == said["at"]


async def test_nothing_crosses_an_organization(desk):
    await desk.found("northwind")
    await desk.group("theirs", "northwind")
    await desk.account("their-account", "invoiced", "northwind", group_id="theirs")
    await desk.done("create_cost_center", "northwind", cost_center_id="their-center", name="x")
    await desk.account("mine", "invoiced")
    period = (await desk.coming()).name
    move = {"period": period, "account_ids": ["mine"], "group_id": "theirs"}
    assert await desk.refused("create_account", name="x", plan="invoiced", role="operator", group_id="theirs") == (
        "not_found",
        "group_id",
    )
    assert await desk.refused("move_accounts", **move) == ("not_found", "group_id")
    move |= {"account_ids": ["their-account"], "group_id": "mine"}
    assert await desk.refused("move_accounts", **move) == ("not_found", "account_ids")
    assert await desk.refused("upgrade_account", account_id="their-account") == ("not_found", "account_id")
    asked = {"role": "operator", "account_id": "their-account"}
    assert await desk.refused("grant_level_2", **asked) == ("not_found", "account_id")
    assert await desk.refused("approve_sharing", group_id="theirs", **APPROVED) == ("not_found", "group_id")
    resource = {"resource_id": "r", "resource": "outbound_profile"}
    asked = resource | {"account_id": "their-account"}
    assert await desk.refused("assign_resource", **asked) == ("not_found", "account_id")
    asked = resource | {"account_id": "mine", "cost_center_id": "their-center"}
    assert await desk.refused("assign_resource", **asked) == ("not_found", "cost_center_id")
    group = {"name": "g", "billing_information": BILLING, "account_id": "their-account"}
    assert await desk.refused("create_group", **group) == ("not_found", "account_id")


async def test_the_credit_limit_is_for_invoiced_accounts(desk):
    await desk.account("a", "invoiced", credit_limit="100.50")
    assert desk.state(ACCOUNTS, "a")["credit_limit"] == "100.5"
    for plan in ("payg", "trial"):
        asked = {"name": "x", "plan": plan, "credit_limit": "1"}
        assert await desk.refused("create_account", **asked) == ("credit_limit_not_allowed", "credit_limit")
    asked = {"name": "x", "plan": "invoiced", "credit_limit": "4000000001"}
    assert await desk.refused("create_account", **asked, role="operator") == ("credit_limit_too_high", "credit_limit")


async def test_only_an_operator_creates_an_invoiced_account(desk):
    for role in ("owner", "billing_admin", "finance"):
        asked = {"name": "x", "plan": "invoiced", "credit_limit": "100", "role": role}
        assert await desk.refused("create_account", **asked) == ("not_permitted", "role")
    await desk.done("create_account", name="x", plan="invoiced", credit_limit="100", role="operator")


async def test_an_operator_sets_another_credit_limit_of_an_invoiced_account(desk):
    await desk.account("a", "invoiced", credit_limit="100")
    ask = {"account_id": "a", "credit_limit": "250.5"}
    assert await desk.refused("set_credit_limit", **ask) == ("not_permitted", "role")
    said = await desk.done("set_credit_limit", **ask, role="operator")
    assert said["message"] == "account a may owe 250.5 beyond its wallet"
    state = desk.state(ACCOUNTS, "a")
    assert (state["credit_limit"], state["version"]) == ("250.5", 2)
    assert await desk.refused("set_credit_limit", **ask, role="operator") == ("nothing_to_change", "credit_limit")
    for limit, code in (("0", "credit_limit_missing"), ("4000000001", "credit_limit_too_high")):
        asked = {"account_id": "a", "credit_limit": limit, "role": "operator"}
        assert await desk.refused("set_credit_limit", **asked) == (code, "credit_limit")
    await desk.account("prepaid")
    asked = {"account_id": "prepaid", "credit_limit": "1", "role": "operator"}
    assert await desk.refused("set_credit_limit", **asked) == ("not_invoiced", "account_id")


async def test_level_2_is_granted_by_an_operator_once(desk):
    await desk.account("desk")
    assert await desk.refused("grant_level_2", account_id="desk") == ("not_permitted", "role")
    assert not desk.state(ACCOUNTS, "desk")["level_2"]
    await desk.done("grant_level_2", role="operator", account_id="desk")
    state = desk.state(ACCOUNTS, "desk")
    assert (state["level_2"], state["version"]) == (True, 2)
    asked = {"role": "operator", "account_id": "desk"}
    assert await desk.refused("grant_level_2", **asked) == ("nothing_to_change", "account_id")


async def test_an_account_opens_at_the_earliest_with_the_oldest_period_not_yet_cut(desk):
    now = await desk.now()
    this = period_of(now)
    last = period_of(this.start - timedelta(seconds=1))
    await desk.account("a", opened_at=instant_text(last.start))
    state = desk.state(ACCOUNTS, "a")
    assert state["opened_at"] == instant_text(last.start) == state["plans"][0]["from"] == state["groups"][0]["from"]
    assert datetime.fromisoformat(state["created_at"]) >= now
    await desk.cut(this.start)
    asked = {"name": "b", "plan": "payg", "opened_at": instant_text(this.start - timedelta(seconds=1))}
    said = await desk.ask("create_account", **asked)
    assert (said["accepted"], said["reason"], said["field"]) == (False, "opened_too_early", "opened_at")
    assert instant_text(this.start) in said["message"]
    await desk.account("b", opened_at=instant_text(this.start))
    asked["opened_at"] = instant_text(await desk.now() + timedelta(hours=1))
    assert await desk.refused("create_account", **asked) == ("opened_in_future", "opened_at")


# ---- moves


async def two_groups(desk: Desk) -> None:
    for name in ("old", "new"):
        await desk.group(name)
        await desk.done("approve_sharing", group_id=name, **APPROVED)
    for name in ("a", "b"):
        await desk.account(name, "invoiced", group_id="old")


async def test_accounts_move_together_at_the_start_of_a_coming_period(desk):
    await two_groups(desk)
    period = await desk.coming()
    said = await desk.done("move_accounts", account_ids=["a", "b", "a"], group_id="new", period=period.name)
    assert [warning.split(" with ")[0] for warning in said["warnings"]] == [
        "account a leaves group old",
        "account b leaves group old",
    ]
    for name in ("a", "b"):
        state = desk.state(ACCOUNTS, name)
        start = instant_text(period.start)
        assert spans(state["groups"]) == [("old", state["opened_at"], start), ("new", start, None)]
        assert state["version"] == 2
    engine = desk.rooms.processors["groups"].engine
    assert (await api.group(engine, "new")).members == ()
    await desk.forward(period.start - await desk.now() + timedelta(seconds=1))
    assert (await api.group(engine, "new")).members == ("a", "b")
    assert (await api.account(engine, "a")).account.group_id == "new"


async def test_any_other_move_is_refused_with_the_next_possible_period(desk):
    await two_groups(desk)
    move = {"account_ids": ["a"], "group_id": "new"}
    coming = (await desk.coming()).name
    for period in (period_of(await desk.now()).name, "2020-01", "9999-12"):
        said = await desk.ask("move_accounts", period=period, **move)
        assert (said["accepted"], said["reason"], said["field"]) == (False, "not_a_coming_period", "period")
        assert coming in said["message"]
    await desk.group("paris", zone="Europe/Paris")
    move["group_id"] = "paris"
    assert await desk.refused("move_accounts", period=coming, **move) == ("zones_differ", "period")


async def test_accounts_move_since_an_instant_that_is_not_before_the_oldest_period_not_yet_cut(desk):
    this = period_of(await desk.now())
    last = period_of(this.start - timedelta(seconds=1))
    for name in ("old", "new"):
        await desk.group(name)
        await desk.done("approve_sharing", group_id=name, **APPROVED)
    await desk.account("a", "invoiced", group_id="old", opened_at=instant_text(last.start))
    move = {"account_ids": ["a"], "group_id": "new"}
    since = instant_text(last.start + timedelta(days=3))
    said = await desk.done("move_accounts", since=since, **move)
    assert said["message"] == f"1 account moves to group new since {since}"
    assert said["warnings"] == [f"account a leaves group old since {since}"]
    state = desk.state(ACCOUNTS, "a")
    assert spans(state["groups"]) == [("old", state["opened_at"], since), ("new", since, None)]
    assert await desk.refused("move_accounts", since=since, **move) == ("nothing_to_change", "account_ids")
    move["group_id"] = "old"
    early = instant_text(last.start - timedelta(seconds=1))
    assert await desk.refused("move_accounts", since=early, **move) == ("since_too_early", "since")
    late = instant_text(await desk.now() + timedelta(hours=1))
    assert await desk.refused("move_accounts", since=late, **move) == ("since_in_future", "since")
    await desk.cut(this.start)
    said = await desk.ask("move_accounts", since=since, **move)
    assert (said["accepted"], said["reason"], said["field"]) == (False, "since_too_early", "since")
    assert instant_text(this.start) in said["message"]
    await desk.done("move_accounts", since=instant_text(this.start), **move)
    assert [span["group_id"] for span in desk.state(ACCOUNTS, "a")["groups"]] == ["old", "new", "old"]


def test_a_move_from_before_since_was_known_is_the_same_command_when_it_is_repeated():
    asked = {
        "kind": "move_accounts", "command_id": "c", "actor": "ann", "role": "owner", "organization_id": "lakeside",
        "account_ids": ["a"], "group_id": "new", "period": "2026-12",
    }  # fmt: skip
    assert json.loads(groups_command.validate_json(json.dumps(asked)).model_dump_json()) == asked


async def test_a_move_is_dated_in_one_way(desk):
    await two_groups(desk)
    move = {"account_ids": ["a"], "group_id": "new"}
    assert await desk.refused("move_accounts", **move) == ("move_without_date", "period")
    both = {"period": (await desk.coming()).name, "since": instant_text(await desk.now())}
    assert await desk.refused("move_accounts", **both, **move) == ("move_without_date", "period")


async def test_all_of_a_list_move_or_none(desk):
    await two_groups(desk)
    await desk.account("t", "trial")
    period = (await desk.coming()).name
    for other, refusal in (("t", "trial_has_no_group"), ("nobody", "not_found")):
        asked = {"account_ids": ["a", other], "group_id": "new", "period": period}
        assert await desk.refused("move_accounts", **asked) == (refusal, "account_ids")
    assert desk.state(ACCOUNTS, "a")["version"] == 1


async def test_in_strict_a_move_makes_no_forbidden_neighbours(desk):
    await two_groups(desk)
    await desk.account("p")
    await desk.group("empty")
    period = (await desk.coming()).name
    move = {"period": period, "account_ids": ["p"]}
    assert await desk.refused("move_accounts", group_id="old", **move) == ("payg_alone", "account_ids")
    move["account_ids"] = ["a", "b"]
    assert await desk.refused("move_accounts", group_id="empty", **move) == ("sharing_not_approved", "account_ids")
    assert await desk.refused("move_accounts", group_id="p", **move) == ("group_of_one_account", "account_ids")
    await desk.done("move_accounts", group_id="empty", period=period, account_ids=["p"])
    # "empty" is taken from then on, for who would come today as well
    asked = {"name": "x", "plan": "payg", "group_id": "empty"}
    assert await desk.refused("create_account", **asked) == ("payg_alone", "group_id")


async def test_a_later_word_gives_up_a_coming_move(desk):
    await two_groups(desk)
    await desk.group("third")
    first, second = await desk.coming(1), await desk.coming(2)
    move = {"account_ids": ["a"]}
    await desk.done("move_accounts", group_id="new", period=second.name, **move)
    said = await desk.done("move_accounts", group_id="third", period=first.name, **move)
    assert any("new" in warning and "given up" in warning for warning in said["warnings"])
    assert [span["group_id"] for span in desk.state(ACCOUNTS, "a")["groups"]] == ["old", "third"]
    said = await desk.done("move_accounts", group_id="old", period=first.name, **move)
    assert [span["group_id"] for span in desk.state(ACCOUNTS, "a")["groups"]] == ["old"]
    asked = move | {"group_id": "old", "period": first.name}
    assert await desk.refused("move_accounts", **asked) == ("nothing_to_change", "account_ids")


# ---- resources


async def test_numbers_and_profiles_are_assigned_to_cost_centers_from_now_on(desk):
    await desk.account("desk")
    for name in ("sales", "support"):
        await desk.done("create_cost_center", cost_center_id=name, name=name)
    assert desk.state(GROUPS_COST_CENTERS.name, "sales") == {
        "cost_center_id": "sales", "version": 1, "organization_id": "lakeside", "name": "sales",
    }  # fmt: skip
    number = {"resource_id": "n1", "resource": "number", "number": "+12484329407", "account_id": "desk"}
    first = await desk.done("assign_resource", cost_center_id="sales", **number)
    second = await desk.done("assign_resource", cost_center_id="support", **number)
    third = await desk.done("assign_resource", **number)
    state = desk.state(ASSIGNMENTS, "n1")
    assert state["cost_centers"] == [
        {"from": first["at"], "to": second["at"], "cost_center_id": "sales"},
        {"from": second["at"], "to": third["at"], "cost_center_id": "support"},
        {"from": third["at"], "to": None, "cost_center_id": None},
    ]
    assert (state["version"], state["number"], state["account_id"]) == (3, "+12484329407", "desk")
    profile = {"resource_id": "p1", "resource": "outbound_profile", "account_id": "desk"}
    await desk.done("assign_resource", cost_center_id="sales", **profile)
    assert desk.state(ASSIGNMENTS, "p1")["number"] is None


async def test_a_resource_that_makes_no_sense_is_refused(desk):
    await desk.account("desk")
    await desk.account("other")
    number = {"resource_id": "n1", "resource": "number", "number": "+12484329407", "account_id": "desk"}
    await desk.done("assign_resource", **number)
    for changes, refusal in (
        ({"resource_id": "n2"}, ("number_taken", "number")),
        ({"number": "+12484329408"}, ("resource_differs", "number")),
        ({"resource": "outbound_profile"}, ("invalid", "number")),
        ({"resource": "outbound_profile", "number": None}, ("resource_differs", "resource")),
        ({"number": None}, ("invalid", "number")),
        ({"account_id": "nobody"}, ("not_found", "account_id")),
        ({"cost_center_id": "nothing"}, ("not_found", "cost_center_id")),
        ({}, ("nothing_to_change", "cost_center_id")),
    ):
        assert await desk.refused("assign_resource", **(number | changes)) == refusal, changes
    await desk.found("northwind")
    await desk.account("theirs", organization="northwind")
    taken = {"resource_id": "n1", "resource": "outbound_profile", "account_id": "theirs"}
    assert await desk.refused("assign_resource", "northwind", **taken) == ("already_exists", "resource_id")


async def test_a_number_moves_to_another_account_and_is_released_and_registered_again(desk):
    opened_at = period_of(await desk.now()).start
    for name in ("desk", "other"):
        await desk.done("create_account", account_id=name, name=name, plan="payg", opened_at=instant_text(opened_at))
    await desk.done("create_cost_center", cost_center_id="sales", name="sales")
    number = {"resource_id": "n1", "resource": "number", "number": "+12484329407"}
    first = opened_at + timedelta(milliseconds=1)  # this month may have only begun
    await desk.done("assign_resource", account_id="desk", cost_center_id="sales", since=instant_text(first), **number)
    again = {"account_id": "desk", "since": instant_text(first)}
    assert await desk.refused("assign_resource", **number, **again) == ("nothing_to_change", "since")
    for since, code in (
        (opened_at - timedelta(seconds=1), "since_too_early"),  # the account was not open
        (opened_at, "since_too_early"),  # before it changed hands last
        (await desk.now() + timedelta(days=1), "since_in_future"),
    ):
        asked = number | {"account_id": "other", "since": instant_text(since)}
        assert await desk.refused("assign_resource", **asked) == (code, "since")
    moved = await desk.done("assign_resource", account_id="other", **number)
    assert moved["warnings"] == ["n1 leaves account desk"]
    state = desk.state(ASSIGNMENTS, "n1")
    assert state["owners"] == [
        {"from": instant_text(first), "to": moved["at"], "account_id": "desk"},
        {"from": moved["at"], "to": None, "account_id": "other"},
    ]
    assert [each["cost_center_id"] for each in state["cost_centers"]] == ["sales", None]
    released = await desk.done("release_resource", resource_id="n1")
    state = desk.state(ASSIGNMENTS, "n1")
    assert (state["version"], state["account_id"], state["owners"][-1]["to"]) == (3, None, released["at"])
    assert await desk.refused("release_resource", resource_id="n1") == ("nothing_to_change", "resource_id")
    assert await desk.refused("release_resource", resource_id="n9") == ("not_found", "resource_id")
    # registered again by another organization, not before it was released
    await desk.found("northwind")
    await desk.done(
        "create_account",
        "northwind",
        account_id="theirs",
        name="theirs",
        plan="payg",
        opened_at=instant_text(opened_at),
    )
    other = number | {"resource_id": "a2", "account_id": "theirs"}
    early = other | {"since": instant_text(first)}
    assert await desk.refused("assign_resource", "northwind", **early) == ("since_too_early", "since")
    await desk.done("assign_resource", "northwind", **other)
    assert await desk.refused("assign_resource", account_id="desk", **number) == ("number_taken", "number")
    # given back, and taken again by the first
    await desk.done("release_resource", "northwind", resource_id="a2")
    await desk.done("assign_resource", account_id="desk", **number)
    assert desk.state(ASSIGNMENTS, "n1")["account_id"] == "desk"
    # released and registered as another resource in one batch
    desk.write("release_resource", resource_id="n1")
    desk.write("assign_resource", account_id="other", **(number | {"resource_id": "a0"}))
    await desk.rooms.pump()
    assert (desk.state(ASSIGNMENTS, "n1")["account_id"], desk.state(ASSIGNMENTS, "a0")["account_id"]) == (None, "other")


async def test_a_number_moves_since_no_instant_in_a_month_that_is_cut_of_either_account(desk):
    this = period_of(await desk.now())
    begun = period_of(this.start - timedelta(seconds=1), "Asia/Tokyo").start  # nine hours before that of UTC
    opened_at = instant_text(this.start - timedelta(days=2))
    await desk.group("tokyo", zone="Asia/Tokyo")
    await desk.account("desk", group_id="tokyo", opened_at=opened_at)
    await desk.account("other", opened_at=opened_at)
    number = {"resource_id": "n1", "resource": "number", "number": "+12484329407"}
    await desk.done("assign_resource", account_id="desk", since=opened_at, **number)
    await desk.cut(begun)
    move = number | {"account_id": "other"}
    early = instant_text(begun - timedelta(seconds=1))
    said = await desk.ask("assign_resource", since=early, **move)
    assert (said["accepted"], said["reason"], said["field"]) == (False, "since_too_early", "since")
    assert instant_text(begun) in said["message"]
    await desk.done("assign_resource", since=instant_text(begun), **move)


# ---- what the database holds by itself


@pytest.mark.parametrize(
    ("table", "number", "values"),
    [
        (tables.account_group, "account_no", {"group_id": "desk"}),
        (tables.account_plan, "account_no", {"plan": "invoiced"}),
        (tables.resource_cost_center, "resource_no", {"cost_center_id": None}),
        (tables.resource_owner, "resource_no", {"account_id": None}),
    ],
)
async def test_the_database_refuses_two_values_at_one_instant(desk, table, number, values):
    await desk.account("desk")
    await desk.done("assign_resource", resource_id="r", resource="outbound_profile", account_id="desk")
    (row,) = await desk.rooms.query("groups", select(table.c[number], table.c.during))
    for start, end in ((row[1].lower, None), (row[1].lower - timedelta(days=1), row[1].lower + timedelta(seconds=1))):
        again = insert(table).values({number: row[0], "during": Range(start, end), **values}).returning(table.c[number])
        with pytest.raises(IntegrityError) as raised:
            await desk.rooms.query("groups", again)
        assert sqlstate(raised.value) == "23P01"
    before = {number: row[0], "during": Range(row[1].lower - timedelta(days=1), row[1].lower), **values}
    await desk.rooms.query("groups", insert(table).values(before).returning(table.c[number]))


# ---- the log


async def test_every_action_is_logged_with_who_when_and_what_refused_ones_too(desk):
    await desk.account("desk", actor="Olga")
    await desk.refused("grant_level_2", account_id="desk")
    await desk.found("northwind")
    engine = desk.rooms.processors["groups"].engine
    newest, before, *_ = await api.log(engine, "lakeside")
    assert (newest.kind, newest.actor, newest.role, newest.accepted) == ("grant_level_2", "Erin", "owner", False)
    assert "operator" in newest.message
    assert (before.kind, before.actor, before.accepted) == ("create_account", "Olga", True)
    assert before.content["plan"] == "payg"
    assert before.at <= newest.at <= await desk.now()
    assert {line.organization_id for line in await api.log(engine)} == {"lakeside", "northwind"}
    assert len(await api.log(engine, limit=2)) == 2


# ---- cuts


async def test_a_cut_is_covered_with_the_marks_of_every_timeline_link(desk):
    await desk.account("desk")
    await desk.done("assign_resource", resource_id="r", resource="outbound_profile", account_id="desk")
    boundary = period_of(await desk.now()).start
    (covered,) = await desk.cut(boundary)
    assert (covered.room, covered.boundary, covered.group_id) == ("groups", boundary, None)
    published = {
        (record["link"], topic, partition): record["seq"]
        for (topic, partition), records in desk.log.records.items()
        for record in (each.json for each in records)
        if topic in {each.name for each in STATE_TOPICS}
    }
    assert {(mark.link, mark.topic, mark.partition): mark.last_seq for mark in covered.marks} == published
    assert {mark.topic for mark in covered.marks} == {ACCOUNTS, ASSIGNMENTS, BILLING_GROUPS}
    engine = desk.rooms.processors["groups"].engine
    assert {(mark.link, mark.topic, mark.partition): mark.last_seq for mark in await api.marks(engine)} == published


async def test_a_cut_is_covered_once(desk):
    boundary = period_of(await desk.now()).start
    await desk.cut(boundary)
    await desk.account("desk")
    assert len(await desk.cut(boundary)) == 1
    assert len(await desk.cut(boundary - timedelta(hours=1))) == 1


async def test_a_cut_waits_for_a_command_that_is_being_carried_out(desk):
    """The command has given out its seq and is not committed: the marks must hold it."""
    boundary = period_of(await desk.now()).start
    processor = desk.rooms.processors["groups"]
    async with transaction(processor.engine) as connection:
        await connection.execute(select(tables.registry).with_for_update())
        await links.take_seqs(connection, processor.tables, {("groups:slow", ACCOUNTS, 0): 7})
        cut = asyncio.ensure_future(desk.cut(boundary))
        done, _ = await asyncio.wait([cut], timeout=0.5)
        assert not done
    (covered,) = await cut
    assert ("groups:slow", 7) in {(mark.link, mark.last_seq) for mark in covered.marks}


async def test_two_rooms_at_once_write_the_registry_one_after_the_other(desk, database):
    """Commands of two organizations run on two partitions at once and ask for the same id: one gets it."""
    await desk.found("northwind")
    async with open_desk(database) as second:
        second.log.records = desk.log.records
        answers = []
        for number in range(5):
            for partition, organization in enumerate(("lakeside", "northwind")):
                command = {
                    "kind": "create_account", "actor": "Erin", "organization_id": organization,
                    "command_id": f"race-{number}", "account_id": f"raced-{number}", "name": "x", "plan": "payg",
                }  # fmt: skip
                desk.log.write(COMMANDS, value=command, partition=partition)
            await asyncio.gather(*(feed(rooms, part) for part, rooms in enumerate((desk.rooms, second))))
            await desk.rooms.pump()
            answers.append(sorted((said["accepted"], said["reason"] or "") for said in desk.answers(f"race-{number}")))
    assert answers == [[(False, "already_exists"), (True, "")]] * 5


async def feed(rooms: Rooms, partition: int) -> None:
    """What one copy of the room does with the records of one partition."""
    processor = rooms.processors["groups"]
    source = processor.room.input("commands")
    lane = lane_name("commands", COMMANDS, partition)
    (row,) = await rooms.query(
        "groups", select(processor.tables.lane.c.position).where(processor.tables.lane.c.name == lane)
    )
    fresh = rooms.log.records[COMMANDS, partition][row[0] :]
    records = [
        Record(COMMANDS, partition, row[0] + number, each.timestamp_ms, each.key, each.value, lane)
        for number, each in enumerate(fresh)
    ]
    await processor.process(source, records, {lane: (row[0], row[0] + len(fresh))})


# ---- the cast


async def test_the_casts_registry_is_created_by_commands(empty):
    now = await empty.now()
    opened_at = period_of(period_of(now).start - timedelta(days=1)).start
    for stage in cast(opened_at):
        for command in stage:
            empty.write(command.pop("kind"), command.pop("organization_id"), **command)
        await empty.rooms.pump()
    said = empty.log.data(EVENTS)
    assert [each for each in said if not each["accepted"]] == []
    engine = empty.rooms.processors["groups"].engine
    shown = {each.account_id: each for each in await api.accounts(engine)}
    assert set(shown) == {*LAKESIDE, *NORTHWIND}
    assert {each.account_id for each in shown.values() if each.level == 2} == set(LEVEL_2)
    for name in LAKESIDE:
        plan, group = ("trial", None) if name == "try" else ("payg", name)
        assert (shown[name].organization_id, shown[name].plan, shown[name].group_id) == ("lakeside", plan, group)
        assert shown[name].opened_at == opened_at < now < shown[name].created_at
    assert {(shown[name].group_id, shown[name].plan, shown[name].credit_limit) for name in NORTHWIND} == {
        ("northwind-group", "invoiced", "100")
    }
    assert empty.state(ACCOUNTS, "east")["groups"][0]["pricing_model"] == "wholesale"
    assert empty.state(BILLING_GROUPS, "northwind-group")["tax_rate"] == "0.20"
    assert (await api.group(engine, "northwind-group")).members == tuple(sorted(NORTHWIND))
    counts = {each.organization_id: (each.accounts, each.groups) for each in await api.organizations(engine)}
    assert counts == {"lakeside": (8, 7), "northwind": (3, 1)}
    assert [each.group_id for each in await api.groups(engine, "northwind")] == ["northwind-group"]
    with pytest.raises(NotFound):
        await api.account(engine, "nobody")
    with pytest.raises(NotFound):
        await api.group(engine, "nobody")
    with pytest.raises(NotFound):
        await api.organization(engine, "nobody")
    assert (await api.organization(engine, "lakeside")).consolidation == "strict"


async def test_a_batch_takes_a_bounded_number_of_statements(desk):
    """Two hundred commands cost as many statements as two."""
    engine = desk.rooms.processors["groups"].engine.sync_engine
    counted: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: counted.append(args[2]))
    counts = []
    for size in (2, 200):
        for number in range(size):
            desk.write("create_account", account_id=f"s{size}-{number}", name="x", plan="payg")
        counted.clear()
        await desk.rooms.feed(desk.rooms.processors["groups"], desk.rooms.processors["groups"].room.inputs[0])
        counts.append(len(counted))
    assert counts[0] == counts[1] <= 20
    await desk.rooms.pump()
    assert (await desk.rooms.query("groups", select(func.count()).select_from(tables.account)))[0][0] == 202
    assert (await desk.rooms.query("groups", text("select count(*) from groups.account_group")))[0][0] == 202


# ---- what is owed


def tell_invoice(desk, seq: int, **data: Any) -> None:
    envelope = {
        "id": f"i{seq}", "type": INVOICES_EVENTS.type, "version": 1, "time": "2026-11-03T00:00:00Z",
        "link": "invoices:tick.close", "seq": seq, "epoch": 0, "trace": None,
        "data": {
            "invoice_id": "00000000-0000-8000-8000-000000000001", "number": "TB-1", "group_id": "desk",
            "organization_id": "lakeside", "period": "2026-10", "due_on": "2026-11-17T00:00:00Z", "currency": "USD",
        } | data,
    }  # fmt: skip
    desk.log.write(INVOICES_EVENTS.name, key="desk", value=envelope, partition=0)


CLOSED = {
    "kind": "closed", "boundary": "2026-11-01T00:00:00Z", "issued_on": "2026-11-03T00:00:00Z", "net": "96.00",
    "tax": "0.00", "total": "96.00", "paid_from_balance": "0.00", "due": "96.00", "charges": 1, "document": "",
    "sha256": "", "postings": [{"account_id": "desk", "unbilled": "96", "receivable": "-96"}, {"account_id": "other"}],
    "posting_rounding": "0", "posting_tax": "0",
}  # fmt: skip
MOVED = {"at": "2026-11-10T00:00:00Z", "due": "96.00", "written_off": "0"}


async def test_an_invoiced_account_changes_its_plan_when_nothing_is_owed(desk):
    for account_id in ("desk", "other"):
        await desk.account(account_id, "invoiced", credit_limit="100")
    await desk.account("prepaid")
    tell_invoice(desk, 1, **CLOSED)
    await desk.rooms.pump()
    await desk.done("change_plan", account_id="other", plan="payg")  # no share of what is open
    assert await desk.refused("change_plan", account_id="desk", plan="payg") == ("open_receivable", "account_id")
    tell_invoice(desk, 2, **MOVED, version=2, kind="paid", state="paid", paid="96.00", open="0")
    tell_invoice(desk, 3, **MOVED, version=1, kind="partly_paid", state="partly_paid", paid="95.00", open="1")
    await desk.rooms.pump()
    await desk.done("change_plan", account_id="desk", plan="payg")
    told = desk.state(ACCOUNTS, "desk")
    assert ([each["plan"] for each in told["plans"]], told["credit_limit"]) == (["invoiced", "payg"], "0")
    assert await desk.refused("change_plan", account_id="desk", plan="payg") == ("nothing_to_change", "account_id")
    assert await desk.refused("change_plan", account_id="prepaid", plan="payg") == ("nothing_to_change", "account_id")


async def test_who_has_paid_a_share_changes_its_plan_while_another_account_owes_the_rest(desk):
    for account_id in ("desk", "other"):
        await desk.account(account_id, "invoiced", credit_limit="100")
    shares = [{"account_id": "desk", "receivable": "-60"}, {"account_id": "other", "receivable": "-36"}]
    tell_invoice(desk, 1, **CLOSED | {"postings": shares})
    half = MOVED | {"kind": "partly_paid", "state": "partly_paid", "paid": "60.00", "open": "36"}
    tell_invoice(desk, 2, **half, version=1)  # an older record does not say whose share is open
    await desk.rooms.pump()
    assert await desk.refused("change_plan", account_id="desk", plan="payg") == ("open_receivable", "account_id")
    tell_invoice(desk, 3, **half, version=2, owed_by=["other"])
    await desk.rooms.pump()
    await desk.done("change_plan", account_id="desk", plan="payg")
    assert await desk.refused("change_plan", account_id="other", plan="payg") == ("open_receivable", "account_id")


async def test_an_operator_lets_an_account_be_invoiced_with_a_credit_limit_from_now_on(desk):
    await desk.account("desk")
    ask = {"account_id": "desk", "plan": "invoiced"}
    assert await desk.refused("change_plan", **ask, credit_limit="100") == ("not_permitted", "role")
    assert await desk.refused("change_plan", **ask, role="operator") == ("credit_limit_missing", "credit_limit")
    said = await desk.done("change_plan", **ask, role="operator", credit_limit="100")
    assert said["message"] == "account desk is invoiced and may owe 100 beyond its wallet"
    told = desk.state(ACCOUNTS, "desk")
    assert ([each["plan"] for each in told["plans"]], told["credit_limit"]) == (["payg", "invoiced"], "100")
    assert told["plans"][0]["to"] == told["plans"][1]["from"]
    assert [each["group_id"] for each in told["groups"]] == ["desk"]
    again = await desk.refused("change_plan", **ask, role="operator", credit_limit="200")
    assert again == ("nothing_to_change", "account_id")
    back = {"account_id": "desk", "plan": "payg"}
    assert await desk.refused("change_plan", **back, credit_limit="1") == ("credit_limit_not_allowed", "credit_limit")
    await desk.done("change_plan", **back)
    assert desk.state(ACCOUNTS, "desk")["credit_limit"] == "0"


async def test_a_trial_is_upgraded_before_it_is_invoiced(desk):
    await desk.account("desk", "trial")
    ask = {"account_id": "desk", "plan": "invoiced", "role": "operator", "credit_limit": "100"}
    assert await desk.refused("change_plan", **ask) == ("is_a_trial", "account_id")
    await desk.done("upgrade_account", account_id="desk")
    await desk.done("change_plan", **ask)


async def test_in_strict_an_account_that_shares_its_group_stays_invoiced(desk):
    await desk.group("northwind")
    await desk.done("approve_sharing", group_id="northwind", **APPROVED)
    for account_id in ("east", "west"):
        await desk.account(account_id, "invoiced", group_id="northwind")
    assert await desk.refused("change_plan", account_id="east", plan="payg") == ("payg_alone", "account_id")


async def test_in_strict_an_account_changes_its_plan_whoever_comes_when_it_has_left(desk):
    for name in ("first", "second"):
        await desk.group(name)
    await desk.account("east", "invoiced", group_id="first")
    await desk.account("desk")
    period = (await desk.coming()).name
    await desk.done("move_accounts", account_ids=["east"], group_id="second", period=period)
    await desk.done("move_accounts", account_ids=["desk"], group_id="first", period=period)
    await desk.done("change_plan", account_id="east", plan="payg")
