"""A month of a switch: imported, rated, recharged, closed. Act by act, in the order of its cast.

Between two acts it waits for conditions, never for a time.
"""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.topics import USAGE_EVENTS
from contracts.usage import VOICE_LEG, VOIDED
from services.balance import api as balance_api
from services.cli import simulate as simulation
from services.cli.charge import explanation
from services.cli.demo import cast as casting
from services.cli.demo.acting import ACTOR, LOOK_S, Acting, curtain
from services.cli.demo.cast import Sample
from services.cli.demo.figures import Figures, Moved
from services.cli.demo.narrator import Narrator
from services.cli.demo.stage import Stage
from services.cli.importing import import_records, in_words, registry_known
from services.cli.output import Format, console, instant, show_rows
from services.cli.publishing import Publishing
from services.cli.reading import room
from services.invoices import api as invoices_api
from services.kernel.errors import Unavailable
from services.kernel.money import format_nano
from services.kernel.period import Period, instant_text, next_period
from services.usage import api as usage_api
from services.usage.importing import ImportReport, LegEvent
from services.usage.price_files import read_price_file

CONDITION_S_MAX = 60.0


async def play(stage: Stage, servers: Awaitable[None], narrator: Narrator) -> int:
    """Plays it all on servers that are coming up; returns how many cells and checks differ."""
    cast = casting.cast()
    sample = await asyncio.to_thread(casting.sample)
    async with curtain(stage, servers, narrator, [cast["publisher"]]) as (wire, idle):
        return await Month(stage, cast, narrator, wire, idle, sample).run()


