"""What people do with money while the chain runs: credits and codes, payments by hand, refunds, a schedule, calls in progress,
transfers, invoices paid by card and written off, and webhooks of all that; and what the reference model says of it at the end.

    paths = MoneyPaths(chain)
    await paths.open()                 # codes, and a result that nobody has asked for yet
    await paths.wave()                 # a little of everything, again and again
    await paths.calls("dialer", 10)    # calls, each authorised, renewed, ended, charged
    await paths.transfer(False)        # a bank's money for invoices and a wallet, when every cut is closed
    await paths.settle_debts()         # an invoice is paid by card, another written off
    assert await paths.judged(charges, now) == []

Everything is sent twice or asked for again, as programs do that saw no answer. Whatever depends on the order of commits is
left open here, and its sums are not.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from contracts.topics import BALANCE_EVENTS, PAYMENTS_REQUESTS
from services.balance import vouchers
from services.balance.api import Holds
from services.balance.calls import Authorize, Grant, Release, Renew, Request, Settle
from services.balance.holding import Rate
from services.balance.spending import CallAsked
from services.kernel.errors import Unavailable
from services.kernel.ids import attempt_id, content_digest
from services.runtime import parking
from services.runtime.database import open_engine, transaction
from services.runtime.known_topics import KnownTopics
from services.runtime.tables import runtime_tables
from services.webhooks import api as webhooks
from tests.support import model
from tests.support.model import Charge, nano
from tests.support.people import TOKENS, Person
from tests.support.processes import until
from tests.support.receiver import LOOPBACK, OK, Received, Receiver, status
from tests.support.usage_factory import Expectation, UsageInput

if TYPE_CHECKING:
    from tests.support.chain import Chain

CALLED = "+12485550123"
A_MINUTE_NANO = 14_000_000  # of a call there, by the example prices: 0.0140, in whole minutes
RATES = (Rate(A_MINUTE_NANO, 60, 0, 60, 60),)
CONTENT = content_digest(CALLED.encode())
SLICE_S = 300
CHARGED_S_MAX = 240.0  # the machine may be busy
LOST_ANSWER_S = 0.02  # who waits no longer than this loses most answers, and asks again
BY_CODE = tuple(f"reader{number}" for number in range(5))
REDEMPTIONS = 3  # of a code that all of them ask for
SPENT_SHARED = ("east", "west")  # of one group of the organization
GIVEN_BACK_BY_US_ALONE = (
    "tok_ok",
    "tok_twice",
    "tok_late_5s",
)  # no refund or dispute of the processor's own meets ours
GIVEN_BACK = ("payer", "newcomer", "guest")  # and whoever comes on the way: a refund ends automatic recharges
EARLY = "early"
PAYS_IN_PART, PAYS_TOO_MUCH = "northwind", "alone"  # payer groups that are invoiced
TOO_MUCH = "100000.00"  # more than anybody uses
TOPPED_UP = "poor"  # by transfers
PAYS_BY_CARD, OWES_FOR_GOOD = DEBTORS = "walker", "debtor"  # accounts and payer groups that are invoiced
OVERBILLED, SORRY = CREDITED = "overbilled", "sorry"  # one is invoiced, the other pays as it goes
MOVER, MOVED_TO = "mover", "movers"  # pays as it goes: nothing of it is owed in the group that it leaves
REPRICED = "repriced"  # by a book of its own, which is dated back
OWN_PRICE = {"product": "voice.outbound", "prefix": CALLED[1:5], "price": "0.0210", "minimum": 60, "increment": 60}
LONG_CALL_S = 86_400  # in the month that is closed, so that something is due
WITH_WEBHOOKS = ("payer", "lucky", "ringer", "newcomer")  # of one organization
LOST_WEBHOOKS = 5  # are not taken when they come for the first time; each holds up what comes after it for seconds

CORRECTED = (MOVER, REPRICED)
PEOPLE = (
    Person("gifted", "lakeside", "payg", None, "1.00", limit=None),
    Person(
        "lucky", "lakeside", "payg", None, "1.00", {"threshold": "0.50", "recharge": "10"}, "tok_ok", True, limit=None
    ),
    *(Person(each, "lakeside", "payg", None, "0.10", limit=None) for each in BY_CODE),
    Person("payer", "lakeside", "payg", None, "5.00", None, "tok_ok", True),
    Person("newcomer", "lakeside", "payg", None, "5.00", None, "tok_twice"),
    Person("guest", "lakeside", "payg", None, "5.00", None, None, True),
    Person("monthly", "lakeside", "payg", None, "5.00", None, "tok_ok", True),
    Person("dialer", "lakeside", "payg", None, "0.50", limit=None),
    Person(
        "ringer", "lakeside", "payg", None, "0.30", {"threshold": "0.20", "recharge": "1"}, "tok_twice", True,
        limit="1000",
    ),
    Person("evening", "lakeside", "payg", None, "0.50", limit=None),
    Person(PAYS_BY_CARD, "lakeside", "invoiced", None, token="tok_twice", limit=None),
    Person(OWES_FOR_GOOD, "lakeside", "invoiced", None, limit=None),
    Person(OVERBILLED, "lakeside", "invoiced", None, limit=None),
    Person(SORRY, "lakeside", "payg", None, "50.00", limit=None),
    Person(MOVER, "lakeside", "payg", None, "50.00", limit=None),
    Person(REPRICED, "lakeside", "payg", None, "50.00", limit=None),
)  # fmt: skip
CALLERS = ("dialer", "ringer", "evening")  # nothing else is charged to them than calls that were granted
LATE_JOINER = Person(
    EARLY, "lakeside", "payg", None, "12.00", {"threshold": "12", "recharge": "10"}, "tok_twice", True
)  # is recharged at once, by what its first result says already


@dataclass
class Promise:
    """What a call holds by the last answer to it."""

    account_id: str
    nano: int
    until: datetime
    is_charged: bool = False


@dataclass
class Code:
    """A voucher code, and who asked for it: by command, for whose benefit."""

    code: str
    amount: str
    shared: bool
    most: int
    asked: dict[str, str] = field(default_factory=dict)


class MoneyPaths:
    """One life of it; the seed chooses amounts and order."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.random = random.Random(f"money {chain.seed}")
        self.grants: dict[str, tuple[str, str, bool]] = {}  # by command: account, amount, shared
        self.codes: list[Code] = []
        self.seen: dict[str, datetime] = {}  # credits, and when we saw each for the first time
        self.promises: dict[str, Promise] = {}
        self.refused: set[str] = set()  # calls; what was asked first and answered last may have been granted
        self.transfers: dict[str, tuple[str, int]] = {}  # by reference: account, nanos
        self.group_payments: dict[str, tuple[str, int]] = {}  # by reference: group, nanos
        self.written_off: list[str] = []
        self.receiver = Receiver(self._take)
        self.webhook_secret = ""
        self.webhooks_lost: set[str] = set()
        self._weather = random.Random(f"webhooks {chain.seed}")  # of its own: what comes when is nobody's choice
        self.gateways: list[Holds] = []
        self.happened: Counter[str] = Counter()
        self._stack = AsyncExitStack()
        self._count = 0
        # The first payment of an account that joins later, and what is said of it before: the charge itself may be given up,
        # when the clock is moved before anybody has carried it out.
        self.told_early = EARLY, str(attempt_id(EARLY, 1)), model.Result("settled", nano("10.00"))

    # ---- what goes in ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Codes, a schedule, two processes that ask for calls, a receiver of webhooks, calls of the month that ends; and a result
        of a payment that is yet to be asked for."""
        await self._listen()
        await self.chain.make_group(MOVED_TO, "lakeside", tax_rate="0.10")
        await self.chain.publish(
            self._leg(each, self._name(), LONG_CALL_S, ended_at=self.chain.factory_boundary - timedelta(hours=1))
            for each in (*DEBTORS, *CREDITED)
        )
        topics = await KnownTopics.asked(self.chain.settings, (PAYMENTS_REQUESTS, BALANCE_EVENTS))
        for _ in range(2):
            engine = open_engine(self.chain.database.room("balance"), application="test.gateway", pool_size=2)
            self._stack.push_async_callback(engine.dispose)
            self.gateways.append(Holds(engine, topics))
        async with self.chain.engine("balance") as engine:
            for amount, shared, most in (("0.07", False, REDEMPTIONS), ("0.11", True, 10)):
                (made,) = await vouchers.create_vouchers(
                    engine, actor="ops", role="operator", amount=amount, redemptions=most, shared=shared
                )
                self.codes.append(Code(made.code, amount, shared, most))
        await self._schedule()
        await self._spend_credit()
        await self._tell_too_early()
        await self.chain.join(LATE_JOINER, self.chain.newly_opened_at)

    async def close(self) -> None:
        """Answer who still asks, and let go of the database."""
        for gateway in self.gateways:
            await gateway.close()
        await self._stack.aclose()

    async def wave(self, *, expiring: bool) -> None:
        """A little of everything. What expires is granted while the clock is yet to be moved."""
        await self._look()
        await self._grant(expiring=expiring)
        await self._redeem()
        await self._pay()
        await self.refund()
        accounts = ("gifted", "lucky", *BY_CODE, *SPENT_SHARED)
        await self.chain.publish(
            self._leg(account_id, self._name(), self.random.choice((1, 61, 150)))
            for account_id in self.random.sample(accounts, 4)
        )
        boundary = self.chain.factory_boundary
        await self.chain.publish(
            self._leg(each, self._name(), 61, ended_at=boundary - timedelta(minutes=self.random.randint(1, 120)))
            for each in CORRECTED * 4
        )

    async def move(self) -> None:
        """It becomes known that another payer group has paid for an account since an hour that was charged already."""
        await self.chain.move(MOVER, MOVED_TO, await self._charged_since(MOVER))

    async def rerate(self) -> None:
        """An account gets other prices since an hour that was charged already, and what was charged is charged anew by them."""
        await self.chain.reprice(REPRICED, OWN_PRICE, await self._charged_since(REPRICED))

    async def _charged_since(self, account_id: str) -> datetime:
        """An hour of the month that ends, once something of it is charged."""
        since = self.chain.factory_boundary - timedelta(hours=1)

        async def is_charged() -> bool:
            charges = "select 1 from usage.charge where account_id = $1 and event_time >= $2 limit 1"
            return bool(await self.chain.rows(charges, account_id, since))

        await until(is_charged, f"something of {account_id} is charged", CHARGED_S_MAX)
        return since

    async def calls(self, account_id: str, count: int, *, hang_up: bool = True) -> None:
        """So many calls of an account at once, by any of the gateways."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._call(account_id, f"{account_id}-{self._name()}", hang_up))

    async def _call(self, account_id: str, leg: str, hang_up: bool) -> None:
        """A call as a switch has it: granted, perhaps renewed, ended by a word or without one. Its charge follows, but for
        one that nobody answered; it is never longer than what was granted."""
        asked = CallAsked(account_id, None, A_MINUTE_NANO, "USD", RATES)
        granted = await self._ask(Authorize(asked, leg, self.random.randint(30, SLICE_S), CONTENT))
        if not isinstance(granted, Grant):
            self.happened["call refused"] += 1
            self.refused.add(leg)
            return
        self.happened["call granted"] += 1
        self.promises[leg] = promise = Promise(account_id, granted.held_nano, granted.expires_at)
        await asyncio.sleep(self.random.uniform(0, 1.0))
        if self.random.random() < 0.5:
            renewed = await self._ask(Renew(account_id, leg, 1, self.random.randint(30, SLICE_S)))
            if isinstance(renewed, Grant):
                self.happened["call renewed"] += 1
                granted = renewed
                promise.nano, promise.until = renewed.held_nano, renewed.expires_at
        if not hang_up:
            return
        end = self.random.choice(("release", "settle", "settle", "silence"))
        self.happened[end] += 1
        if end == "release":
            promise.nano = (await self._ask(Release(account_id, leg))).held_nano
            return
        seconds = self.random.randint(1, granted.total_s)
        usage = self._leg(account_id, leg, seconds)
        if end == "settle" and self.random.random() < 0.5:
            ended = await self._ask(Settle(account_id, leg, seconds))
            promise.nano, promise.until = ended.held_nano, ended.expires_at
            await self.chain.publish([usage])
        else:
            await self.chain.publish([usage])
            if end == "settle":  # before or after its charge
                await self._ask(Settle(account_id, leg, seconds))
        promise.is_charged = True

    async def _ask(self, request: Request) -> Any:
        """An answer, however often it takes: many are lost on their way, some because PostgreSQL was killed."""
        while True:
            wait_s = LOST_ANSWER_S if self.random.random() < 0.2 else 5.0
            try:
                async with asyncio.timeout(wait_s):
                    return await self.random.choice(self.gateways).ask(request)
            except (TimeoutError, Unavailable):
                self.happened["answer lost"] += 1
                await asyncio.sleep(0.05)

    async def _spend_credit(self) -> None:
        """Credits that are there before any use, one that ends and one that does not, and a use that one of them pays for
        whenever it is charged: in the storm balance may be down for as long as everything else is granted and used."""
        await self._grant_to("gifted", "100", shared=False, expires_at=_tomorrow())  # more than is ever spent of it
        await self._grant_to("gifted", "0.3", shared=False, expires_at=None)

        async def are_there() -> bool:
            self.chain.check_alive()
            return len(await self._credits()) == len(self.grants)

        await until(are_there, "credits are there", CHARGED_S_MAX)
        await self.chain.publish([self._leg("gifted", self._name(), 61)])

    async def _grant(self, *, expiring: bool) -> None:
        account_id, shared = self.random.choice(
            (("gifted", False), ("lucky", False), ("east", False), ("east", True), ("west", True))
        )
        amount = self.random.choice(("0.02", "0.05", "0.3"))
        expires_at = _tomorrow() if expiring and self.random.random() < 0.5 else None
        await self._grant_to(account_id, amount, shared=shared, expires_at=expires_at)
        await self.chain.wallet_command(
            "grant_credit", "gifted", refused="needs_organization_group", amount="1", currency="USD", shared=True
        )

    async def _grant_to(self, account_id: str, amount: str, *, shared: bool, expires_at: str | None) -> None:
        more: dict[str, Any] = {"amount": amount, "currency": "USD", "shared": shared}
        may_be_late = []
        if expires_at is not None:
            more["expires_at"] = expires_at
            may_be_late = ["invalid"]  # where the clock was moved before the command came to its turn
        command = await self.chain.wallet_command("grant_credit", account_id, or_refused=may_be_late, **more)
        self.grants[command.command_id] = account_id, amount, shared

    async def _redeem(self) -> None:
        alone, together = self.codes
        for code, account_id, beneficiary in (
            (alone, each := self.random.choice(BY_CODE), each),
            (together, self.random.choice(SPENT_SHARED), "northwind"),
        ):
            command = await self.chain.wallet_command(
                "redeem_code", account_id, or_refused=["already_redeemed", "used_up"], code=code.code
            )
            code.asked[command.command_id] = beneficiary
        await self.chain.wallet_command("redeem_code", "gifted", refused="unknown_code", code="00000-00000-00000-00000")

    async def _pay(self) -> None:
        """By the saved method, by one that comes with the payment, more than is allowed, less than is possible."""
        amount = f"{self.random.randint(1000, 3000) / 100:.2f}"
        token = self.random.choice(TOKENS)
        await self.chain.wallet_command("pay", "payer", amount=amount)
        await self.chain.wallet_command("pay", "newcomer", or_refused=["top_up_limit"], amount=amount)
        await self.chain.wallet_command("pay", "guest", amount=amount, processor="sandbox", token=token)
        await self.chain.wallet_command("pay", "newcomer", refused="top_up_limit", amount="5000")
        await self.chain.wallet_command("pay", "payer", refused="invalid", amount="9.99")
        await self.chain.wallet_command("pay", "gifted", refused="no_method", amount="10")

    async def refund(self) -> None:
        """Of payments that have settled, as far as the processor said, and that it will not give back by itself."""
        await self._refund(await self._given_back_by_us_alone())

    async def refund_at_last(self) -> None:
        """Of such payments whose results have come to their wallets; of one more, should the storm have let none through. And one
        is declined, for the same reason."""
        settled = "and attempt_id in (select attempt_id from balance.attempt where state = 'settled')"
        await self.chain.wallet_command("pay", "guest", amount="10.00", processor="sandbox", token="tok_declined")
        await self.chain.wallet_command("pay", "payer", amount="10.00")

        async def is_settled() -> bool:
            return bool(await self._given_back_by_us_alone(settled))

        await until(is_settled, "a payment that can be given back", 180.0)
        await self._refund(await self._given_back_by_us_alone(settled))

    async def _given_back_by_us_alone(self, which: str = "") -> Sequence[Any]:
        return await self.chain.rows(
            "select attempt_id, account_id from payments.attempt join payments.answer using (attempt_id)"
            " where token = any($1) and answer.kind = 'settled' and told_at is not null"
            f" and (account_id = any($2) or account_id like 'wave%') {which}"
            " order by received_at desc, attempt_id limit 40",
            list(GIVEN_BACK_BY_US_ALONE),
            list(GIVEN_BACK),
        )

    async def _refund(self, rows: Sequence[Any]) -> None:
        for row, amount in zip(
            self.random.sample(rows, min(3, len(rows))),
            ("1.00", *self.random.sample(("3.50", "9.00", "100000", None), 2)),
            strict=False,
        ):
            await self.chain.wallet_command(
                "refund_payment", row["account_id"], or_refused=["refund_too_large", "nothing_left"],
                attempt_id=str(row["attempt_id"]), **({"amount": amount} if amount else {}),
            )  # fmt: skip
            self.happened["refund asked for"] += 1

    async def _schedule(self) -> None:
        """A payment of each month, of tomorrow, where such a day can be named: the clock is moved over its midnight."""
        tomorrow = (await self.chain.clock() + timedelta(days=1)).date()
        day = "last" if (tomorrow + timedelta(days=1)).day == 1 else tomorrow.day
        if day == "last" or day <= 28:
            await self.chain.wallet_command("set_schedule", "monthly", amount="11.00", day=day)
        await self.chain.wallet_command("set_schedule", "monthly", refused="invalid", amount="9.99", day=1)

    async def transfer(self, too_much: bool) -> None:
        """A bank's money arrives for the invoices of a payer group and for a wallet. Each transfer is recorded by two people who
        do not know of each other: one reference, two commands, each sent twice. The last close is done, or on its way to
        balance: what is kept of a payment pays it, and would pay the next one."""
        cents = self.random.randint(1, 50)
        group_id = PAYS_TOO_MUCH if too_much else PAYS_IN_PART
        amount = TOO_MUCH if too_much else f"{cents / 100:.2f}"
        for_group, for_wallet = f"bank-{self._name()}", f"bank-{self._name()}"
        self.group_payments[for_group] = group_id, nano(amount)
        self.transfers[for_wallet] = TOPPED_UP, nano(f"{cents}.00")
        for number in range(2):
            command = {
                "kind": "record_payment", "command_id": f"{for_group}-{number}", "actor": "fin", "role": "finance",
                "group_id": group_id, "amount": amount, "currency": "USD", "reference": for_group,
            }  # fmt: skip
            for _ in range(2):
                await self.chain.send("balance.group_commands", group_id.encode(), json.dumps(command).encode())
            await self.chain.wallet_command(
                "record_transfer", TOPPED_UP, role="finance", amount=f"{cents}.00", currency="USD", reference=for_wallet
            )

    async def settle_debts(self) -> None:
        """An invoice is paid by card, twice at once, and another one is written off; everything is sent twice. Who proposed it may
        not approve it, and what was written off is so."""
        due = {
            row["group_id"]: str(row["invoice_id"])
            for row in await self.chain.rows(
                "select group_id, invoice_id from invoices.invoice where state = 'closed' and group_id = any($1)",
                list(DEBTORS),
            )
        }
        self.written_off.append(OWES_FOR_GOOD)
        by_card = {"kind": "pay_by_card", "account_id": PAYS_BY_CARD, "currency": "USD"}
        for number, (group_id, actor, more) in enumerate(
            [
                (PAYS_BY_CARD, "ann", by_card),
                (PAYS_BY_CARD, "ben", by_card),
                (OWES_FOR_GOOD, "fin", {"kind": "propose_write_off", "note": "gone"}),
                (OWES_FOR_GOOD, "fin", {"kind": "approve_write_off"}),
                (OWES_FOR_GOOD, "cfo", {"kind": "approve_write_off"}),
                (OWES_FOR_GOOD, "fin", {"kind": "approve_write_off"}),
            ]
        ):
            command = {
                "command_id": f"debt-{number}", "actor": actor, "role": "finance", "group_id": group_id,
                "invoice": due[group_id], **more,
            }  # fmt: skip
            for _ in range(2):
                await self.chain.send("balance.group_commands", group_id.encode(), json.dumps(command).encode())

    async def debts_settled(self) -> bool:
        """Whether balance has nothing open of what was to be paid by card or written off."""
        return not await self.chain.rows(
            "select 1 from invoices.invoice left join balance.receivable using (invoice_id)"
            " where invoice.state = 'closed' and invoice.group_id = any($1)"
            " and receivable.paid_nano + receivable.written_off_nano is distinct from invoice.due_nano",
            list(DEBTORS),
        )

    async def _listen(self) -> None:
        """Some accounts of an organization have their events posted to a receiver."""
        await self._stack.enter_async_context(self.receiver)
        async with self.chain.engine("webhooks") as engine:
            made = await webhooks.create(
                engine, "lakeside", self.receiver.url, "ops", LOOPBACK, account_ids=WITH_WEBHOOKS
            )
        self.webhook_secret = made.secret

    def _take(self, received: Received) -> bytes | None:
        """Check what comes as any receiver does. Some of it is refused when it comes for the first time, or gets no answer."""
        received.verified(self.webhook_secret)
        is_new = received.id not in self.receiver.ids()[:-1]
        if is_new and len(self.webhooks_lost) < LOST_WEBHOOKS and self._weather.random() < 0.2:
            self.webhooks_lost.add(received.id)
            return self._weather.choice((status(503), None))
        return OK

    async def delivered(self) -> bool:
        """Whether every event of theirs that was told by now was posted."""
        return not await self.chain.rows("select 1 from webhooks.delivery where state <> 'delivered'")

    async def invoices_known(self) -> bool:
        """Whether balance has heard of every invoice of which something is due."""
        return not await self.chain.rows(
            "select 1 from invoices.invoice left join balance.receivable using (invoice_id)"
            " where invoice.state = 'closed' and invoice.due_nano <> 0 and receivable.invoice_id is null"
        )

    async def unrecorded(self) -> set[str]:
        """References of transfers that were sent and that balance has not recorded."""
        rows = await self.chain.rows("select reference from balance.group_payment where bank = 'bank'")
        return {*self.transfers, *self.group_payments} - {row["reference"] for row in rows}

    async def _tell_too_early(self) -> None:
        """The result of the first payment of an account that nobody has created: it is no attempt's yet."""
        _, attempt, _ = self.told_early
        result = {
            "result_id": f"{attempt}:settled", "attempt_id": attempt, "processor": "sandbox", "kind": "settled",
            "amount": "10.00", "currency": "USD", "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        await (await self.chain.send("payments.results.sandbox", attempt.encode(), json.dumps(result).encode()))

        async def is_quarantined() -> bool:
            return bool(await self.early_results())

        await until(is_quarantined, "a result that came before its request is in quarantine")

    async def early_results(self) -> Sequence[Any]:
        return await self.chain.rows(
            "select id, state from balance.parked where input = 'results' and reason = 'unknown_attempt'"
        )

    async def replay_early_results(self) -> None:
        """A person lets them run again, when their attempt is known."""

        async def is_known() -> bool:
            return bool(await self.chain.rows("select 1 from balance.attempt where account_id = $1", EARLY))

        await until(is_known, "the payment whose result came too early", 180.0)
        ids = [row["id"] for row in await self.early_results()]
        async with self.chain.engine("balance") as engine, transaction(engine) as connection:
            await parking.ask(connection, runtime_tables("balance"), "replaying", "ops", ids=ids)

    # ---- looking -----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Credits that are there by now; and that nobody has been promised more than there is."""
        now = datetime.now(UTC)
        for row in await self.chain.rows("select credit_id from balance.credit where valid_from is not null"):
            self.seen.setdefault(str(row["credit_id"]), now)
        rows = await self.chain.rows(
            "select account_id, wallet_nano, held_nano from balance.wallet where account_id = any($1)", list(CALLERS)
        )
        for row in rows:
            assert row["wallet_nano"] >= row["held_nano"], f"more was promised than there is: {dict(row)}"

    def _name(self) -> str:
        self._count += 1
        return f"{self.chain.seed}-m{self._count}"

    def _leg(self, account_id: str, leg: str, seconds: int, *, ended_at: datetime | None = None) -> UsageInput:
        """A call that ends now, or ended then."""
        now = ended_at or datetime.now(UTC)
        publisher, source = ("carrier", "trunk/a") if account_id in SPENT_SHARED else ("switch", "pbx/1")
        event = {
            "specversion": "1.0", "id": leg, "source": source, "type": model.VOICE_LEG,
            "data": {
                "account_id": account_id, "direction": "outbound", "caller": None, "called": CALLED,
                "started_at": _text(now - timedelta(seconds=seconds)), "ended_at": _text(now), "answered": True,
                "duration_s": seconds, "billable_s": seconds, "call_leg_id": leg,
            },
        }  # fmt: skip
        topic = model.USAGE_TOPICS + publisher
        return UsageInput(topic, account_id.encode(), json.dumps(event).encode(), Expectation("leg", frozenset()))

    # ---- judging -----------------------------------------------------------------------------------------------------

    async def credits(self) -> list[tuple[model.Credit, Mapping[str, tuple[str, int]], int]]:
        """Every credit with what was spent of it, by account and payer, and what lapsed."""
        spent = await self._spent()
        return [
            (
                credit,
                {
                    account_id: ("unbilled" if account_id in SPENT_SHARED else "wallet", amount)
                    for (credit_id, account_id), amount in spent.items()
                    if credit_id == credit.credit_id
                },
                row["breakage_nano"],
            )
            for credit, row in await self._credits()
        ]

    async def _spent(self) -> dict[tuple[str, str], int]:
        """What the ledger says that each credit paid for each account."""
        return {
            (row["credit_id"], row["account_id"]): int(row["nano"])
            for row in await self.chain.rows(
                "select split_part(ledger, ':', 2) as credit_id, account_id, -sum(nano) as nano from balance.ledger_entry"
                " where kind = 'credit_used' and split_part(ledger, ':', 1) = 'credit' group by 1, 2"
            )
        }

    async def _credits(self) -> list[tuple[model.Credit, Any]]:
        rows = await self.chain.rows("select * from balance.credit order by credit_id")
        return [
            (
                model.Credit(
                    str(row["credit_id"]),
                    frozenset(SPENT_SHARED if row["account_id"] is None else (row["account_id"],)),
                    row["account_id"] is None,
                    row["granted_nano"],
                    row["valid_from"],
                    row["expires_at"],
                    self.seen.get(str(row["credit_id"])),
                ),
                row,
            )
            for row in rows
        ]

    async def judged(self, charges: Mapping[str, Charge], now: datetime) -> list[str]:
        """What the model finds wrong."""
        events = await self.chain.published("balance.events")
        return [
            *await self._check_credits(charges, events, now),
            *await self._check_refunds(events),
            *self._check_schedules(events, await self.chain.rows("select * from balance.attempt"), now),
            *await self._check_calls(now),
            *await self._check_transfers(events),
            *self._check_webhooks(events),
        ]

    async def _check_credits(
        self, charges: Mapping[str, Charge], events: Sequence[Mapping[str, Any]], now: datetime
    ) -> list[str]:
        problems = []
        # A credit for each command that was accepted, and none else.
        granted = {each["command_id"]: each for each in events if each["kind"] == "credit_granted"}
        refused = {each["command_id"]: each["reason"] for each in events if each["kind"] == "command_refused"}
        asked = {command: (account_id, amount, shared) for command, (account_id, amount, shared) in self.grants.items()}
        asked |= {command: (None, code.amount, code.shared) for code in self.codes for command in code.asked}
        found = {credit.credit_id: (credit, row) for credit, row in await self._credits()}
        for command_id, (account_id, amount, shared) in asked.items():
            if command_id in refused:
                continue
            credit, row = found.pop(granted[command_id]["credit_id"])
            have = credit.granted_nano, credit.shared, row["asked_for"]
            if have != (nano(amount), shared, account_id or row["asked_for"]):
                problems.append(f"credit of {command_id}: {have}, expected {amount}, {shared}, {account_id}")
        problems += [f"credit {name}: nobody asked for it" for name in found]
        for code in self.codes:
            answers = [(beneficiary, refused.get(command)) for command, beneficiary in code.asked.items()]
            problems += [f"code of {code.amount}: {each}" for each in model.check_redemptions(code.most, answers)]
        credits = await self._credits()
        return problems + model.check_credits(
            [credit for credit, _ in credits],
            charges.values(),
            await self._spent(),
            {credit.credit_id: row["remaining_nano"] for credit, row in credits},
            {credit.credit_id: row["breakage_nano"] for credit, row in credits},
            now,
        )

    async def _check_refunds(self, events: Sequence[Mapping[str, Any]]) -> list[str]:
        asked = [
            model.Refund(each["refund_id"], each["attempt_id"], nano(each["amount"]))
            for each in events
            if each["kind"] == "refund_requested"
        ]
        given = [
            model.Refund(str(row["refund_id"]), str(row["attempt_id"]), nano(row["amount"]))
            for row in await self.chain.rows(
                "select * from payments.answer where refund_id is not null and kind = 'refunded' and told_at is not null"
            )
        ]
        rows = await self.chain.rows("select * from balance.attempt")
        attempts = [
            model.Attempt(str(row["attempt_id"]), row["account_id"], row["amount_nano"], row["requested_at"], row["state"])
            for row in rows
        ]  # fmt: skip
        self.happened["refunded"] += len(given)
        return model.check_refunds(asked, given, attempts)

    def _check_schedules(self, events: Sequence[Mapping[str, Any]], rows: Sequence[Any], now: datetime) -> list[str]:
        """Whoever had set a schedule before the day that came was charged on it once. A command that the storm held up until
        the clock was moved begins a month later."""
        due = [
            each["account_id"]
            for each in events
            if each["kind"] == "schedule_set" and model.instant(each["next_allowed_at"]) <= now
        ]
        paid = [row["account_id"] for row in rows if row["kind"] == "scheduled"]
        return [] if sorted(due) == sorted(paid) else [f"scheduled payments of {paid}, expected {due}"]

    async def _check_transfers(self, events: Sequence[Mapping[str, Any]]) -> list[str]:
        """Each reference of the bank is booked once, and told once as recorded and once as known."""
        rows = await self.chain.rows(
            "select reference, -sum(nano) as nano from balance.group_payment join balance.ledger_entry"
            " on ref = payment_id::text and ledger = 'clearing:bank' group by 1"
        )
        booked = {row["reference"]: int(row["nano"]) for row in rows}
        sent = {reference: amount for reference, (_, amount) in (self.transfers | self.group_payments).items()}
        problems = [
            f"transfer {each}: booked {booked.get(each)}, expected {sent.get(each)}"
            for each in sorted(booked.keys() | sent)
            if booked.get(each) != sent.get(each)
        ]
        answers = [each for each in await self.chain.published("balance.group_events") if each.get("command_id")]
        answers += [each for each in events if each["kind"].startswith("transfer_")]
        told = Counter((each["kind"], each.get("reference")) for each in answers)
        must = Counter((f"payment_{what}", each) for each in self.group_payments for what in ("recorded", "known"))
        must += Counter((f"transfer_{what}", each) for each in self.transfers for what in ("recorded", "known"))
        if self.written_off:
            done = ("card_payment_requested", "write_off_proposed", "invoice_written_off")
            must += Counter([(each, None) for each in (*done, *["command_refused"] * 3)])
        return problems + [
            f"told {told[each]} times, expected {must[each]}: {each}"
            for each in sorted(told.keys() | must, key=str)
            if told[each] != must[each]
        ]

    def _check_webhooks(self, events: Sequence[Mapping[str, Any]]) -> list[str]:
        """From the first that came on, every event of an account came, in order, whatever came again; nobody else's came, and
        nothing that is for finance alone."""
        heard: dict[str, list[dict[str, Any]]] = defaultdict(list)
        bodies: dict[str, str] = {}
        for each in self.receiver.requests:
            if each.id in bodies:
                if bodies[each.id] != each.body:
                    return [f"webhook {each.id} came with two bodies"]
                continue
            bodies[each.id] = each.body
            heard[each.json["data"]["account_id"]].append(each.json["data"])
        problems = [f"webhook of {each}, who has none" for each in heard.keys() - {*WITH_WEBHOOKS}]
        for account_id in WITH_WEBHOOKS:
            versions = [each["version"] for each in heard[account_id]]
            told = sorted(
                each["version"]
                for each in events
                if each["account_id"] == account_id and each["kind"] != "finance_alarm"
            )
            must = [each for each in told if not versions or each >= versions[0]]
            if versions != must:
                wrong = next(at for at, pair in enumerate(zip_longest(versions, must)) if pair[0] != pair[1])
                problems.append(f"webhooks of {account_id}: {versions[wrong:][:5]}, expected {must[wrong:][:5]}")
        return problems

    async def _check_calls(self, now: datetime) -> list[str]:
        """Nobody was promised money twice, so that calls within their promises never cost more than there was; only what is
        in progress holds anything, as much as was answered."""
        problems = []
        held: dict[str, int] = defaultdict(int)
        for row in await self.chain.rows("select * from balance.call where held_nano > 0"):
            held[row["account_id"]] += row["held_nano"] - row["shared_nano"]
            promise = self.promises.get(row["call_leg_id"])
            if row["call_leg_id"] in self.refused:
                continue
            if promise is None or promise.is_charged or row["expires_at"] <= now or row["held_nano"] != promise.nano:
                problems.append(f"call {row['call_leg_id']}: holds {row['held_nano']}, expected {promise}")
        holding = {leg for leg, each in self.promises.items() if each.nano and not each.is_charged and each.until > now}
        rows = await self.chain.rows("select call_leg_id from balance.call where held_nano > 0")
        problems += [f"call {leg}: holds nothing any more" for leg in holding - {row["call_leg_id"] for row in rows}]
        for row in await self.chain.rows("select account_id, wallet_nano, held_nano from balance.wallet"):
            if row["held_nano"] != held[row["account_id"]]:
                problems.append(f"wallet {row['account_id']}: holds {row['held_nano']}, its calls {held}")
            if row["account_id"] in CALLERS and row["wallet_nano"] < row["held_nano"]:
                problems.append(f"wallet {row['account_id']}: {row['wallet_nano']}, calls were promised more")
        return problems


def _tomorrow() -> str:
    """Before the clock that is moved by a day."""
    return (datetime.now(UTC) + timedelta(hours=20)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
