"""The table that judges the demo: every cell of the cast, expected against actual, read through the rooms' own apis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from services.balance import api as balance_api
from services.cli.demo.cast import Sample
from services.cli.demo.narrator import Narrator
from services.cli.output import console
from services.cli.reading import room
from services.invoices import api as invoices_api
from services.kernel.money import format_nano, parse_amount
from services.runtime.settings import Settings
from services.usage import api as usage_api

CHARGES_MAX = 100_000
NONE = "none"

_AMOUNT = re.compile(r"-?[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class Cell:
    """One cell of the acceptance table."""

    who: str
    what: str
    expected: str
    actual: str

    @property
    def holds(self) -> bool:
        """Whether both say the same; ``0.0280`` and ``0.028`` are the same amount."""
        return shortest(self.expected) == shortest(self.actual)


def shortest(text: str) -> str:
    """A text with every amount in its shortest form.

    >>> shortest("13: 0.9940, wallet 30.000")
    '13: 0.994, wallet 30'
    """
    return _AMOUNT.sub(lambda amount: format_nano(parse_amount(amount[0], signed=True)), text)


@dataclass(frozen=True)
class Moved:
    """What must stand still when the same file comes once more."""

    charges: tuple[tuple[Any, ...], ...]
    wallets: tuple[tuple[str, str, str], ...]
    duplicates: int


class Figures:
    """Reads what came out. ``period`` is the closed month, ``after`` the one behind it."""

    def __init__(self, settings: Settings, cast: Mapping[str, Any], period: str, after: str) -> None:
        self._settings = settings
        self._cast = cast
        self._period, self._after = period, after
        self._accounts = [account["account"] for account in cast["accounts"]]

    async def charges(self) -> dict[str, list[dict[str, Any]]]:
        """Every charge by account, earliest call first."""
        async with room("usage", self._settings) as engine:
            found = {each: await usage_api.charges(engine, each, limit=CHARGES_MAX) for each in self._accounts}
        return {
            each: sorted(rows, key=lambda row: (row["event_time"], row["event_id"])) for each, rows in found.items()
        }

    async def still(self) -> Moved:
        """Charges, wallets, and how many duplicates were counted so far."""
        charges = await self.charges()
        async with room("balance", self._settings) as engine:
            balances = await balance_api.balances(engine)
        async with room("usage", self._settings) as engine:
            counts = await usage_api.class_counts(engine)
        duplicates = sum(classes.get("duplicate", 0) for segments in counts.values() for classes in segments.values())
        rows = tuple(
            (row["charge_id"], row["amount_nano"], row["bill_to"]) for each in charges.values() for row in each
        )
        return Moved(rows, tuple((each.account_id, each.wallet, each.unbilled) for each in balances), duplicates)

    # ---- cells -----------------------------------------------------------------------------------------------------

    async def cells(self, sample: Sample, narrator: Narrator, seen: Mapping[str, str]) -> list[Cell]:
        """Every cell; ``seen`` are those that were measured on the way."""
        charges = await self.charges()
        return [
            *await self._account_cells(charges, narrator),
            *await self._invoice_cells(),
            *await self._figure_cells(charges, sample, narrator, seen),
        ]

    async def _account_cells(
        self, charges: Mapping[str, Sequence[Mapping[str, Any]]], narrator: Narrator
    ) -> list[Cell]:
        cells = []
        async with room("balance", self._settings) as engine:
            for account in self._cast["accounts"]:
                name, expected = account["account"], account["expected"]
                wallet = await balance_api.balance(engine, name)
                attempts = await balance_api.attempts(engine, name)
                entries = await balance_api.entries(engine, name, limit=CHARGES_MAX)
                on_time = [row for row in charges[name] if row["period"] == row["bill_to"]]
                before = [row for row in on_time if self._is_before(row)]
                cells += [
                    Cell(name, "charges before T", expected["before"], _count_and_sum(before)),
                    Cell(
                        name,
                        "charges after T",
                        expected["after"],
                        _count_and_sum(row for row in on_time if row not in before),
                    ),
                    Cell(name, "recharges", expected["recharges"], recharges(attempts)),
                    Cell(name, "notices", expected["notices"], notices(name, narrator)),
                    Cell(name, "entry of the close", expected["close"], _close(entries)),
                    Cell(name, "wallet at the end", expected["wallet"], wallet.wallet),
                ]
        return cells

    def _is_before(self, row: Mapping[str, Any]) -> bool:
        month = row["period"] or row["event_time"].strftime("%Y-%m")
        return bool(month == self._period)

    async def _invoice_cells(self) -> list[Cell]:
        cells = []
        async with room("invoices", self._settings) as engine:
            standing = {row.group_id: row for row in await invoices_api.status(engine, self._period)}
            for row in self._cast["invoices"]:
                group = row["group"]
                at = standing.get(group)
                if at is None or at.number is None:
                    actual = NONE if at is not None and at.state == "nothing to bill" else at.state if at else "unknown"
                    cells.append(Cell(group, "invoice", row["expected"], actual))
                    continue
                shown = await invoices_api.show(engine, at.number)
                totals = shown.document["totals"]
                cells.append(
                    Cell(
                        group, "invoice", row["expected"],
                        f"net {totals['net']}, tax {totals['tax']}, paid from balance {totals['paid_from_balance']}, "
                        f"due {totals['due']}",
                    )
                )  # fmt: skip
                if group in self._cast["lines"]:
                    amounts = sorted(
                        (line["amount"] for line in shown.document["lines"]), key=parse_amount, reverse=True
                    )
                    actual = ", ".join([*amounts, f"rounding {shown.document['rounding']}"])
                    cells.append(Cell(group, "lines", self._cast["lines"][group], actual))
        return cells

    async def _figure_cells(
        self,
        charges: Mapping[str, Sequence[Mapping[str, Any]]],
        sample: Sample,
        narrator: Narrator,
        seen: Mapping[str, str],
    ) -> list[Cell]:
        every = [row for rows in charges.values() for row in rows]
        first = [row for row in every if row["period"] == row["bill_to"]]
        out = [row for row in first if row["product"] == "voice.outbound"]
        into = [row for row in first if row["product"] != "voice.outbound"]
        held = [row for row in into if row["product"] == "voice.toll_free"]
        group = self._cast["shared_group"]["group"]
        async with room("invoices", self._settings) as engine:
            estimate = await invoices_api.estimate(engine, group, self._after)
            numbered = [row for row in await invoices_api.list_invoices(engine) if row.number is not None]
        async with room("balance", self._settings) as engine:
            owing = [await balance_api.balance(engine, a["account"]) for a in self._cast["accounts"] if "group" in a]
        actual = {
            "rows of the file": str(sample.report.rows),
            "legs": str(sample.report.legs),
            **{f"rows of {number}": str(count) for number, count in sample.inbound_rows.items()},
            "outbound": f"{len(out)}: {_from(out, '+1')} US, {_from(out, '+91')} India, {len(_called(out))} numbers",
            "inbound": f"{len(into)} on {len(_called(into))} numbers",
            **{reason: _quarantined(narrator, reason) for reason in ("unknown_account", "no_price")},
            f"the {len(held)} rated by version 2": _sum(held),
            "invoice numbers drawn": str(len(numbered)),
            "charges with the late one": str(len(every)),
            "the late one": self._late(every),
            f"estimate of {group}": _estimate(estimate),
            f"receivable of {group}": format_nano(sum(parse_amount(each.receivable, signed=True) for each in owing)),
            **seen,
        }
        return [
            Cell("all", name, expected, actual.get(name, "not measured"))
            for name, expected in self._cast["figures"].items()
        ]

    def _late(self, rows: Iterable[Mapping[str, Any]]) -> str:
        late = [row for row in rows if row["period"] != row["bill_to"]]
        where = {row["bill_to"] for row in late}
        return f"{_sum(late)}, on the invoice of {'the month after' if where == {self._after} else where}"


def show_cells(cells: Sequence[Cell]) -> int:
    """Prints the table; returns how many cells differ."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("who", "what", "expected", "actual", ""):
        table.add_column(heading, overflow="fold")
    last = None
    for cell in cells:
        verdict = Text("ok" if cell.holds else "DIFFERS", style="" if cell.holds else "bold red")
        table.add_row("" if cell.who == last else cell.who, cell.what, cell.expected, Text(cell.actual), verdict)
        last = cell.who
    console.print(table)
    return sum(1 for cell in cells if not cell.holds)