@dataclass
class Month(Acting):
    """A month of the switch, imported and closed."""

    sample: Sample

    def __post_init__(self) -> None:
        self.settings = self.stage.settings
        self.end = casting.boundary(datetime.now(UTC), self.sample.newest)
        self.shift_days = (self.end - casting.SAMPLE_BOUNDARY).days
        self.month: Period = casting.month_before(self.end)
        self.figures = Figures(self.settings, self.cast, self.month.name, next_period(self.month).name)
        self.seen: dict[str, str] = {}

    async def run(self) -> int:
        """Every act."""
        for act in (
            self.books, self.registry, self.opening, self.first_import, self.sales_pays, self.field_is_registered,
            self.close, self.version_2, self.same_file_again, self.late_row, self.void, self.simulate,
        ):  # fmt: skip
            await act()
        return await self.judge()

    # ---- acts ------------------------------------------------------------------------------------------------------

    async def books(self) -> None:
        """Book version 1: the price list, the inbound prices without toll-free, Northwind's model."""
        for book in self.cast["books"]:
            await self._import_book(book, is_default=book["default"])
        await self.at_rest()
        self.narrator.say("rooms", "usage, balance, groups, invoices, payments and webhooks read every topic")

    async def registry(self) -> None:
        """Organizations, seller, publisher, groups and accounts; `field` is missing."""
        self.narrator.act(f"Registry: accounts opened {instant(self.month.start)}, created now")
        first, *others = self.cast["organizations"]
        await self.groups([self.organization(first), self.seller(first)])
        await self.groups([self.organization(each) for each in others])
        shared = self.cast["shared_group"]
        await self.groups(
            [
                {
                    "kind": "create_publisher", "role": "operator", "organization_id": first["organization"],
                    "publisher_id": self.cast["publisher"], "sources": (self.sample.profile.source,),
                    "organization_ids": tuple(each["organization"] for each in self.cast["organizations"]),
                },
                {
                    "kind": "create_group", "organization_id": shared["organization"], "group_id": shared["group"],
                    "name": shared["company"], "tax_rate": shared["tax_rate"], "pricing_model": shared["pricing_model"],
                    "billing_information": {"company": shared["company"], "address": shared["address"]},
                },
                {
                    "kind": "approve_sharing", "role": "operator", "organization_id": shared["organization"],
                    "group_id": shared["group"], "yearly_spend": shared["yearly_spend"],
                    "threshold": shared["threshold"], "credit_check_passed": True,
                },
                *[command for account in self._at_first() for command in self.account(account, self.month.start)],
            ]
        )  # fmt: skip

    async def opening(self) -> None:
        """Opening balances, the goodwill of the trial, methods and preferences; burst recharges here, ten times."""
        self.narrator.act("Opening balances and recharge preferences")
        await self.wallets([command for account in self._at_first() for command in self.money(account)])
        await self.wallets([command for account in self._at_first() for command in self.recharging(account)])
        await self.at_rest()

    async def first_import(self) -> None:
        """The switch's file."""
        self.narrator.act(
            f"Import of {self.sample.file.name}, moved by {self.shift_days} days so that T is {instant(self.end)}"
        )
        await self._import(self.sample.file)
        await self.at_rest()
        await self._tell_classes()

    async def sales_pays(self) -> None:
        """Sales saves a method: recharged and restored."""
        later = self.cast["saved_later"]
        self.narrator.act(f"{later['account']} saves a payment method")
        await self.wallets(self.recharging(later))
        await self.at_rest()

    async def field_is_registered(self) -> None:
        """The account that was unknown is registered, and its records run by themselves. Usage is down meanwhile: else it
        could charge them before the opening balance is there, and suspend the account for a moment."""
        late = [account for account in self.cast["accounts"] if account.get("later")]
        self.narrator.act(f"{late[0]['account']} is registered while usage is down; then its records are retried")
        await asyncio.to_thread(self.stage.rooms.stop, ["usage"])
        await self.groups([command for account in late for command in self.account(account, self.month.start)])
        await self.wallets([command for account in late for command in self.money(account)])
        self.stage.rooms.start(["usage"])
        await registry_known(self.settings)
        await self.at_rest()
        await self._tell_retried("unknown_account")

    async def close(self) -> None:
        """Last month is closed by command; support waits, and it is said for what."""
        held = self.cast["held"]["group"]
        self.narrator.act(f"tollbook invoice close --period {self.month.name}")
        async with room("invoices", self.settings) as engine:
            await invoices_api.request_close(engine, self.month.name, ACTOR)
            await self._until_decided(engine, waiting=held)
            await self.at_rest()
            for row in await invoices_api.status(engine, self.month.name):
                if row.state not in ("closed", "nothing to bill"):
                    self.narrator.say(row.state, f"{row.group_id} {row.period}: for {row.waiting_for}")

    async def version_2(self) -> None:
        """Toll-free prices come as version 2, dated from the start of the month; the held records run; the close ends."""
        self.narrator.act("Toll-free prices come as version 2; the records without a price are retried")
        await self._import_book(self.cast["book_later"])
        async with room("invoices", self.settings) as engine:
            await self._until_decided(engine)
        await self.at_rest()
        await self._tell_retried("no_price")
        self.seen["charges"] = str(sum(len(rows) for rows in (await self.figures.charges()).values()))

    async def same_file_again(self) -> None:
        """The same file once more: all duplicates, nothing moves."""
        self.narrator.act("The same file once more")
        before = await self.figures.still()
        report = await self._import(self.sample.file)
        await self.at_rest()
        self.seen["the same file again"] = _stood_still(before, await self.figures.still(), report.published)
        self.narrator.say("duplicates", self.seen["the same file again"])

    async def late_row(self) -> None:
        """One row that comes after the close."""
        late = self.cast["late"]
        self.narrator.act(f"A late row: {late['account']}, ended one hour before T")
        file = self.stage.data / "late.csv"
        _write_late_row(file, late, self._code_of(late["account"]), ZoneInfo(self.sample.profile.zone))
        await self._import(file)
        await self.at_rest()

    async def void(self) -> None:
        """A call that never was is charged, and taken back by a higher revision of its event."""
        wanted = self.cast["voided"]
        account_id = wanted["account"]
        self.narrator.act(f"{account_id} is charged for {wanted['reason']}, which is voided")
        await self.groups(self.account(wanted, self.end))  # the month is closed
        await self.wallets(self.money(wanted))
        await registry_known(self.settings)
        call, void = _call_and_void(wanted, self.sample.profile.source, datetime.now(UTC))
        for event in (call, void):
            async with Publishing(self.settings, self.cast["publisher"]) as publishing:
                await publishing.send(LegEvent(account_id, event))
                await publishing.acknowledged()
            await self.at_rest()
        async with room("usage", self.settings) as engine:
            charges = await usage_api.charges(engine, account_id)
            charged = next(row for row in charges if row["amount_nano"] > 0)
            back = next(row for row in charges if row["amount_nano"] < 0)
            explained = await usage_api.charge(engine, back["charge_id"])
        for line in explanation(explained):
            console.print(line, markup=False)
        async with room("balance", self.settings) as engine:
            wallet = (await balance_api.balance(engine, account_id)).wallet
        amounts = f"{format_nano(charged['amount_nano'])} - {format_nano(-back['amount_nano'])}"
        left = format_nano(sum(row["amount_nano"] for row in charges))
        self.seen[f"the voided call of {account_id}"] = f"{amounts} = {left}, wallet {wallet}"

    async def simulate(self) -> None:
        """What the month would have brought by a draft of prices; nothing is written."""
        file = self.cast["simulated"]["file"]
        self.narrator.act(f"tollbook simulate --book {file} --from {self.month.name}-01")
        draft = await asyncio.to_thread(read_price_file, casting.path(file).read_bytes())
        async with room("usage", self.settings) as engine:
            replay = await usage_api.simulate(engine, draft, self.month.start, datetime.now(UTC))
        (total,) = simulation.told(replay.total, "currency")
        rows = simulation.told(replay.accounts, "account_id", "currency")
        show_rows(rows, {"account_id": "account"} | simulation.SUMS, Format.table, right=simulation.RIGHT)
        self.seen[f"prices of {file}"] = f"{total['now']} now, {total['then']} then"

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def judge(self) -> int:
        """Invoices, one charge explained, the table, and the auditor."""
        await self._show_invoices()
        await self._explain()
        return await self.judged(await self.figures.cells(self.sample, self.narrator, self.seen))

    async def _show_invoices(self) -> None:
        self.narrator.act("Invoices")
        group = self.cast["shared_group"]["group"]
        async with room("invoices", self.settings) as engine:
            rows = await invoices_api.list_invoices(engine, period=self.month.name, state="closed")
            for row in sorted(rows, key=lambda row: row.number or ""):
                console.print((await invoices_api.show(engine, str(row.invoice_id))).text, markup=False)
            console.print(invoices_api.as_text(await invoices_api.estimate(engine, group)), markup=False)

    async def _explain(self) -> None:
        wanted = self.cast["explained"]
        self.narrator.act(f"tollbook charge explain: {wanted['account']}'s call of {wanted['billable_s']} s to India")
        rows = (await self.figures.charges())[wanted["account"]]
        row = next(
            row
            for row in rows
            if row["destination"].startswith(wanted["called_prefix"]) and row["used"] == wanted["billable_s"]
        )
        async with room("usage", self.settings) as engine:
            explained = await usage_api.charge(engine, row["charge_id"])
        for line in explanation(explained):
            console.print(line, markup=False)
        self.seen[f"first call of {wanted['billable_s']} s to India"] = format_nano(row["amount_nano"])

    # ---- steps -----------------------------------------------------------------------------------------------------

    async def _until_decided(self, engine: AsyncEngine, *, waiting: str | None = None) -> None:
        """Until every group of the month is closed or has nothing to bill; but for one that must wait."""
        give_up = time.monotonic() + CONDITION_S_MAX
        while undecided := [
            f"{row.group_id} is {row.state} for {row.waiting_for}"
            for row in await invoices_api.status(engine, self.month.name)
            if row.state not in (("waiting",) if row.group_id == waiting else ("closed", "nothing to bill"))
        ]:
            if time.monotonic() > give_up:
                raise Unavailable(f"the month is not closed after {CONDITION_S_MAX:.0f} s: {'; '.join(undecided)}")
            self.meanwhile()
            await asyncio.sleep(LOOK_S)

    async def _import_book(self, book: Mapping[str, Any], *, is_default: bool = False) -> None:
        prices = await asyncio.to_thread(read_price_file, casting.path(book["file"]).read_bytes())
        async with room("usage", self.settings) as engine:
            version = await usage_api.import_prices(
                engine, book["book"], prices, self.month.start, is_default=is_default
            )
        what = f"{book['book']} version {version}: {len(prices.rows)} prices from {instant(self.month.start)}"
        self.narrator.say("prices", what)
        for refusal in prices.refused:
            self.narrator.say("refused", f"{book['file']} {refusal}")

    async def _import(self, file: Path) -> ImportReport:
        await registry_known(self.settings)
        report = await import_records(self.settings, file, self.sample.profile, shift_days=self.shift_days)
        for line in in_words(report)[: 1 + len(report.refused_by_code)]:
            self.narrator.say("import", line.strip())
        return report

    async def _tell_retried(self, reason: str) -> None:
        async with room("usage", self.settings) as engine:
            retried = await usage_api.parked(engine, states=("replayed",), reason=reason)
        self.narrator.say("retried", f"{len(retried)} records that were {reason}")

    async def _tell_classes(self) -> None:
        async with room("usage", self.settings) as engine:
            counts = await usage_api.class_counts(engine)
        sums: dict[str, int] = {}
        for segments in counts.values():
            for classes in segments.values():
                for name, count in classes.items():
                    sums[name] = sums.get(name, 0) + count
        text = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(sums.items()) if count)
        self.narrator.say("classified", f"{text} on {USAGE_EVENTS.of(self.cast['publisher'])}")
        async with room("balance", self.settings) as engine:
            for each in await balance_api.balances(engine):
                if each.status != "active":
                    self.narrator.say(each.status, f"{each.account_id}: wallet {each.wallet}")

    # ---- commands --------------------------------------------------------------------------------------------------

    def _at_first(self) -> list[Mapping[str, Any]]:
        return [account for account in self.cast["accounts"] if not account.get("later")]

    def _code_of(self, account_id: str) -> str:
        return next(code.code for code in self.sample.profile.accounts if code.account == account_id)


