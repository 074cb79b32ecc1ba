"""What a switch profile says, in words: how each format would be read by it, and what in it can have no effect."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType

from services.usage.importing.parts import CHANNEL_VARIABLES, PEER_VARIABLES, FreeSwitch
from services.usage.importing.profile import SwitchProfile
from services.usage.importing.templates import SHIPPED

_SIGN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)  # of a regular expression
_INSTANCE = re.compile(r"-[0-9a-f]{8}$")  # what Asterisk puts behind the name of an endpoint


@dataclass(frozen=True, slots=True)
class Understood:
    """A valid profile as the importers read it. ``formats`` says how each would be read, or what it lacks."""

    publisher: str
    source: str
    zone: str
    country: str
    international_prefixes: tuple[str, ...]
    trunks: tuple[str, ...]
    internal: tuple[str, ...]
    accounts: tuple[str, ...]
    numbers: int
    formats: dict[str, str]
    warnings: tuple[str, ...]


def understood(profile: SwitchProfile) -> Understood:
    """What a profile means. It is valid; ``warnings`` name what is probably not meant, each with its field."""
    return Understood(
        publisher=profile.publisher,
        source=profile.source,
        zone=profile.zone,
        country=profile.country,
        international_prefixes=profile.international_prefixes,
        trunks=tuple(
            trunk.channel
            + (f", {trunk.prefix} before each number" if trunk.prefix else "")
            + (", numbers without their plus" if trunk.plus_missing else "")
            for trunk in profile.trunks
        ),
        internal=profile.internal,
        accounts=tuple(f"{entry.code} is {entry.account}" for entry in profile.accounts),
        numbers=len(profile.numbers),
        formats={
            "asterisk": _asterisk(profile),
            "asterisk-realtime": "columns by name, from the header row",
            "freeswitch-csv": _freeswitch_csv(profile.freeswitch or FreeSwitch()),
            "freeswitch-json": _freeswitch_json(profile.freeswitch or FreeSwitch()),
            "csv": _csv(profile),
        },
        warnings=tuple(_warnings(profile)),
    )


def _asterisk(profile: SwitchProfile) -> str:
    if profile.asterisk is None:
        return "Master.csv of cdr_csv, 16 to 21 columns"
    return f"cdr_custom, {len(profile.asterisk.columns)} columns: {', '.join(profile.asterisk.columns)}"


def _freeswitch_csv(part: FreeSwitch) -> str:
    if lacks := part.lacks():
        return f"cannot be read: the template {lacks}"
    template = f"the shipped template {part.template}" if part.template in SHIPPED else "a template of your own"
    there = set(part.columns.names)
    channels, peers = there.intersection(CHANNEL_VARIABLES), there.intersection(PEER_VARIABLES)
    if part.legs == "ab":
        return f"{template}; both legs, each judged by its own channel"
    came_in = "channel is a trunk" if channels else f"context is {' or '.join(part.inbound_contexts)}"
    went_out = "bridged to a trunk" if peers else "any other number that is not internal"
    return f"{template}; calling legs only: inbound if the {came_in}, outbound if {went_out}"


def _freeswitch_json(part: FreeSwitch) -> str:
    if part.legs == "a":
        return "calling legs only: inbound if the channel is a trunk, outbound if bridged to one"
    return "both legs, each judged by its own channel"


def _csv(profile: SwitchProfile) -> str:
    if profile.csv is None:
        return "cannot be read: the profile has no part csv"
    fields = ", ".join(f"{field} from {column}" for field, column in profile.csv.columns.used().items())
    return f"{fields}; times {profile.csv.time}, seconds {profile.csv.seconds}"


def _matches_anywhere(pattern: str) -> bool:
    """Whether some part of a pattern is not held to the beginning of the number.

    >>> _matches_anywhere("^911|112"), _matches_anywhere("^(911|112)$"), _matches_anywhere("(^911|^112)$")
    (True, False, False)
    """
    held = [False]  # by group, from the outermost to the one in hand
    for sign in _SIGN.findall(pattern):
        if sign in ("^", r"\A"):
            held[-1] = True
        elif sign == "(":
            held.append(held[-1])
        elif sign == ")":
            inner = held.pop()
            held[-1] = held[-1] or inner
        elif sign == "|":
            held[-1] = len(held) > 1 and held[-2]
        elif not held[-1] and sign not in "?:":
            return True
    return False


def _ordinary_numbers(profile: SwitchProfile) -> Iterator[str]:
    """Numbers of the country as people dial them and switches write them."""
    for kind in (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE):
        example = phonenumbers.example_number_for_type(profile.country, kind)
        if example is None:
            continue
        yield re.sub("[^0-9]", "", phonenumbers.format_number(example, PhoneNumberFormat.NATIONAL))
        national = phonenumbers.national_significant_number(example)
        for prefix in ("", "+", *profile.international_prefixes):
            yield f"{prefix}{example.country_code}{national}"
        yield national


def _warnings(profile: SwitchProfile) -> list[str]:
    found = []
    for channel, count in Counter(trunk.channel for trunk in profile.trunks).items():
        if count > 1:
            found.append(f"trunks: {channel} stands {count} times, and the last holds; keep one")
    ordinary = tuple(_ordinary_numbers(profile))
    loose = [
        index
        for index, pattern in enumerate(profile.internal)
        if _matches_anywhere(pattern) or any(re.search(pattern, number) for number in ordinary)
    ]
    for index in loose:
        found.append(
            f"internal.{index}: {profile.internal[index]} holds for ordinary numbers too, and calls to those would not be billed;"
            " make it more exact, such as ^911$"
        )
    for trunk in profile.trunks:
        if instance := _INSTANCE.search(trunk.channel):
            found.append(f"trunks: {trunk.channel} looks like one call's channel; leave {instance[0]} out")
    for index, entry in enumerate(profile.accounts):
        earlier = [number for number, other in enumerate(profile.accounts[:index]) if other.code in (".*", entry.code)]
        if earlier:
            found.append(
                f"accounts.{index}.code: is never asked, since accounts.{earlier[0]} matches it first; put it before that one"
            )
    for number in profile.numbers:
        if profile.e164(number) is None:
            found.append(f"numbers.{number}: cannot be a telephone number by its length; check it")
        elif not loose and (profile.is_internal(number) or profile.is_internal(number.removeprefix("+"))):
            found.append(
                f"internal: a pattern matches {number}, which is a number of yours; make the pattern more exact"
            )
    if not profile.numbers:
        found.append("numbers: has none of your numbers, so no inbound leg finds its account; add them")
    return found
