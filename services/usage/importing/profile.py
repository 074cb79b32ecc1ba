"""The switch profile: what an importer must be told about a switch before its records mean anything.

A JSON or TOML file. Source: domain, section 3.
"""

from __future__ import annotations

import json
import re
import tomllib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import phonenumbers
from phonenumbers import NumberParseException, ValidationResult
from pydantic import AfterValidator, Field, ValidationError, ValidationInfo

from contracts.cloudevents import Attribute
from contracts.sentences import first_problem
from contracts.words import E164, E164_PATTERN, Id
from services.kernel import period
from services.kernel.errors import InvalidInput
from services.usage.importing.parts import AsteriskColumns, FreeSwitch, MappedCsv, Part, Pattern

PROFILE_BYTES_MAX = 4 * 2**20  # some ten thousand numbers
CHANNEL_CHARS_MAX = 80  # as in the switches' own tables
NUMBERS_REMEMBERED_MAX = 65_536  # dialled numbers repeat; a remembered one costs a tenth of a parsed one

_SEPARATORS = str.maketrans("", "", " -().")
_DIALLED = re.compile(r"\+?[0-9]{1,32}", re.ASCII)
_E164 = re.compile(E164_PATTERN, re.ASCII)


def _zone(name: str) -> str:
    try:
        period.zone(name)
    except InvalidInput as error:
        raise ValueError(error.message) from None
    return name


def _country(code: str) -> str:
    if code not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f'{code!r} is no country with a number plan; use an ISO 3166 code such as "US"')
    return code


def _dial_prefix(digits: str) -> str:
    if re.fullmatch(r"[0-9]{1,15}", digits, re.ASCII) is None:
        raise ValueError('must be 1 to 15 digits, such as "011"')
    return digits


def _channel(name: str) -> str:
    if len(name) > CHANNEL_CHARS_MAX or re.fullmatch(r"[A-Za-z0-9_]+/[^\x00-\x20]+", name) is None:
        raise ValueError('must be a technology, a slash and a name, such as "PJSIP/thinQ" or "sofia/gateway/thinQ"')
    return name


Zone = Annotated[str, AfterValidator(_zone)]
Country = Annotated[str, AfterValidator(_country)]
DialPrefix = Annotated[str, AfterValidator(_dial_prefix)]
Channel = Annotated[str, AfterValidator(_channel)]


class Trunk(Part):
    """A channel that leads out of the switch: of Asterisk without the instance number, ``PJSIP/thinQ``; of FreeSWITCH a
    gateway or a profile, ``sofia/gateway/thinQ`` or ``sofia/external``."""

    channel: Channel
    prefix: DialPrefix | None = Field(None, description="What the switch puts before every number on this trunk")
    plus_missing: bool = Field(False, description="Numbers on this trunk are E.164 without their plus")

    def bare(self, sent: str) -> str:
        """A number that was sent to this trunk, without what the switch puts before it.

        >>> Trunk(channel="PJSIP/IDT", prefix="99901").bare("9990112485252160")
        '12485252160'
        """
        return sent.removeprefix(self.prefix or "")


class AccountCode(Part):
    """Which account a code is: ``code`` is a regular expression that must match the whole accountcode."""

    code: Pattern
    account: Id


def _some(trunks: tuple[Trunk, ...], known: ValidationInfo) -> tuple[Trunk, ...]:
    if not trunks and known.data.get("csv") is None:
        raise ValueError("must name at least one channel that leads out of the switch")
    return trunks


