"""After a restore: what an earlier life asked of processors is adopted, asked about, booked once, and asked for by nobody again.

Balance and payments on a real database, of which a copy is put in its place; the log and the processor are those of before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from services.balance import adopting, tables
from services.balance import consumer as balance_room
from services.kernel.errors import Corrupt
from services.kernel.ids import attempt_id
from services.kernel.money import format_nano
from services.kernel.period import instant_text
from services.payments import consumer as payments_room
from services.runtime import faults
from services.runtime.room import Room
from tests.support.balance_factory import Town, minutes
from tests.support.receivables_factory import Debtors
from tests.support.restoring import Bank, adopt, backup_of, restored
from tests.support.servers import Database

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NANO = 10**9


@dataclass
class World:
    """A town whose payments go to a bank that outlives it."""

    town: Town
    bank: Bank = field(default_factory=Bank)

    def rooms(self) -> list[Room]:
        return [balance_room.room(self.town.refuse_fast), payments_room.room({"sandbox": self.bank})]

    @asynccontextmanager
    async def restored(self, backup: Database, **how: Any) -> AsyncIterator[Town]:
        """The life after the restore, with what was undone adopted; its processor has forgotten every key."""
        self.bank.remembers = False
        async with restored(self.town, backup, self.rooms()) as town:
            await adopt(town, **how)
            yield town
            await town.assert_conserved()
            assert all(times == 1 for times in self.bank.taken.values()), "a card was charged twice"


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with a_world(database, Town) as made:
        yield made


@asynccontextmanager
async def a_world(database: Database, kind: type[Town]) -> AsyncIterator[World]:
    made = World(kind(database))
    async with kind(database, rooms=made.rooms()) as town:
        made.town = town
        yield made


async def opened(town: Town, name: str = "frontdesk", balance: str = "120", token: str = "tok_ok") -> None:
    """An account that is recharged up to 150 when it comes to 100, and is not at first."""
    await town.account(name, level_2=True)
    town.open(name, balance)
    town.method(name, token)
    town.prefer(name, "100", "50")
    await town.settle()


async def shown(town: Town, name: str = "frontdesk") -> list[tuple[str, str, str]]:
    """(kind, amount, state) of each attempt, the oldest first."""
    return [(row.kind, format_nano(row.amount_nano), row.state) for row in await town.attempts(name)]


async def feed(town: Town, source: str) -> None:
    """What one input of balance has not read yet, and nothing else."""
    processor = town.rooms.processors["balance"]
    (wanted,) = [each for each in processor.room.inputs if each.name == source]
    await town.rooms.feed(processor, wanted)


# ---- what becomes of a recharge ------------------------------------------------------------------------------------


async def test_without_adoption_a_card_is_charged_again_and_what_was_settled_is_lost(world: World) -> None:
    """Why there is all this."""
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        assert await world.town.balance("frontdesk") == "150"
        world.bank.remembers = False
        async with restored(world.town, backup, world.rooms()) as town:
            await town.settle()
            assert list(world.bank.taken.values()) == [2]


@pytest.mark.parametrize("token", ["tok_ok", "tok_lost"])
async def test_what_settled_is_credited_once_and_not_asked_for_again(world: World, token: str) -> None:
    await opened(world.town, token=token)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            assert await shown(town) == [("auto", "70", "unknown")]
            await town.settle()
            assert await shown(town) == [("auto", "70", "settled")]
            assert await town.balance("frontdesk") == "150"
            assert town.kinds("frontdesk").count("recharge_settled") == 1
            await town.settle(after=2 * DAY)
            assert await town.balance("frontdesk") == "150"
            (attempt,), (before,) = await town.attempts("frontdesk"), await world.town.attempts("frontdesk")
            kept = ("attempt_id", "requested_at", "amount_nano", "trigger_version", "processor", "method_kind")
            assert [getattr(attempt, name) for name in kept] == [getattr(before, name) for name in kept]


async def test_what_was_declined_is_counted_so_and_tried_again_later(world: World) -> None:
    await opened(world.town, token="tok_declined")
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            await town.settle()
            assert await shown(town) == [("auto", "70", "declined")]
            assert (await town.wallet("frontdesk")).decline_streak == 1
            await town.settle(after=HOUR)
            assert await shown(town) == [("auto", "70", "declined")] * 2


async def test_what_no_processor_has_seen_is_given_up_and_asked_for_by_another_number(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.rooms.pump(only=["balance"])  # its request lies in the log
        assert world.bank.asked == []
        async with world.restored(backup) as town:
            await town.settle()
            assert await shown(town) == [("auto", "70", "cancelled")]
            assert [what for what, _ in world.bank.asked] == ["inquire"]
            await town.settle(after=minutes(15))
            assert await shown(town) == [("auto", "70", "cancelled"), ("auto", "70", "settled")]
            first, second = await town.attempts("frontdesk")
            assert list(world.bank.taken) == [second.attempt_id]
            assert second.trigger_version == first.trigger_version + 1


async def test_so_long_as_nobody_says_what_became_of_it_nothing_is_asked_for(world: World) -> None:
    await opened(world.town, token="tok_mute")
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            town.charge("frontdesk", "30")
            await town.settle()
            for _ in range(5):
                await town.settle(after=2 * HOUR)
            assert await shown(town) == [("auto", "70", "unknown")]
            assert {what for what, _ in world.bank.asked} == {"charge", "inquire"}
            world.bank.speaks = True
            await town.settle(after=HOUR)
            assert [state for _, _, state in await shown(town)] == ["settled"]
            assert await town.balance("frontdesk") == "120"


async def test_silence_to_the_end_is_abandoned_a_day_after_it_was_asked_for_and_not_within_the_hour(
    world: World,
) -> None:
    await opened(world.town, token="tok_mute")
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        await world.town.move(2 * DAY)
        async with world.restored(backup) as town:
            await town.settle()
            assert await shown(town) == [("auto", "70", "unknown")]
            await town.settle(after=HOUR)
            assert (await shown(town))[0] == ("auto", "70", "abandoned")


async def test_the_wish_of_the_new_life_waits_for_what_the_old_one_asked_for(world: World) -> None:
    """The charge is read again before the result."""
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            await feed(town, "charges")
            assert await town.balance("frontdesk") == "80"
            assert await shown(town) == [("auto", "70", "unknown")]
            await feed(town, "results")
            assert await town.balance("frontdesk") == "150"
            assert world.bank.asked == [("charge", attempt_id("frontdesk", 1))]
            await town.settle()


async def test_the_result_may_be_read_before_the_charge_that_caused_it(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            await feed(town, "results")
            assert await town.balance("frontdesk") == "190"
            await town.settle()
            assert (await town.balance("frontdesk"), len(await town.attempts("frontdesk"))) == ("150", 1)


async def test_what_is_undone_counts_for_the_ten_of_a_day(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        for _ in range(10):
            world.town.charge("frontdesk", "50")
            await world.town.settle(after=minutes(10))
        assert len(world.bank.taken) == 10
        async with world.restored(backup) as town:
            assert len(await town.attempts("frontdesk")) == 10
            await town.settle()
            town.charge("frontdesk", "60")
            await town.settle()
            assert len(await town.attempts("frontdesk")) == 10
            (capped,) = town.events("frontdesk", "recharge_capped")
            first = (await town.attempts("frontdesk"))[0]
            assert capped["next_allowed_at"] == instant_text(first.requested_at + DAY)
            await town.settle(after=first.requested_at + DAY - await town.now())
            assert len(await town.attempts("frontdesk")) == 11


async def test_no_number_is_given_again_with_another_amount(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            await town.settle()
            town.charge("frontdesk", "65")
            await town.settle()
            assert [amount for _, amount, _ in await shown(town)] == ["70", "65"]
            assert [row.trigger_version for row in await town.attempts("frontdesk")] == [1, 2]


async def test_an_account_that_the_backup_does_not_know_has_its_payments_too(world: World) -> None:
    await opened(world.town, "another")
    async with backup_of(world.town) as backup:
        await opened(world.town, token="tok_lost")
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as town:
            assert (await town.wallet("frontdesk")).organization_id == ""
            await town.settle()
            assert (await town.wallet("frontdesk")).organization_id == "lakeside"
            assert await shown(town) == [("auto", "70", "settled")]
            assert await town.balance("frontdesk") == "150"


async def test_an_attempt_that_the_account_cannot_have_asked_for_is_no_life_of_ours(world: World) -> None:
    with pytest.raises(Corrupt, match="no number after 3"):
        adopting.numbers_of("frontdesk", 3, {attempt_id("backdesk", 4)})


# ---- as often as wanted --------------------------------------------------------------------------------------------


async def everything(town: Town) -> list[Any]:
    """What adoption may write."""
    found = []
    for table in (tables.attempt, tables.refund, tables.unclaimed, tables.wallet):
        found += await town.rooms.query("balance", select(table).order_by(*table.primary_key.columns))
    return found


async def test_adopted_twice_is_adopted_once_and_told_of_both_times(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        world.town.pay("frontdesk", "25")
        await world.town.settle()
        async with world.restored(backup) as town:
            before = await everything(town)
            again = await adopt(town)
            assert await everything(town) == before
            assert sorted((each.kind, each.amount, each.state) for each in again.attempts) == [
                ("auto", "70", "unknown"), ("manual", "25", "unknown"),
            ]  # fmt: skip
            await town.settle()
            after = await everything(town)
            assert [each.state for each in (await adopt(town)).attempts] == ["settled", "settled"]
            assert await everything(town) == after
            assert await town.balance("frontdesk") == await world.town.balance("frontdesk")


async def test_looking_changes_nothing(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with restored(world.town, backup, world.rooms()) as town:
            before = await everything(town)
            seen = await adopt(town, write=False)
            assert [(each.kind, each.amount) for each in seen.attempts] == [("auto", "70")]
            assert await everything(town) == before


async def test_who_dies_in_the_middle_goes_on_the_next_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"desk{number}" for number in range(3)]
    for name in names:
        await opened(world.town, name)
    async with backup_of(world.town) as backup:
        for name in names:
            world.town.charge(name, "40")
        await world.town.settle()
        monkeypatch.setattr(adopting, "ACCOUNTS_AT_ONCE", 1)
        world.bank.remembers = False
        async with restored(world.town, backup, world.rooms()) as town:
            passed = 0

            def second(step: str) -> None:
                nonlocal passed
                passed += step == "balance.restore.outbox"
                if passed == 2:
                    raise ConnectionError("killed")

            monkeypatch.setattr(faults, "step", second)
            with pytest.raises(ConnectionError):
                await adopt(town)
            assert [len(await town.attempts(name)) for name in names] == [1, 0, 0]
            monkeypatch.undo()
            assert len((await adopt(town)).attempts) == 3
            await town.settle()
            assert [await town.balance(name) for name in names] == ["150"] * 3
        assert sorted(world.bank.taken.values()) == [1, 1, 1]


# ---- what people ask for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_events", [True, False])
@pytest.mark.parametrize("first", ["commands", "results"])
async def test_a_payment_by_hand_is_not_asked_for_again_when_its_command_is_read_again(
    world: World, first: str, with_events: bool
) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        commands = [world.town.pay("frontdesk", amount) for amount in ("25", "25", "30")]
        await world.town.settle()
        async with world.restored(backup, with_events=with_events) as town:
            await feed(town, first)
            await town.settle()
            assert await shown(town) == [
                ("manual", "25", "settled"),
                ("manual", "25", "settled"),
                ("manual", "30", "settled"),
            ]
            assert await town.balance("frontdesk") == "200"
            requested = town.events("frontdesk", "payment_requested")
            assert [each["command_id"] for each in requested] == commands
            assert [each["attempt_id"] for each in requested] == [str(attempt_id("frontdesk", n)) for n in (1, 2, 3)]
            assert await town.rooms.query("balance", select(tables.unclaimed)) == []
            town.pay("frontdesk", "25")
            await town.settle()
            assert (await shown(town))[3:] == [("manual", "25", "settled")]


async def test_a_payment_that_was_never_sent_is_asked_for_by_its_command(world: World) -> None:
    """Its request was lost with the database."""
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.pay("frontdesk", "25")
        await feed(world.town, "commands")
        async with world.restored(backup) as town:
            assert await town.attempts("frontdesk") == []
            await town.settle()
            assert await shown(town) == [("manual", "25", "settled")]


@pytest.mark.parametrize("first", ["commands", "results"])
async def test_the_method_of_a_payment_that_settled_is_saved(world: World, first: str) -> None:
    await world.town.account("frontdesk", level_2=True)
    await world.town.settle()
    async with backup_of(world.town) as backup:
        world.town.pay("frontdesk", "25", "tok_ok")
        await world.town.settle()
        async with world.restored(backup) as town:
            await feed(town, first)
            await town.settle()
            assert (await town.wallet("frontdesk")).method_token == "tok_ok"
            assert town.kinds("frontdesk").count("method_saved") == 1


async def test_what_is_undone_counts_for_the_limit_of_its_day_and_its_own_command_passes(world: World) -> None:
    await world.town.account("frontdesk")
    await world.town.settle()
    async with backup_of(world.town) as backup:
        world.town.pay("frontdesk", "100", "tok_ok")
        await world.town.settle()
        async with world.restored(backup) as town:
            town.pay("frontdesk", "10", "tok_ok")
            await town.settle()
            assert await shown(town) == [("manual", "100", "settled")]
            assert [each["reason"] for each in town.events("frontdesk", "command_refused")] == ["top_up_limit"]


@pytest.mark.parametrize("first", ["commands", "results", "timers"])
@pytest.mark.parametrize("amount", [None, "30"])
async def test_an_undone_refund_is_given_once(world: World, first: str, amount: str | None) -> None:
    await opened(world.town)
    world.town.pay("frontdesk", "100")
    await world.town.settle()
    (attempt,) = await world.town.attempts("frontdesk")
    async with backup_of(world.town) as backup:
        about = {"attempt_id": str(attempt.attempt_id), "role": "finance", "amount": amount}
        world.town.command("refund_payment", "frontdesk", note="sorry", **about)
        world.town.command("refund_payment", "frontdesk", attempt_id=str(attempt.attempt_id), role="finance")
        await world.town.settle()
        left = await world.town.balance("frontdesk")
        async with world.restored(backup) as town:
            adopted = await adopt(town)
            assert sorted((each.amount, each.state) for each in adopted.refunds) == (
                [("100", "requested")] if amount is None else [("30", "requested"), ("70", "requested")]
            )
            if first == "timers":
                await town.rooms.processors["balance"].fire_timers()
            else:
                await feed(town, first)
            await town.settle()
            refunds = await town.rooms.query("balance", select(tables.refund).order_by(tables.refund.c.amount_nano))
            assert [(row.state, row.actor) for row in refunds] == [("refunded", "ann")] * len(adopted.refunds)
            assert await town.balance("frontdesk") == left == "120"
            assert len(world.bank.given) == len(adopted.refunds)


async def test_an_undone_inquiry_and_cancel_are_asked_again_with_numbers_of_their_own(world: World) -> None:
    await opened(world.town, token="tok_dead")
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        (attempt,) = await world.town.attempts("frontdesk")
        world.bank.is_open = False
        await world.town.settle(after=minutes(16))
        await world.town.settle(after=minutes(2))
        world.town.command("cancel_payment", "frontdesk", attempt_id=str(attempt.attempt_id))
        await world.town.rooms.pump(only=["balance"])
        numbers = [each["number"] for each in world.town.log.data("payments.requests") if each["kind"] == "inquire"]
        async with world.restored(backup) as town:
            (adopted,) = await town.attempts("frontdesk")
            assert (adopted.state, adopted.inquiries) == ("unknown", max(numbers))
            await town.settle()
            again = [each["number"] for each in town.log.data("payments.requests") if each["kind"] == "inquire"]
            assert again == [max(numbers) + 1]
            assert (await town.attempts("frontdesk"))[0].state == "unknown"
            world.bank.is_open = True
            await town.settle(after=HOUR)
            assert (await town.attempts("frontdesk"))[0].state == "cancelled"


async def test_a_scheduled_payment_is_made_once_for_its_day(world: World) -> None:
    await opened(world.town)
    world.town.command("set_schedule", "frontdesk", amount="50", currency="USD", day="last")
    await world.town.settle()
    due_at = (await world.town.wallet("frontdesk")).schedule_at
    async with backup_of(world.town) as backup:
        await world.town.settle(after=due_at + minutes(1) - await world.town.now())
        assert await shown(world.town) == [("scheduled", "50", "settled")]
        following = (await world.town.wallet("frontdesk")).schedule_at
        async with world.restored(backup) as town:
            assert (await town.wallet("frontdesk")).schedule_at == following
            await town.settle()
            assert await shown(town) == [("scheduled", "50", "settled")]
            await town.settle(after=following + minutes(1) - await town.now())
            assert len(await town.attempts("frontdesk")) == 2


@pytest.mark.parametrize("first", ["group_commands", "results"])
@pytest.mark.parametrize("with_events", [True, False])
async def test_a_card_payment_of_a_group_pays_its_invoices_once(
    database: Database, first: str, with_events: bool
) -> None:
    async with a_world(database, Debtors) as world:
        town = world.town
        assert isinstance(town, Debtors)
        await town.member("east")
        await town.member("west")
        await town.settle()
        await town.close("TB-1", {"east": "60", "west": "36"})
        town.method("east", "tok_ok")
        await town.settle()
        async with backup_of(town) as backup:
            town.order("pay_by_card", account_id="east", currency="USD")
            await town.settle()
            assert (await town.invoice("TB-1"))["state"] == "paid"
            async with world.restored(backup, with_events=with_events) as new:
                assert isinstance(new, Debtors)
                await feed(new, first)
                await new.settle()
                assert await shown(new, "east") == [("group", "96", "settled")]
                assert (await new.invoice("TB-1"))["open"] == "0"
                assert (await new.balance("east"), await new.owes("west")) == ("0", "0")
                assert sum(world.bank.taken.values()) == 1


# ---- what the backup knows as under way ----------------------------------------------------------------------------


async def test_a_charge_that_payments_had_not_tried_by_the_backup_is_not_promised_to_be_none(world: World) -> None:
    """The earlier life has charged it since, and the room does not know."""
    await opened(world.town, token="tok_lost")
    world.town.charge("frontdesk", "40")
    await world.town.rooms.pump(only=["balance"])
    async with backup_of(world.town) as unread:
        await world.town.rooms.feed(
            world.town.rooms.processors["payments"], world.town.rooms.processors["payments"].room.inputs[0]
        )
        async with backup_of(world.town) as noted:
            await world.town.rooms.pump()
            assert sum(world.bank.taken.values()) == 1
            await world.town.move(HOUR)
            for backup in (unread, noted):
                async with world.restored(backup) as town:
                    await town.settle()
                    await town.settle(after=minutes(2))
                    assert await shown(town) == [("auto", "70", "settled")]
                    assert not {"recharge_cancelled", "contradiction"} & set(town.kinds("frontdesk"))


async def test_what_the_backup_knew_as_unknown_is_not_given_up_before_its_result_was_read(world: World) -> None:
    await opened(world.town, token="tok_mute")
    world.town.charge("frontdesk", "40")
    await world.town.settle()
    await world.town.settle(after=minutes(16))
    async with backup_of(world.town) as backup:
        world.bank.speaks = True
        await world.town.settle(after=HOUR)
        assert await shown(world.town) == [("auto", "70", "settled")]
        await world.town.move(2 * DAY)
        async with world.restored(backup) as town:
            await town.rooms.processors["balance"].fire_timers()
            assert await shown(town) == [("auto", "70", "unknown")]
            await town.settle()
            assert await shown(town) == [("auto", "70", "settled")]


async def test_a_second_restore_of_the_same_backup_adopts_what_both_lives_asked_for(world: World) -> None:
    await opened(world.town)
    async with backup_of(world.town) as backup:
        world.town.charge("frontdesk", "40")
        await world.town.settle()
        async with world.restored(backup) as second:
            await second.settle()
            second.charge("frontdesk", "65")
            await second.settle()
            assert [amount for _, amount, _ in await shown(second)] == ["70", "65"]
            requests = [*world.town.log.data("payments.requests"), *second.log.data("payments.requests")]
            async with restored(second, backup, world.rooms()) as third:
                await adopt(third, more=requests)
                assert [amount for _, amount, _ in await shown(third)] == ["70", "65"]
                await third.settle()
                assert await third.balance("frontdesk") == "150"
        assert sorted(world.bank.taken.values()) == [1, 1]
