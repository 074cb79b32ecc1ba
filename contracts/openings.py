"""The record with which a new life of the rooms begins, on every partition that carries the envelope.

After PostgreSQL was restored from a backup the rooms go on in a new epoch. What they had told after that backup is *undone*: they
tell it anew, perhaps otherwise, under the same seqs. An opening says what of the earlier epochs holds.

The one rule for whoever reads these topics and was not restored. Keep ``received_to`` per link, as always, and the newest opening.
(1) At an opening, go back on every link to the smaller of ``received_to`` and the bound of the newest epoch in its chain; a link
that is not listed has the bound 0. What was applied above it is undone. (2) A record of an epoch that is not the current one is valid only if its epoch is in the chain
and its seq at or below the bound of its link there; pass over any other. (3) Of the same object, as a charge id, what comes again
replaces what came before. Source: designs/closing, RESTORE.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from contracts.envelope import Envelope
from contracts.words import Message, Text

OPENING = "opening"
"""The ``type`` of its envelope, and its ``link``: it is none of any lane."""

KEY_PREFIX = "opening:"
"""Its key is this and its epoch. No object has such an id, so that compaction takes neither the one for the other."""


class Bound(Message):
    """Up to where the records of one link hold, on the partition of the opening."""

    link: Text
    last_seq: Annotated[int, Field(ge=0)]


class EarlierLife(Message):
    """What holds of an earlier epoch; a link that is not listed has the bound 0."""

    epoch: Annotated[int, Field(ge=0)]
    bounds: tuple[Bound, ...]


class Opening(Message):
    """On every topic: the epoch of its envelope begins here. Of the epochs that came before, those in the chain hold up to their
    bounds, the newest last; of all others nothing does."""

    chain: tuple[EarlierLife, ...]


ADAPTER: TypeAdapter[Any] = TypeAdapter(Envelope[Opening])


def opening_in(value: bytes) -> dict[str, Any] | None:
    """The envelope of an opening, whose data are an `Opening`; None for any other record."""
    if b'"opening"' not in value:
        return None
    try:
        envelope: dict[str, Any] = ADAPTER.validate_json(value)
    except ValidationError:
        return None
    return envelope if envelope["type"] == OPENING else None


def key_of(epoch: int) -> str:
    """The key of the openings of an epoch.

    >>> key_of(3)
    'opening:3'
    """
    return f"{KEY_PREFIX}{epoch}"
