"""Says what happens as it happens, and remembers what the table is judged by.

Single records are counted together for a moment, so that 250 charges are a few lines and not 250.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

from contracts.topics import BALANCE_EVENTS, BALANCE_POSTINGS, INVOICES_EVENTS, USAGE_CHARGES, USAGE_REJECTIONS
from services.cli.output import console
from services.kernel.money import ceil_minor, format_nano, parse_amount

FOLLOWED = (USAGE_CHARGES, USAGE_REJECTIONS, BALANCE_POSTINGS, BALANCE_EVENTS, INVOICES_EVENTS)
TOGETHER_S = 0.5  # records of one kind in this time are one line

QUIET = {"balance_opened", "goodwill_granted", "method_saved", "preferences_set", "invoice_posted"}
"""Events that the demo asked for or that `closed` says already."""


class Narrator:
    """Hears every record of the topics it follows."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._said_at = began
        self._rated: dict[str, tuple[int, int]] = {}
        self._debited: dict[str, tuple[int, int]] = {}
        self._owed: dict[str, tuple[int, int]] = {}
        self._rejected: Counter[tuple[str, str, str, str]] = Counter()
        self._preferences: dict[str, dict[str, str]] = {}
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.quarantined: Counter[tuple[str, str]] = Counter()
        self.cut: set[str] = set()

    def knows(self, account_id: str, preferences: dict[str, str]) -> None:
        """The recharge preferences of an account: they tell a cut recharge from a whole one."""
        self._preferences[account_id] = preferences

    def act(self, title: str) -> None:
        """A new act begins."""
        self.flush()
        console.print(f"\n[bold]{title}[/bold]", highlight=False)

    def say(self, what: str, text: str) -> None:
        """One line: seconds since the start, a word for what happened, and the rest."""
        console.print(f"{time.monotonic() - self._began:6.1f} s  {what:<12} {text}", markup=False)

    def hear(self, topic: str, data: dict[str, Any]) -> None:
        """One record of a followed topic."""
        if topic == USAGE_CHARGES.name:
            _add(self._rated, data["account_id"], 1, parse_amount(data["amount"], signed=True))
        elif topic == BALANCE_POSTINGS.name:
            for sums, amount in ((self._debited, data["wallet"]), (self._owed, data["unbilled"])):
                if nano := parse_amount(amount, signed=True):
                    _add(sums, data["account_id"], data["charges"], nano)
        elif topic == BALANCE_EVENTS.name:
            self.flush()
            self._balance(data)
        elif topic == INVOICES_EVENTS.name and data["kind"] == "closed":
            self.flush()
            self._closed(data)
        elif USAGE_REJECTIONS.holds(topic):
            self._rejection(data)

    def pause(self) -> None:
        """Called often: says what was counted once it is old enough."""
        if time.monotonic() - self._said_at > TOGETHER_S:
            self.flush()

    def flush(self) -> None:
        """Says what was counted."""
        for (action, account_id, reason, message), count in self._rejected.items():
            self.say(action, f"{_records(count)} of {account_id}: {reason}: {message}")
        for account_id, (count, nano) in self._rated.items():
            self.say("rated" if nano >= 0 else "reversed", f"{account_id}: {_charges(count)}, {format_nano(nano)}")
        for account_id, (count, nano) in self._debited.items():
            self.say(
                "debited" if nano >= 0 else "credited", f"{account_id}: {format_nano(abs(nano))} for {_charges(count)}"
            )
        for account_id, (count, nano) in self._owed.items():
            self.say("owed", f"{account_id}: {format_nano(nano)} for {_charges(count)}, on the next invoice")
        self._rejected.clear()
        self._rated.clear()
        self._debited.clear()
        self._owed.clear()
        self._said_at = time.monotonic()

    def _rejection(self, data: dict[str, Any]) -> None:
        account_id = data["account_id"] or "?"
        if data["action"] == "quarantined":
            self.quarantined[account_id, data["reason"]] += 1
        self._rejected[data["action"], account_id, data["reason"], data["message"]] += 1

    def _balance(self, event: dict[str, Any]) -> None:
        account_id, kind = event["account_id"], event["kind"]
        self.events[account_id].append(event)
        if kind in QUIET or event["command_id"] is not None:
            return
        amount, wallet = event["amount"], event["wallet"]
        match kind:
            case "recharge_requested":
                self.say("recharge", f"{account_id}: {amount} requested, available {event['available']}")
                self._cut(account_id, amount, event["available"])
            case "recharge_settled":
                self.say("recharged", f"{account_id}: {amount}, wallet {wallet}")
            case "payment_requested":
                self.say("payment", f"{account_id}: {amount} requested")
            case "payment_settled":
                self.say("paid", f"{account_id}: {amount}, wallet {wallet}")
            case "refunded":
                self.say("refunded", f"{account_id}: {amount}, wallet {wallet}")
            case "recharge_declined":
                after = f"the next try from {event['next_allowed_at']}" if event["next_allowed_at"] else "no next try"
                self.say("declined", f"{account_id}: {amount}, wallet {wallet}; {after}")
            case "recharge_capped":
                self.say("capped", f"{account_id}: ten recharges in 24 h; the next from {event['next_allowed_at']}")
            case "recharge_eighth":
                self.say("notice", f"{account_id}: this was the 8th of ten recharges in 24 h")
            case "spend_limit_near" | "spend_limit_reached":
                self.say(
                    kind.replace("spend_", ""), f"{account_id}: {amount} of {event['limit']} spent on {event['day']}"
                )
            case "suspended":
                self.say("suspended", f"{account_id}: wallet {wallet}")
            case "restored":
                self.say("restored", f"{account_id}: wallet {wallet}")
            case _:
                self.say(kind.replace("recharge_", ""), f"{account_id}: {event['reason'] or ''} wallet {wallet}")

    def _cut(self, account_id: str, amount: str, available: str) -> None:
        wanted = self._preferences.get(account_id)
        if wanted is None or wanted["mode"] != "up_to_sum":
            return
        need = (
            parse_amount(wanted["threshold"]) + parse_amount(wanted["recharge"]) - parse_amount(available, signed=True)
        )
        if parse_amount(amount) < need:
            self.cut.add(account_id)
            self.say(
                "cut", f"{account_id}: {format_nano(ceil_minor(need, 2))} to the top-up limit of the day, {amount}"
            )

    def _closed(self, event: dict[str, Any]) -> None:
        totals = f"total {event['total']}, paid from balance {event['paid_from_balance']}, due {event['due']}"
        self.say("closed", f"{event['group_id']} {event['period']}: invoice {event['number']}, {totals}")


def _add(sums: dict[str, tuple[int, int]], account_id: str, count: int, nano: int) -> None:
    before = sums.get(account_id, (0, 0))
    sums[account_id] = before[0] + count, before[1] + nano


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


def _charges(count: int) -> str:
    return "1 charge" if count == 1 else f"{count} charges"
