"""The optional parts of a switch profile: what a format must be told that the file itself does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from services.usage.importing.dialect import Dialect
from services.usage.importing.templates import SHIPPED, Template, parse

# Without one of these an Asterisk row cannot be judged or billed. The start may be called calldate, as in older tables.
NAMED_COLUMNS = (
    "accountcode", "src", "dst", "channel", "dstchannel", "lastapp", "lastdata", "duration", "billsec", "disposition",
)  # fmt: skip
COLUMNS_NAMED_MAX = 256


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError) as error:  # the latter of a repetition such as {99999999999}
        raise ValueError(f"{text!r} is no regular expression ({error}); mend it or escape its special signs") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False)]


def _sign(text: str) -> str:
    if len(text) != 1 or text in "\r\n\x00":
        raise ValueError('must be one character, such as ","')
    return text


Sign = Annotated[str, AfterValidator(_sign)]


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


# What tells a leg's own channel. Its gateway alone is sip_gateway where it came in and sip_gateway_name where it went out.
BOTH_WAYS_VARIABLES = ("sofia_profile_name", "channel_name")
CHANNEL_VARIABLES = ("sip_gateway", *BOTH_WAYS_VARIABLES)
PEER_VARIABLES = ("last_arg", "bridge_channel")
END_VARIABLES = ("end_uepoch", "end_epoch", "end_stamp")
TEMPLATE_CHARS_MAX = 8_192


def _template(text: str) -> str:
    parse(SHIPPED.get(text, text))
    return text


class FreeSwitch(Part):
    """How a FreeSWITCH writes its records. The defaults are those of the configuration it ships."""

    template: Annotated[str, Field(max_length=TEMPLATE_CHARS_MAX), AfterValidator(_template)] = Field(
        "example", description="Of cdr_csv: the name of a shipped template, or the text of your own"
    )
    legs: Literal["a", "ab"] | None = Field(None, description="Which legs are logged; cdr_csv ships a, json_cdr ab")
    inbound_contexts: tuple[str, ...] = Field(
        ("public",), strict=False, description="Contexts of calls from outside, where no channel tells it"
    )
    account_variables: tuple[str, ...] = Field(
        ("accountcode",), strict=False, min_length=1, description="The first that is set is the account's code"
    )

    @cached_property
    def columns(self) -> Template:
        return parse(SHIPPED.get(self.template, self.template))

    def lacks(self) -> str | None:
        """What the template must have before its lines can be billed, or None."""
        needed = [("uuid",), ("destination_number",), ("billsec",), END_VARIABLES, self.account_variables]
        if self.legs == "ab":
            needed += [("direction",), BOTH_WAYS_VARIABLES]
        else:
            needed.append((*CHANNEL_VARIABLES, "context"))
        there = set(self.columns.names)
        for names in needed:
            if not there.intersection(names):
                wanted = " or ".join(f"${{{name}}}" for name in names)
                return f"has no {wanted}; add it to the template of the switch and to this one"
        return None

    @model_validator(mode="after")
    def _template_suffices(self) -> Self:
        if "template" in self.model_fields_set and (lacks := self.lacks()):
            raise ValueError(f"the template {lacks}")
        return self


TIMES = ("iso", "epoch", "epoch_ms", "epoch_us")
_PROBE = datetime(2026, 11, 29, 17, 5, tzinfo=UTC)


def _column(column: object) -> object:
    if (isinstance(column, str) and column) or (type(column) is int and 1 <= column <= COLUMNS_NAMED_MAX):
        return column
    raise ValueError(f"must be the name of a column, or its number from 1 to {COLUMNS_NAMED_MAX}")


def _columns(columns: object) -> object:
    return (
        tuple(_column(each) for each in columns) if isinstance(columns, list | tuple) and columns else _column(columns)
    )


Column = Annotated[str | int, BeforeValidator(_column)]


def _time(text: str) -> str:
    if text in TIMES:
        return text
    try:
        read = datetime.strptime(_PROBE.strftime(text), text)  # noqa: DTZ007 - whether it has a zone is asked below
    except ValueError as error:
        raise ValueError(f"{text!r} is neither one of {', '.join(TIMES)} nor a pattern of strptime ({error})") from None
    if "%Z" in text:
        raise ValueError("has %Z, and names of zones are ambiguous; use %z, or leave it out and set the profile's zone")
    if read.replace(tzinfo=UTC) != _PROBE:
        raise ValueError(f"{text!r} does not hold a date with hours and minutes; add what is missing, such as %Y or %H")
    return text


class MappedColumns(Part):
    """Which column holds what: its name in the header, or its number from 1. Without a header only numbers."""

    id: Annotated[str | int | tuple[str | int, ...], BeforeValidator(_columns)] = Field(
        description="What names the leg for ever; several columns are joined"
    )
    called: Column
    billable: Column = Field(description="The seconds that are billed")
    started_at: Column | None = None
    ended_at: Column | None = None
    duration: Column | None = None
    caller: Column | None = None
    account: Column | None = Field(None, description="The account's code; without it the code is empty")
    direction: Column | None = None
    answered: Column | None = None
    trunk: Column | None = Field(None, description="The trunk's channel; a row with any other is internal")

    def used(self) -> dict[str, Column]:
        """Every column with the field that it is for."""
        ids = self.id if isinstance(self.id, tuple) else (self.id,)
        fields = {name: getattr(self, name) for name in type(self).model_fields if name != "id"}
        named = {f"id.{index}": column for index, column in enumerate(ids)}
        return named | {name: column for name, column in fields.items() if column is not None}


class MappedCsv(Part):
    """A CSV file of any make."""

    columns: MappedColumns
    header: bool = True
    separator: Sign = ","
    quote: Sign = '"'
    escape: Sign | None = None
    time: Annotated[str, AfterValidator(_time)] = Field(
        "iso", description="iso, epoch, epoch_ms, epoch_us or strptime's"
    )
    seconds: Literal["s", "ms", "hh:mm:ss"] = "s"
    direction: Literal["inbound", "outbound"] | None = Field(None, description="Of every row, where no column tells it")
    inbound: Patterns = ()
    outbound: Patterns = ()
    internal: Patterns = ()
    answered: Patterns = ()
    unanswered: Patterns = ()

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.separator, self.quote, None if self.escape == self.quote else self.escape)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        columns = self.columns
        if columns.ended_at is None and (columns.started_at is None or columns.duration is None):
            raise ValueError("columns has no ended_at; add it, or started_at together with duration")
        if not self.header:
            for name, column in columns.used().items():
                if isinstance(column, str):
                    raise ValueError(f"columns.{name} must be the number of a column, since the file has no header")
        if (columns.direction is None) == (self.direction is None):
            raise ValueError(
                "direction must be either a column (columns.direction) or the same for every row (direction)"
            )
        if columns.direction is not None and not (self.inbound or self.outbound):
            raise ValueError("columns.direction needs the values that mean inbound and outbound; add those lists")
        if columns.answered is not None and not self.answered:
            raise ValueError("columns.answered needs the values that mean it; add the lists answered and unanswered")
        return self
