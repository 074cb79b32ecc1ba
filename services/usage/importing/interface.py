"""What every importer of call records takes and gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

from services.usage.importing.profile import SwitchProfile

REFUSALS_KEPT_MAX = 1_000  # named one by one; a wrong file refuses millions, which are only counted

RefusalCode = Literal[
    "short_row", "long_row", "too_long", "encoding", "not_csv", "header", "not_json", "unended",
    "invalid", "no_number", "unanswered_no_number",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LegEvent:
    """One usage event, ready for `usage.events.<publisher>`: the record's key and its CloudEvents document."""

    account_id: str
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A row that could not become an event: where, which field, and how to mend it."""

    line: int
    field: str
    code: RefusalCode
    message: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.field}: {self.message}"


@dataclass(slots=True)
class ImportReport:
    """Accounts for every row (or document) that was read: ``rows`` = published + internal + no_leg + refused.

    ``internal``: the call stayed inside the switch (no trunk on either side, or an internal number was dialled).
    ``no_leg``: trunks on both sides, or a conference pairing its members. Blank lines are no rows. The report grows while
    the events are taken; ``bytes_read`` tells how far the file is read.
    """

    rows: int = 0
    published: int = 0
    internal: int = 0
    no_leg: int = 0
    refused: int = 0
    bytes_read: int = 0
    refused_by_code: Counter[str] = field(default_factory=Counter)
    refusals: list[RefusedRow] = field(default_factory=list)

    @property
    def legs(self) -> int:
        """Rows that are one side of a call, published or without a usable number.

        Rows that cannot be read at all are refused before anybody knows whether they are legs.
        """
        return (
            self.published
            + self.refused_by_code["no_number"]
            + self.refused_by_code["unanswered_no_number"]
            + self.refused_by_code["invalid"]
        )

    @property
    def is_unusable(self) -> bool:
        """Whether every row was refused, and not only calls that nobody answered, of which nothing is lost."""
        return self.rows == self.refused > self.refused_by_code["unanswered_no_number"]

    def refuse(self, row: RefusedRow) -> None:
        self.refused += 1
        self.refused_by_code[row.code] += 1
        if len(self.refusals) < REFUSALS_KEPT_MAX:
            self.refusals.append(row)


class Importer(Protocol):
    """Reads one format. Memory is bounded whatever the file holds; a bad row never stops its neighbours.

    ``shift_days`` moves every time by whole days after the conversion to UTC (demonstrations with old records).
    """

    def __call__(
        self, records: BinaryIO, profile: SwitchProfile, report: ImportReport, *, shift_days: int = 0
    ) -> Iterator[LegEvent]: ...
