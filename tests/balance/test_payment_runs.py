"""Random lives of an account on a real database against a model written from the design alone.

Usage, payments by hand, methods saved and deleted, a clock that jumps; and a processor, played here, that says anything in any
order: settles, declines, fails, is silent, says it twice, contradicts itself, refunds, disputes. Transactions are taken back
in the middle and repeated. After each step both must have the same attempts in the same states, the same wallet, the same
pause; no request is sent with ten counted attempts in its window or while one is in flight, no trigger is forgotten, and
money moved once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.balance import consumer
from services.balance.refuse_fast import RefuseFast
from services.kernel.money import format_nano
from services.runtime import faults
from tests.support.balance_factory import NO_VALKEY, Town
from tests.support.model import COUNTED, IN_FLIGHT, WINDOW, Result
from tests.support.payment_model import PaymentModel
from tests.support.servers import TestedServers

NANO = 10**9
RESULTS = ["settled", "settled", "settled", "declined", "error", "never_seen", "cancelled"]
CRASHES = ["results.effects", "results.outbox", "commands.effects", "charges.advanced", "results.advanced"]

units = st.integers(1, 120)
newest = st.integers(0, 2)  # which attempt, counted from the newest
STEP = st.one_of(
    st.tuples(st.just("charge"), st.integers(1, 90)),
    st.tuples(st.just("charge"), st.integers(1, 90)),
    st.tuples(st.just("result"), newest, st.sampled_from(RESULTS)),
    st.tuples(st.just("result"), st.just(0), st.sampled_from(RESULTS)),
    st.tuples(st.just("result"), st.just(0), st.just("settled")),
    st.tuples(st.just("part"), newest, st.sampled_from(["refunded", "disputed", "dispute_won", "dispute_lost"]), st.integers(0, 1)),
    st.tuples(st.just("pay"), units, st.booleans()),
    st.tuples(st.just("method"), st.booleans()),
    st.tuples(st.just("wish"), st.sampled_from(["up_to_sum", "target", "fixed"])),
    st.tuples(st.just("jump"), st.sampled_from([1, 5, 16, 61, 121, 360, 1445])),
    st.tuples(st.just("jump"), st.sampled_from([16, 61])),
    st.tuples(st.just("burst"), st.integers(3, 11)),
    st.tuples(st.just("crash"), st.sampled_from(CRASHES)),
)  # fmt: skip

_count = itertools.count(1)


@pytest.fixture(scope="module")
async def town(servers: TestedServers) -> AsyncIterator[Town]:
    """Balance alone: what processors say is said here."""
    async with servers.fresh_database() as database:
        rooms = [consumer.room(RefuseFast(lambda: NO_VALKEY))]
        async with Town(database, rooms=rooms) as made:
            yield made
            await made.assert_conserved()


class Life:
    """One account in the town and in the model."""

    def __init__(self, town: Town, name: str, model: PaymentModel) -> None:
        self.town = town
        self.name = name
        self.model = model
        self.taken_back: Counter[str] = Counter()  # transactions, by the step

    @classmethod
    async def begin(cls, town: Town, *, level_2: bool) -> Life:
        name = f"life{next(_count)}"
        created = await town.now()
        await town.account(name, level_2=level_2, created_at=created)
        town.open(name, "120")
        town.method(name, "tok_silent")
        await town.settle()
        model = PaymentModel(now=created, created_at=created, level_2=level_2, account_id=name)
        life = cls(town, name, model)
        model.move_wallet(await town.now(), 120 * NANO)
        await life.step("wish", "up_to_sum")
        return life

    async def step(self, kind: str, *values: Any) -> None:
        await getattr(self, kind)(*values)
        await self.compare(kind)

    async def settle(self) -> datetime:
        """Until nothing moves, without the ticks, which have no part in this."""
        rooms = self.town.rooms
        await rooms.pump()
        while await rooms.processors["balance"].fire_timers():
            await rooms.pump()
        return await self.town.now()

    # ---- facts ----

    async def charge(self, whole: int) -> None:
        self.town.charge(self.name, str(whole))
        self.model.move_wallet(await self.settle(), -whole * NANO)

    async def wish(self, mode: str) -> None:
        wish = {"enabled": True, "mode": mode, "threshold": "100", "recharge": "150" if mode == "target" else "50"}
        self.town.command("set_preferences", self.name, **wish)
        self.model.wish(await self.settle(), wish)

    async def method(self, keep: bool) -> None:
        if keep:
            self.town.method(self.name, "tok_silent")
            self.model.keep_method(await self.settle())
        else:
            self.town.command("delete_method", self.name)
            self.model.forget_method(await self.settle())

    async def pay(self, whole: int, brings_method: bool) -> None:
        self.town.pay(self.name, str(whole), "tok_silent" if brings_method else None)
        self.model.pay(await self.settle(), whole * NANO, brings_method=brings_method)

    async def jump(self, minutes: int) -> None:
        await self.town.move(timedelta(minutes=minutes))
        self.model.advance(await self.settle())

    async def result(self, back: int, kind: str) -> None:
        """Said twice: under the same id, and under another one."""
        if (found := await self._attempt(back)) is None:
            return
        row, attempt = found
        fields: dict[str, Any] = {"kind": kind}
        if kind in ("declined", "error"):
            fields = {"kind": "failed", "failure": kind}
        for result_id in (f"{row.attempt_id}{kind}", f"{row.attempt_id}{kind}", f"{row.attempt_id}{kind}again"):
            self.town.result(row, result_id=result_id, **fields)
        self.model.hear(await self.settle(), attempt, Result(kind, row.amount_nano))

    async def part(self, back: int, kind: str, which: int) -> None:
        """A refund of a third, or something about a dispute of all of it."""
        if (found := await self._attempt(back)) is None:
            return
        row, attempt = found
        nano = row.amount_nano // 2 if kind == "refunded" else row.amount_nano
        part = f"{row.attempt_id}{kind[:4]}{which}"
        more = {} if kind == "refunded" else {"dispute_id": part}
        result_id = part if kind == "refunded" else f"{part}{kind}"
        self.town.result(row, kind, result_id=result_id, amount=format_nano(nano), **more)
        self.model.hear(await self.settle(), attempt, Result(kind, nano, part))

    async def burst(self, times: int) -> None:
        """Falls and recharges, one after the other: how the ten are reached."""
        for _ in range(times):
            await self.step("charge", 70)
            await self.step("result", 0, "settled")

    async def crash(self, step: str) -> None:
        """The next transaction that comes to this step is taken back there, and repeated."""
        taken_back = self.taken_back[step]

        def fail(name: str) -> None:
            if name == f"balance.{step}" and self.taken_back[step] == taken_back:
                self.taken_back[step] += 1
                raise OSError("taken back")

        before, faults.step = faults.step, fail
        try:
            await self.step("charge", 40)
            await self.step("result", 0, "settled")
            await self.step("method", True)
        finally:
            faults.step = before

    async def _attempt(self, back: int) -> tuple[Any, Any] | None:
        rows = await self.town.attempts(self.name)
        if not rows:
            return None
        place = max(0, len(rows) - 1 - back)
        return rows[place], self.model.attempts[place]

    # ---- the judgement ----

    async def compare(self, kind: str) -> None:
        wallet, rows, model = await self.town.wallet(self.name), await self.town.attempts(self.name), self.model
        have = [(row.kind, row.amount_nano, row.state) for row in rows]
        want = [(each.kind, each.amount_nano, each.state) for each in model.attempts]
        assert have == want, f"after {kind}"
        assert (wallet.wallet_nano, wallet.paused_by) == (model.balance_nano, model.paused_by), f"after {kind}"
        assert (wallet.method_token is not None, wallet.decline_streak) == (model.method, model.streak), f"after {kind}"
        self._check_requests(rows)

    def _check_requests(self, rows: list[Any]) -> None:
        """By what was true when each was sent, which is how the newest one finds it now."""
        if not rows or rows[-1].kind != "auto":
            return
        newest, earlier = rows[-1], [row for row in rows[:-1] if row.kind == "auto"]
        if newest.state != "requested":
            return
        counted = [row for row in earlier if row.state in COUNTED and row.requested_at > newest.requested_at - WINDOW]
        assert len(counted) < 10, "a request was sent with ten counted attempts in its window"
        assert not any(row.state in IN_FLIGHT for row in earlier), "a request was sent while another one was in flight"

    def check_sent(self) -> None:
        """Each attempt was charged by one request, under its own key, whatever was repeated."""
        charges = [
            each["attempt_id"]
            for each in self.town.log.data("payments.requests")
            if each["account_id"] == self.name and each["kind"] == "charge"
        ]
        assert len(charges) == len(set(charges)) == len(self.model.attempts)


async def live(town: Town, steps: list[Any], level_2: bool) -> None:
    life = await Life.begin(town, level_2=level_2)
    for kind, *values in steps:
        await life.step(kind, *values)
    life.check_sent()
    await life.step("jump", 1445)
    town.command("set_preferences", life.name, enabled=False)  # it rests while others live
    await town.settle()


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=6, max_size=12), level_2=st.booleans())
async def test_a_random_life_is_what_the_design_says(town: Town, steps: list[Any], level_2: bool) -> None:
    await live(town, steps, level_2)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=10, max_size=40), level_2=st.booleans())
async def test_many_random_lives_are_what_the_design_says(town: Town, steps: list[Any], level_2: bool) -> None:
    await live(town, steps, level_2)


@pytest.mark.parametrize("step", CRASHES)
async def test_a_transaction_taken_back_at_each_step_is_repeated_as_if_nothing_was(town: Town, step: str) -> None:
    """Each of them is passed by a life that is charged, so a name that no transaction has is found here."""
    life = await Life.begin(town, level_2=True)
    await life.step("crash", step)
    assert life.model.attempts
    assert life.taken_back[step] == 1, f"no transaction came to balance.{step}"
    life.check_sent()


async def test_ten_in_a_day_then_capped_until_the_window_opens(town: Town) -> None:
    """The path that random lives seldom take."""
    life = await Life.begin(town, level_2=True)
    await life.step("burst", 11)
    assert len(life.model.attempts) == 10
    await life.step("jump", 1445)
    assert len(life.model.attempts) == 11
    life.check_sent()
