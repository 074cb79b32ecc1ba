"""Random lives of accounts and their processor, cut anywhere by a backup, undone by its restore, and gone on with.

The rule is plain: what the processor took, less what it gave back, is what stands in the ledger and what is not known yet. No
attempt is charged twice, no command either; and what the new life asks for by itself waits for all that the old one had asked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from services.balance import consumer as balance_room
from services.balance import recharge, tables
from services.balance.refuse_fast import RefuseFast
from services.kernel.money import parse_amount
from services.payments import consumer as payments_room
from services.runtime.room import Room
from tests.support.balance_factory import NO_VALKEY, Town, minutes
from tests.support.restoring import Bank, adopt, backup_of, restored
from tests.support.servers import TestedServers

WHO = ("anna", "bela")
TOKENS = ("tok_ok", "tok_ok", "tok_lost", "tok_declined", "tok_dead", "tok_mute")
MOVES = (
    "balance.commands", "balance.charges", "balance.results", "balance.timers", "balance.sends",
    "payments.requests", "payments.errands", "payments.sends",
)  # fmt: skip

who = st.sampled_from(WHO)
STEP = st.one_of(
    st.tuples(st.just("charge"), who, st.integers(5, 90)),
    st.tuples(st.just("charge"), who, st.integers(5, 90)),
    st.tuples(st.just("pay"), who, st.sampled_from(TOKENS), st.booleans()),
    st.tuples(st.just("refund"), who, st.booleans()),
    st.tuples(st.just("cancel"), who),
    st.tuples(st.just("method"), who, st.sampled_from(TOKENS)),
    st.tuples(st.just("jump"), st.sampled_from([1, 16, 61, 400, 1445])),
    st.tuples(st.just("moves"), st.lists(st.sampled_from(MOVES), min_size=1, max_size=6)),
    st.tuples(st.just("moves"), st.lists(st.sampled_from(MOVES), min_size=1, max_size=6)),
    st.just(("settle",)),
)
STEPS = st.lists(STEP, max_size=10)


class Lives:
    """Two accounts, one bank, one life after the other."""

    def __init__(self) -> None:
        self.bank = Bank()
        self.paid: dict[int, str] = {}  # by amount, which no two payments share: the account
        self.refunded: set[str] = set()

    def rooms(self) -> list[Room]:
        return [
            balance_room.room(RefuseFast(lambda: NO_VALKEY)),
            payments_room.room({"sandbox": self.bank}),
        ]

    async def begin(self, town: Town) -> None:
        for name in WHO:
            await town.account(name, level_2=True)
            town.open(name, "120")
            town.method(name, "tok_ok")
            town.prefer(name, "100", "50")
        await town.settle()

    async def live(self, town: Town, steps: list[Any]) -> None:
        for kind, *values in steps:
            await getattr(self, kind)(town, *values)

    # ---- steps ----

    async def charge(self, town: Town, name: str, whole: int) -> None:
        town.charge(name, str(whole))

    async def pay(self, town: Town, name: str, token: str, brings_method: bool) -> None:
        amount = f"{10 + len(self.paid)}.07"
        self.paid[parse_amount(amount)] = name
        town.pay(name, amount, token if brings_method else None)

    async def refund(self, town: Town, name: str, in_part: bool) -> None:
        settled = [each for each in await town.attempts(name) if each.state == "settled"]
        if settled:
            about = {"attempt_id": str(settled[-1].attempt_id), "role": "finance"}
            town.command("refund_payment", name, amount="3" if in_part else None, **about)

    async def cancel(self, town: Town, name: str) -> None:
        flying = [each for each in await town.attempts(name) if each.state in recharge.IN_FLIGHT]
        if flying:
            town.command("cancel_payment", name, attempt_id=str(flying[-1].attempt_id))

    async def method(self, town: Town, name: str, token: str) -> None:
        town.command("delete_method", name)
        town.method(name, token)
        town.prefer(name, "100", "50")  # a refund paused it

    async def jump(self, town: Town, by: int) -> None:
        await town.move(minutes(by))

    async def settle(self, town: Town) -> None:
        await town.settle()

    async def moves(self, town: Town, names: list[str]) -> None:
        for name in names:
            room, _, what = name.partition(".")
            processor = town.rooms.processors[room]
            match what:
                case "sends":
                    await town.rooms.drain(room)
                case "timers":
                    await processor.fire_timers()
                case "errands":
                    await processor.run_errands()
                case _:
                    (source,) = [each for each in processor.room.inputs if each.name == what]
                    await town.rooms.feed(processor, source)

    # ---- the rule ----

    async def check(self, town: Town, *, all_known: bool) -> None:
        assert set(self.bank.taken.values()) <= {1}, "an attempt was charged twice"
        charged = Counter(self.bank.amounts[each] for each in self.bank.taken if self.bank.amounts[each] in self.paid)
        assert set(charged.values()) <= {1}, "a command was charged twice"
        attempts = await town.rooms.query("balance", select(tables.attempt).order_by(tables.attempt.c.requested_at))
        known = {each.attempt_id: each for each in attempts}
        assert known.keys() >= self.bank.taken.keys(), "a processor took what nobody here knows"
        columns = tables.ledger_entry.c
        in_ledger: dict[str, int] = defaultdict(int)
        rows = await town.rooms.query("balance", select(columns).where(columns.ledger == "clearing:sandbox"))
        for row in rows:
            in_ledger[row.account_id] -= row.nano
        unknown: dict[str, int] = defaultdict(int)
        for each in attempts:
            if each.state in ("requested", "unknown", "abandoned") and each.attempt_id in self.bank.taken:
                unknown[each.account_id] += each.amount_nano
        moved = self.bank.moved()
        given = await town.rooms.query("balance", select(tables.refund))
        for each in given:
            if each.state == "requested" and each.refund_id in self.bank.given:
                unknown[each.account_id] -= each.amount_nano
        for name in WHO:
            assert moved.get(name, 0) == in_ledger[name] + unknown[name], name
        if all_known:
            assert not any(each.state in recharge.IN_FLIGHT for each in attempts)
            assert not any(unknown.values())
        await town.assert_conserved()

    async def check_waits(self, town: Town) -> None:
        """What this life asked for by itself came after the end of all that an earlier one had asked for; and ten are ten."""
        for name in WHO:
            attempts = await town.attempts(name)
            own = [each for each in attempts if each.kind == "auto"]
            undone = [each for each in attempts if each.undone]
            for each in own:
                before = [other for other in own if other.trigger_version < each.trigger_version]
                counted = recharge.counted_in_window(before, each.requested_at)
                assert len(counted) < recharge.RECHARGES_PER_WINDOW_MAX
                if not each.undone and undone and each.trigger_version > max(other.trigger_version for other in undone):
                    ended = [other.ended_at for other in undone]
                    assert all(at is not None and at <= each.requested_at for at in ended)


async def live(
    servers: TestedServers, before: list[Any], undone: list[Any], after: list[Any], *, twice: bool, events: bool
) -> None:
    lives = Lives()
    async with servers.fresh_database() as database, Town(database, rooms=lives.rooms()) as town:
        await lives.begin(town)
        await lives.live(town, before)
        async with backup_of(town) as backup:
            await lives.live(town, undone)
            lives.bank.remembers = False
            async with restored(town, backup, lives.rooms()) as new:
                for _ in range(1 + twice):
                    await adopt(new, with_events=events)
                await lives.live(new, after)
                await new.settle()
                await lives.check(new, all_known=False)
                lives.bank.speaks = True
                for _ in range(4):
                    await new.settle(after=timedelta(hours=1))
                for name in WHO:
                    new.command(
                        "set_preferences", name, enabled=False, mode="up_to_sum", threshold="100", recharge="50"
                    )
                for _ in range(5):
                    await new.settle(after=timedelta(minutes=30))
                await lives.check(new, all_known=True)
                await lives.check_waits(new)
                assert await new.rooms.query("balance", select(tables.unclaimed)) == []
                assert await new.quarantined() == []


LIVES = {"before": STEPS, "undone": STEPS, "after": st.lists(STEP, max_size=5)}


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(**LIVES, twice=st.booleans(), events=st.booleans())
async def test_what_a_processor_took_is_in_the_ledger_or_not_known_yet(
    servers: TestedServers, before: list[Any], undone: list[Any], after: list[Any], twice: bool, events: bool
) -> None:
    await live(servers, before, undone, after, twice=twice, events=events)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(**LIVES, twice=st.booleans(), events=st.booleans())
async def test_what_a_processor_took_is_in_the_ledger_or_not_known_yet_whatever_happens(
    servers: TestedServers, before: list[Any], undone: list[Any], after: list[Any], twice: bool, events: bool
) -> None:
    await live(servers, before, undone, after, twice=twice, events=events)
