"""Some fields of the data of many records, for a consumer that folds them by the hundred thousand.

Reading checks names, types, lengths and bounds, in a fraction of the time that the whole contract takes. Patterns are judged by
the contract itself when the consumer asks: for the first of the records that are alike in such fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NotRequired, get_args, get_origin, get_type_hints

from msgspec import UNSET, Meta, UnsetType, defstruct
from msgspec.json import Decoder
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from contracts.envelope import Envelope

PLACE = ("link", "seq", "epoch")
"""What places a record on its link."""

_BOUNDS = ("min_length", "max_length", "ge")


class Reading:
    """Reads these fields of the data of a topic's records, and what places a record; all else is passed over, whatever it is.

    ``read`` takes the bytes of a record and gives an object with ``link``, ``seq``, ``epoch`` and ``data``, whose attributes
    are the fields (`msgspec.UNSET` for one that may be left out). Raises `msgspec.DecodeError`.
    """

    def __init__(self, model: Any, fields: Iterable[str]) -> None:
        kinds = get_type_hints(model, include_extras=True)
        around = get_type_hints(Envelope, include_extras=True)
        data = {name: kinds[name] for name in fields}
        place = {name: around[name] for name in PLACE}
        self._judge = TypeAdapter(_strict(place | {"data": _strict(data)})).validator
        self.read = Decoder(_plain("Read", place | {"data": _plain("Data", data)})).decode

    def judge(self, encoded: bytes) -> dict[str, Any]:
        """The same, by the rules of the contract. Raises `pydantic.ValidationError` for what it refuses."""
        judged: dict[str, Any] = self._judge.validate_json(encoded)
        return judged


def _strict(kinds: dict[str, Any]) -> Any:
    shape = TypedDict("shape", kinds)  # type: ignore[misc]
    return with_config(ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True))(shape)


def _plain(name: str, kinds: dict[str, Any]) -> Any:
    return defstruct(name, [_field(*each) for each in kinds.items()], gc=False, kw_only=True)


def _field(name: str, kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is not NotRequired:
        return name, _bare(kind)
    return name, _bare(get_args(kind)[0]) | UnsetType, UNSET


def _bare(kind: Any) -> Any:
    """A type as msgspec understands it: with its lengths and bounds, without its patterns.

    >>> from pydantic import Field
    >>> _bare(Annotated[str, Field(min_length=2, description="long enough")])
    typing.Annotated[str, msgspec.Meta(min_length=2)]
    """
    if get_origin(kind) is not Annotated:
        return kind
    inner, *said = get_args(kind)
    known = [each for one in said for each in (getattr(one, "metadata", None) or (one,))]
    found = {name: bound for each in known for name in _BOUNDS if (bound := getattr(each, name, None)) is not None}
    return Annotated[inner, Meta(**found)] if found else inner