def _call_and_void(wanted: Mapping[str, Any], source: str, now: datetime) -> tuple[dict[str, Any], dict[str, Any]]:
    """One call that ended now, and the event that takes it back."""
    seconds = wanted["seconds"]
    begun, ended = (instant_text(now.replace(microsecond=0) - timedelta(seconds=each)) for each in (seconds, 0))
    event = {"specversion": "1.0", "id": "test-call-1", "source": source}
    data = {
        "account_id": wanted["account"], "direction": "outbound", "caller": None, "called": wanted["called"],
        "started_at": begun, "ended_at": ended, "answered": True, "duration_s": seconds, "billable_s": seconds,
    }  # fmt: skip
    taken_back = {"account_id": wanted["account"], "reason": wanted["reason"]}
    return event | {"type": VOICE_LEG, "data": data}, event | {"type": VOIDED, "revision": 1, "data": taken_back}


def _stood_still(before: Moved, after: Moved, published: int) -> str:
    duplicates = after.duplicates - before.duplicates
    moved = before.charges != after.charges or before.wallets != after.wallets
    all_of_them = "all duplicates" if duplicates == published else f"{duplicates} of {published} duplicates"
    return f"{all_of_them}, {'something' if moved else 'nothing'} moved"


def _write_late_row(file: Path, late: Mapping[str, Any], code: str, zone: ZoneInfo) -> None:
    """One row as the switch would have written it, for a call that ended shortly before the sample's month's end."""
    ended = casting.SAMPLE_BOUNDARY - timedelta(seconds=late["before_t_s"])
    answered = ended - timedelta(seconds=late["seconds"])

    def local(moment: datetime) -> str:
        return moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")

    row = [
        code, code, late["called"], "default", f'"" <{code}>', f"PJSIP/{code}-0000f000", "PJSIP/VIOrig-0000f001", "Dial",
        f"PJSIP/{late['called']}@VIOrig", local(answered), local(answered), local(ended), late["seconds"],
        late["seconds"], "ANSWERED", "DOCUMENTATION", f"{int(answered.timestamp())}.61440", "",
    ]  # fmt: skip
    with file.open("w", newline="") as records:
        csv.writer(records, lineterminator="\n").writerow(row)
