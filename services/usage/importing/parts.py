"""The optional parts of a switch profile: what a format must be told that the file itself does not say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.usage.importing.dialect import Dialect

# Without one of these an Asterisk row cannot be judged or billed. The start may be called calldate, as in older tables.
NAMED_COLUMNS = (
    "accountcode", "src", "dst", "channel", "dstchannel", "lastapp", "lastdata", "duration", "billsec", "disposition",
)  # fmt: skip
COLUMNS_NAMED_MAX = 256


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


Sign = Annotated[str, Field(pattern=r"^[^\r\n\x00]$")]


def missing_columns(names: Iterable[str]) -> list[str]:
    """The columns without which no Asterisk row can be billed."""
    there = set(names)
    missing = [name for name in NAMED_COLUMNS if name not in there]
    return missing if there.intersection(("start", "calldate")) else [*missing, "start"]


def _bare(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Names as cdr_custom's ``fields`` has them, without case and qualifiers: ``Uniqueid(noquote)`` is ``uniqueid``."""
    names = tuple(name.strip().partition("(")[0].lower() for name in columns)
    if missing := missing_columns(names):
        raise ValueError(
            f"has no {', '.join(missing)}; add what is missing to the mapping of the switch and to this list"
        )
    return names


class AsteriskColumns(Part):
    """The columns of a file without a header, in its order, as the mapping of cdr_custom names them."""

    columns: Annotated[tuple[str, ...], Field(strict=False, max_length=COLUMNS_NAMED_MAX), AfterValidator(_bare)]
    separator: Sign = ","
    quote: Sign = '"'
    escape: Sign | None = Field(None, description="What stands before a quote inside a field, if it is not doubled")

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.separator, self.quote, None if self.escape == self.quote else self.escape)
