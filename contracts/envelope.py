"""What stands around every record between rooms and to downstream consumers.

``link`` names the lane of the producer the record comes from, ``seq`` is dense (1, 2, 3…) per (link, topic, partition),
``epoch`` tells lives apart after a restore. A consumer applies ``received_to + 1`` and drops what it has seen; a published
record may come twice, always with the same id, link and seq. Source: designs/closing, lines 1 to 3.
"""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from contracts.words import InstantText

DataT = TypeVar("DataT")


@with_config(ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True))
class Envelope(TypedDict, Generic[DataT]):
    id: Annotated[str, Field(max_length=128, description="The same message always has the same id")]
    type: Annotated[str, Field(max_length=64, examples=["usage.charge"])]
    version: Annotated[int, Field(ge=1)]
    time: InstantText
    link: Annotated[str, Field(max_length=256)]
    seq: Annotated[int, Field(ge=1)]
    epoch: Annotated[int, Field(ge=0)]
    trace: Annotated[str | None, Field(max_length=128, description="W3C traceparent")]
    data: DataT
