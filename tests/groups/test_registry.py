"""The registry under any sequence of commands: its promises hold after each, and a refusal changes nothing."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from contracts import groups
from contracts.groups import GroupsCommand, groups_command
from services.groups.messages import account_timeline
from services.groups.registry import CARRY_OUT, Registry, carry_out
from services.groups.timeline import value_at, values_during
from services.kernel.currency import CURRENCIES
from services.kernel.errors import TollbookError
from services.kernel.period import instant_text, is_boundary

START = datetime(2026, 10, 15, tzinfo=UTC)
ORGANIZATIONS = {"strict": "strict", "open": "open"}
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f"])
GROUPS = st.sampled_from(["g1", "g1", "g1", "g2", "a"])  # few groups, so that accounts meet in them
EITHER = st.sampled_from(sorted(ORGANIZATIONS))
OWNER = st.sampled_from([None] * 9 + ["strict", "open"])  # now and then a command names what is another organization's
ids = count(1)


def read(**fields: Any) -> GroupsCommand:
    made = {"command_id": f"c{next(ids)}", "actor": "Erin", **fields}
    return groups_command.validate_json(json.dumps(made))


class RegistryMachine(RuleBasedStateMachine):
    """Two organizations, one strict and one open, with two payer groups and an account of each plan to begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.registry = Registry(numbers=count(1))

    @initialize()
    def found(self) -> None:
        self.ask(
            kind="create_billing_entity", role="operator", organization_id="open", billing_entity_id="e", name="E",
            address="",
        )  # fmt: skip
        for name, consolidation in ORGANIZATIONS.items():
            self.ask(kind="create_organization", organization_id=name, name=name, consolidation=consolidation)
            for group in ("g1", "g2"):
                self.create_group(name, group, False, "UTC")
            for account, plan in (("a", "invoiced"), ("b", "invoiced"), ("c", "payg"), ("d", "trial")):
                self.create_account(name, None, account, plan, None, None)

    def ask(self, **fields: Any) -> bool:
        before = copy.deepcopy({**vars(self.registry), "numbers": None})
        refusal = None
        try:
            carry_out(self.registry, read(**fields), self.now)
        except TollbookError as error:
            refusal = error
        if refusal is None:
            return True
        assert {**vars(self.registry), "numbers": None} == before
        assert refusal.field
        assert refusal.message
        return False

    @rule(hours=st.integers(1, 24 * 40))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule(organization=EITHER, group=GROUPS, primary=st.booleans(), zone=st.sampled_from(["UTC", "Europe/London"]))
    def create_group(self, organization: str, group: str, primary: bool, zone: str) -> None:
        self.ask(
            kind="create_group", organization_id=organization, group_id=f"{organization}.{group}", name=group,
            primary=primary, zone=zone, billing_information={"company": organization},
        )  # fmt: skip

    @rule(
        organization=EITHER, owner=OWNER, name=NAMES, plan=st.sampled_from(["trial", "payg", "invoiced"]),
        group=st.none() | GROUPS, back=st.none() | st.integers(0, 60),
    )  # fmt: skip
    def create_account(
        self, organization: str, owner: str | None, name: str, plan: str, group: str | None, back: int | None
    ) -> None:
        self.ask(
            kind="create_account", organization_id=organization, account_id=f"{organization}.{name}", name=name,
            plan=plan, group_id=None if group is None else f"{owner or organization}.{group}",
            opened_at=None if back is None else instant_text(self.now - timedelta(days=back)),
        )  # fmt: skip

    @rule(organization=EITHER, owner=OWNER, name=NAMES, group=st.none() | GROUPS)
    def upgrade(self, organization: str, owner: str | None, name: str, group: str | None) -> None:
        self.ask(
            kind="upgrade_account", organization_id=organization, account_id=f"{owner or organization}.{name}",
            group_id=None if group is None else f"{organization}.{group}",
        )  # fmt: skip

    @rule(
        organization=EITHER, name=NAMES, plan=st.sampled_from(["payg", "invoiced"]),
        role=st.sampled_from(["owner", "operator", "operator"]), limit=st.sampled_from(["0", "100"]),
    )  # fmt: skip
    def change_plan(self, organization: str, name: str, plan: str, role: str, limit: str) -> None:
        account_id = f"{organization}.{name}"
        changed = self.ask(
            kind="change_plan", role=role, organization_id=organization, account_id=account_id, plan=plan,
            credit_limit=limit,
        )  # fmt: skip
        if changed:
            account = self.registry.accounts[account_id]
            assert account.plans[-1].value == plan
            assert (account.credit_limit_nano > 0) == (plan == "invoiced")
            assert plan == "payg" or role == "operator"

    @rule(organization=EITHER, owner=OWNER, group=GROUPS)
    def approve(self, organization: str, owner: str | None, group: str) -> None:
        self.ask(
            kind="approve_sharing", role="operator", organization_id=organization,
            group_id=f"{owner or organization}.{group}", yearly_spend="2", threshold="1", credit_check_passed=True,
        )  # fmt: skip

    @rule(
        organization=EITHER, owner=OWNER, names=st.lists(NAMES, min_size=1, max_size=2), group=GROUPS,
        months=st.sampled_from([0, 1, 1, 1, 2, 2, 3, 4]),
    )  # fmt: skip
    def move(self, organization: str, owner: str | None, names: list[str], group: str, months: int) -> None:
        index = self.now.year * 12 + self.now.month - 1 + months
        account_ids = [f"{organization}.{name}" for name in names]
        held = {each: self.registry.accounts[each] for each in account_ids if each in self.registry.accounts}
        group_id = f"{owner or organization}.{group}"
        moved = self.ask(
            kind="move_accounts", organization_id=organization, account_ids=account_ids, group_id=group_id,
            period=f"{index // 12:04d}-{index % 12 + 1:02d}",
        )  # fmt: skip
        for each, before in held.items() if moved else ():
            after = self.registry.accounts[each]
            assert after.version == before.version + 1
            joined = after.groups[-1]
            assert joined.value == group_id
            begun = [span.value for span in before.groups if span.start <= self.now]
            assert [span.value for span in after.groups if span.start <= self.now] == begun
            for span in after.groups[-2:] if joined.start > self.now else ():
                assert is_boundary(joined.start, self.registry.groups[str(span.value)].zone)

    @rule(organization=EITHER, name=NAMES, group=GROUPS, hours=st.integers(-1, 24 * 60))
    def move_since(self, organization: str, name: str, group: str, hours: int) -> None:
        account_id, since = f"{organization}.{name}", self.now - timedelta(hours=hours)
        before = self.registry.accounts.get(account_id)
        moved = self.ask(
            kind="move_accounts", organization_id=organization, account_ids=[account_id],
            group_id=f"{organization}.{group}", since=instant_text(since),
        )  # fmt: skip
        if moved:
            assert before is not None
            assert before.groups[0].start <= since <= self.now
            after = self.registry.accounts[account_id]
            assert after.groups[-1].value == f"{organization}.{group}"
            for span in before.groups:
                instant = span.start
                if instant < since:
                    assert value_at(after.groups, instant) == span.value
                else:
                    assert value_at(after.groups, instant) == f"{organization}.{group}"

    @invariant()
    def accounts_have_one_plan_and_one_payer_group_at_each_instant(self) -> None:
        for account in self.registry.accounts.values():
            assert account.plans[0].start == account.opened_at <= account.created_at
            for timeline in (account.plans, account.groups):
                assert all(left.end == right.start for left, right in pairwise(timeline))
                assert all(span.end is None or span.start < span.end for span in timeline)
                assert not timeline or timeline[-1].end is None
            paying = [span for span in account.plans if span.value != "trial"]
            assert [span.start for span in paying[:1]] == [span.start for span in account.groups[:1]]
            account_timeline(self.registry, account)

    @invariant()
    def nothing_crosses_an_organization(self) -> None:
        for account in self.registry.accounts.values():
            for span in account.groups:
                assert self.registry.groups[str(span.value)].organization_id == account.organization_id

    @invariant()
    def who_shares_may_share(self) -> None:
        accounts = list(self.registry.accounts.values())
        for left in accounts:
            for right in accounts:
                shared = [
                    (
                        span.value,
                        max(span.start, other.start),
                        min((e for e in (span.end, other.end) if e), default=None),
                    )
                    for span in left.groups
                    for other in right.groups
                    if left is not right and span.value == other.value and span.overlaps(other.start, other.end)
                ]
                for group_id, start, end in shared:
                    group = self.registry.groups[str(group_id)]
                    assert group.account_id is None
                    assert left.currency == right.currency == group.currency
                    if group.organization_id == "strict":
                        for each in (left, right):
                            assert values_during(each.plans, start, end) == {"invoiced"}
                        assert group.sharing is not None


RegistryMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRegistry = RegistryMachine.TestCase


def test_every_command_of_the_contract_is_carried_out():
    union = get_args(groups.GroupsCommand)[0]
    assert set(CARRY_OUT) == set(get_args(union))


def test_a_group_and_its_accounts_share_one_currency(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(CURRENCIES, "EUR", CURRENCIES["USD"])
    machine = RegistryMachine()
    machine.found()
    group = {"kind": "create_group", "organization_id": "open", "name": "g", "billing_information": {"company": "c"}}
    account = {"kind": "create_account", "organization_id": "open", "name": "a", "plan": "payg"}
    assert machine.ask(**group, group_id="euro", currency="EUR")
    assert not machine.ask(**account, account_id="a", group_id="euro")
    assert machine.ask(**account, account_id="a", group_id="euro", currency="EUR")
    assert machine.ask(**account, account_id="b", currency="EUR")
    assert machine.registry.groups["b"].currency == "EUR"
    assert not machine.ask(**group, group_id="dollars", account_id="a")