def _count_and_sum(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    return f"{len(rows)}: {_sum(rows)}" if rows else NONE


def _sum(rows: Iterable[Mapping[str, Any]]) -> str:
    return format_nano(sum(row["amount_nano"] for row in rows))


def _called(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {row["destination"] for row in rows}


def _from(rows: Iterable[Mapping[str, Any]], prefix: str) -> int:
    return sum(1 for row in rows if row["destination"].startswith(prefix))


def recharges(attempts: Sequence[balance_api.AttemptRow]) -> str:
    """Automatic payments in their order; equal ones that follow each other are counted."""
    texts = [f"{each.state} {format_nano(parse_amount(each.amount), decimals_min=2)}" for each in reversed(attempts)]
    runs = [(text, len(list(run))) for text, run in groupby(texts)]
    return ", ".join(text if count == 1 else f"{count} x {text}" for text, count in runs) or NONE


def notices(account_id: str, narrator: Narrator) -> str:
    """What an account was told beside its recharges, in order."""
    words = ["cut to the top-up limit"] if account_id in narrator.cut else []
    for event in narrator.events[account_id]:
        match event["kind"]:
            case "recharge_declined":
                words.append("declined")
            case "recharge_capped":
                words.append("capped")
            case "recharge_eighth":
                words.append("8th of ten")
            case "suspended":
                words.append("suspended")
            case "restored":
                words.append(f"restored at {event['wallet']}")
            case (
                "recharge_refused"
                | "recharge_failed"
                | "recharge_paused"
                | "recharge_unknown"
                | "contradiction" as other
            ):
                words.append(other)
    return ", ".join(words) or NONE


def _close(entries: Sequence[balance_api.EntryRow]) -> str:
    amounts = [each.amount for each in entries if each.kind == "closing" and each.ledger.startswith("wallet")]
    return ", ".join(amounts) or NONE


def _quarantined(narrator: Narrator, reason: str) -> str:
    found = [f"{count} of {account_id}" for (account_id, why), count in narrator.quarantined.items() if why == reason]
    return ", ".join(sorted(found)) or NONE


def _estimate(document: Mapping[str, Any]) -> str:
    own = [line["exact"] for line in document["lines"] if not line["prior_period"]]
    prior = [f"prior period {line['exact']}" for line in document["lines"] if line["prior_period"]]
    own.sort(key=parse_amount, reverse=True)
    return f"{' + '.join([*own, *prior])} = {document['evidence']['exact_sum']}"
