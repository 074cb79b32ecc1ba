"""The optional parts of a switch profile: what a format must be told that the file itself does not say."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.usage.importing.dialect import Dialect
from services.usage.importing.templates import SHIPPED, Template, parse

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


CHANNEL_VARIABLES = ("sip_gateway_name", "sip_gateway", "sofia_profile_name", "channel_name")
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
            needed += [("direction",), CHANNEL_VARIABLES]
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
