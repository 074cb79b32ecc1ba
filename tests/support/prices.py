"""Price rows, as the judge takes them, as files of price books."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from services.kernel.money import parse_amount
from services.usage.books import PriceRow
from services.usage.price_files import PriceFile
from services.usage.tiers import Band, Schedule
from services.usage.windows import Window, window_of


def price_file(rows: Iterable[Mapping[str, Any]]) -> PriceFile:
    """The file of one version: rows of one currency, with the windows that they name."""
    rows = list(rows)
    windows = [row["window"] for row in rows if row.get("window") is not None]
    named = {window["id"]: _window(window) for window in windows}
    tiers = {row["tiers"]["id"]: _schedule(row["tiers"]) for row in rows if row.get("tiers") is not None}
    currency = rows[0].get("currency", "USD")
    return PriceFile(currency, tuple(map(_price_row, rows)), (), tuple(named.values()), tuple(tiers.values()))


def _schedule(tiers: Mapping[str, Any]) -> Schedule:
    bands = (Band(band["up_to"], parse_amount(band["price"]), parse_amount(band["fee"])) for band in tiers["bands"])
    return Schedule(tiers["id"], tiers["form"], tiers["per"], tuple(bands))


def _window(window: Mapping[str, Any]) -> Window:
    return window_of(*[window[name] for name in ("id", "zone", "days", "from", "to")], window.get("holidays", ""))


def _price_row(row: Mapping[str, Any]) -> PriceRow:
    has_no_plus = row["prefix"] == "*" or row["product"] == "data"
    return PriceRow(
        row["product"],
        str(row["prefix"]) if has_no_plus else f"+{row['prefix']}",
        parse_amount(row["price"]),
        parse_amount(row.get("fee", "0")),
        row["minimum"],
        row["increment"],
        row["tiers"]["per"] if row.get("tiers") is not None else row.get("per", 60),
        row.get("unit", "second"),
        row.get("delivered_only", False),
        row["window"]["id"] if row.get("window") is not None else "",
        row["tiers"]["id"] if row.get("tiers") is not None else "",
    )
