"""What every CloudEvents 1.0 event is, of whatever type: the attributes around the data, and the form of extensions.

Source: CloudEvents 1.0.2, sections 2 to 4, and its JSON event format.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    field_validator,
)

_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_HOUR = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - of a media type
_INTEGER = 2**31


def _of_the_calendar(text: str) -> str:
    try:
        date.fromisoformat(text[:10])
    except ValueError:
        raise ValueError("is no date and time of the calendar") from None
    return text


def _extension(value: Any) -> Any:
    if value is None or isinstance(value, str | bool) or (isinstance(value, int) and -_INTEGER <= value < _INTEGER):
        return value
    raise ValueError("an extension must be a text, a boolean or an integer of 32 bits")


Attribute = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Timestamp = Annotated[
    str,
    StringConstraints(pattern=rf"^{_DAY}[Tt]{_HOUR}:([0-5][0-9]|60)(\.[0-9]+)?([Zz]|[+-]{_HOUR})$"),
    AfterValidator(_of_the_calendar),
    Field(description="RFC 3339", examples=["2026-10-31T23:50:00Z"]),
]
MediaType = Annotated[
    str,
    StringConstraints(pattern=rf'^{_TOKEN}/{_TOKEN}( *; *{_TOKEN}=({_TOKEN}|"[^"\\\x00-\x1f\x7f]*"))*$'),
    Field(description="RFC 2046", examples=["application/json"]),
]
AbsoluteUri = Annotated[
    str,
    StringConstraints(max_length=256, pattern=r"^[A-Za-z][A-Za-z0-9+.-]*:[^\x00-\x20\x7f]+$"),
    Field(examples=["https://example.org/leg"]),
]
Base64 = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")]
ExtensionName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+$")]
Extension = Annotated[Any, PlainValidator(_extension)]


class CloudEvent(BaseModel):
    """The envelope alone: which type it is, and whether its data are right, is judged apart."""

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)
    __pydantic_extra__: dict[ExtensionName, Extension]

    specversion: Literal["1.0"]
    id: Attribute
    source: Attribute
    type: Attribute
    time: Timestamp | None = None
    subject: Attribute | None = None
    datacontenttype: MediaType | None = None
    dataschema: AbsoluteUri | None = None
    data: Any = None
    data_base64: Base64 | None = None

    @field_validator("data_base64")
    @classmethod
    def _data_once(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("data") is not None:
            raise ValueError("must not stand beside data; send the data once")
        return value


cloud_event: TypeAdapter[CloudEvent] = TypeAdapter(CloudEvent)
