"""The types that every message is made of. All are strict: what is not exactly of this form is refused, never converted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints


class Message(BaseModel):
    """Base of every contract model: frozen, strict, no unknown fields."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True, serialize_by_alias=True
    )

    def data(self) -> dict[str, Any]:
        """The JSON-ready form that goes on a wire."""
        return self.model_dump(mode="json")


# The first and last instant of all: the database keeps them as infinity, and they come back without a zone.
INFINITE = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def _utc(value: datetime) -> datetime:
    if value.utcoffset() != timedelta(0):
        raise ValueError('must be UTC and end with "Z"')
    if value in INFINITE:
        raise ValueError(
            "is the first or last instant of all, which cannot be kept; write a real one, or null for never"
        )
    return value


ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]*$")]
Text = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
Amount = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?$"),
    Field(
        description="Unsigned decimal string, ASCII digits, at most 12 before and 9 after the point", examples=["10.00"]
    ),
]
SignedAmount = Annotated[
    str,
    StringConstraints(pattern=r"^-?[0-9]{1,12}(\.[0-9]{1,9})?$"),
    Field(description="Decimal string, ASCII digits, at most 12 before and 9 after the point", examples=["-0.0140"]),
]
SignedTotal = Annotated[
    str,
    StringConstraints(pattern=r"^-?[0-9]{1,30}(\.[0-9]{1,9})?$"),
    Field(description="Decimal string of a total over many accounts"),
]
CurrencyCode = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$"), Field(description="ISO 4217", examples=["USD"])]
E164_PATTERN = r"^\+[1-9][0-9]{4,14}$"
E164 = Annotated[str, StringConstraints(pattern=E164_PATTERN), Field(examples=["+12485252160"])]
Month = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$"),
    Field(description="A billing period", examples=["2026-10"]),
]
Day = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$"),
    Field(description="A day of UTC", examples=["2026-10-31"]),
]
Instant = Annotated[AwareDatetime, AfterValidator(_utc), Field(description="UTC with Z")]
InstantText = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z$"),
    Field(description="UTC with Z", examples=["2026-10-31T23:50:00Z"]),
]