class SwitchProfile(Part):
    """A switch as an importer sees it. Of several codes that match, the first holds."""

    publisher: Id
    source: Attribute
    zone: Zone
    country: Country
    international_prefixes: tuple[DialPrefix, ...] = Field(strict=False)
    csv: MappedCsv | None = Field(None, description="The mapping of a CSV file of any make")
    trunks: Annotated[tuple[Trunk, ...], Field(strict=False), AfterValidator(_some)] = Field((), validate_default=True)
    internal: tuple[Pattern, ...] = Field(strict=False, default=())
    accounts: tuple[AccountCode, ...] = Field(strict=False, default=())
    numbers: dict[E164, Id] = Field(default_factory=dict, description="Our numbers and the accounts they belong to")
    asterisk: AsteriskColumns | None = Field(None, description="The mapping of cdr_custom, where that wrote the file")
    freeswitch: FreeSwitch | None = Field(None, description="How a FreeSWITCH writes; without it as it is shipped")

    @cached_property
    def tz(self) -> ZoneInfo:
        return period.zone(self.zone)

    @cached_property
    def _trunk_of_channel(self) -> dict[str, Trunk]:
        return {trunk.channel: trunk for trunk in self.trunks}

    @cached_property
    def _internal(self) -> re.Pattern[str] | None:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.internal)) if self.internal else None

    @cached_property
    def _codes(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(entry.code), entry.account) for entry in self.accounts)

    def trunk(self, channel: str) -> Trunk | None:
        """The trunk of a channel name such as ``PJSIP/thinQ-0000000a``, or ``DAHDI/i1/12485252160-a`` of the trunk ``DAHDI/i1``;
        None for any other channel."""
        name, dash, _ = channel.rpartition("-")
        return self.trunk_of_path(name) if dash else None

    def trunk_of_path(self, path: str) -> Trunk | None:
        """The trunk of a FreeSWITCH channel or dial string such as ``sofia/external/12485252160@203.0.113.7``: that of
        the longest beginning, up to a slash, that is a trunk."""
        while path:
            if (trunk := self._trunk_of_channel.get(path)) is not None:
                return trunk
            path = path.rpartition("/")[0]
        return None

    def is_internal(self, number: str) -> bool:
        return self._internal is not None and self._internal.search(number) is not None

    def account_of_code(self, code: str) -> str:
        """The account of an accountcode; a code without an entry is itself the account id (usage quarantines it)."""
        for pattern, account in self._codes:
            if pattern.fullmatch(code):
                return account
        return code

    def number_of_ours(self, number: str, trunk: Trunk | None) -> str | None:
        """The number in E.164 if it is one of ours, read by the country's rules or else by those of the trunk it came in on."""
        for rules in (None, trunk) if trunk is not None and trunk.plus_missing else (None,):
            if (ours := self.e164(number, rules)) in self.numbers:
                return ours
        return None

    def e164(self, number: str, trunk: Trunk | None = None) -> str | None:
        """The number in E.164, or None where it cannot be one. A trunk that leaves the plus out does so here too."""
        plus_missing = trunk is not None and trunk.plus_missing
        return _e164(number, self.country, self.international_prefixes, plus_missing)


@lru_cache(maxsize=NUMBERS_REMEMBERED_MAX)
def _e164(number: str, country: str, international_prefixes: tuple[str, ...], plus_missing: bool) -> str | None:
    dialled = number.translate(_SEPARATORS)
    if _DIALLED.fullmatch(dialled) is None:
        return None
    if not dialled.startswith("+"):
        prefix = next((prefix for prefix in international_prefixes if dialled.startswith(prefix)), None)
        if prefix is not None:
            dialled = f"+{dialled[len(prefix) :]}"
        elif plus_missing:
            dialled = f"+{dialled}"
    try:
        parsed = phonenumbers.parse(dialled, country)
    except NumberParseException:
        return None
    # Possible by length, not assigned: new number ranges must not wait for a newer number plan.
    if phonenumbers.is_possible_number_with_reason(parsed) != ValidationResult.IS_POSSIBLE:
        return None
    number = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    return number if _E164.match(number) else None  # some national plans go beyond the 15 digits of E.164


def read_profile(path: Path) -> SwitchProfile:
    """Reads a profile from a ``.json`` or ``.toml`` file. Raises `InvalidInput` naming the file, the field and the fix."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="profile") from None
    return parse_profile(data, path.name)


def parse_profile(data: bytes, name: str) -> SwitchProfile:
    """The profile in the bytes of a file; the ending of its name tells the format.

    >>> parse_profile(b'{"publisher": "detroit"}', "switch.json")
    Traceback (most recent call last):
    services.kernel.errors.InvalidInput: source: is missing in switch.json; add it
    """
    if len(data) > PROFILE_BYTES_MAX:
        raise InvalidInput(f"{name} is larger than {PROFILE_BYTES_MAX} bytes", field="profile")
    try:
        if name.endswith(".toml"):
            document: Any = tomllib.loads(data.decode("utf-8-sig"))
        elif name.endswith(".json"):
            document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_no_field_twice)
        else:
            raise InvalidInput(f"{name} is neither .json nor .toml; rename it to what it holds", field="profile")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} cannot be read: {error}", field="profile") from None
    try:
        return SwitchProfile.model_validate(document)
    except ValidationError as error:
        problem = first_problem(error)
        field = (problem.field or "profile").removesuffix(".[key]")
        if problem.type == "missing":
            message = f"is missing in {name}; add it"
        elif problem.type == "extra_forbidden":
            message = f"is no field of a switch profile; remove it from {name} or mend its spelling"
        else:
            message = f"{problem.sentence} (in {name})"
        raise InvalidInput(message, field=field) from None


def _no_field_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice; keep one")
    return fields
