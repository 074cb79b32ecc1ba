"""Which country a telephone number belongs to, as prefixes: several countries share +1, +7, +39, +44 and others.

The number-plan data (`phonenumbers`) states the valid numbers of a country as regular expressions. They are read digit by
digit: a prefix is decided as soon as only one country still has numbers behind it. Pure; the result for a calling code
is computed once per process. Source: domain, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumberDesc

NATIONAL_DIGITS_MAX = 7  # today's plans are decided within six (+61) or five (+44); the rest is for plans to come
_DIGITS = tuple(range(10))
_ALL_DIGITS = 0b11_1111_1111


@dataclass(frozen=True, slots=True)
class NumberBlock:
    """All numbers behind one prefix. ``countries[0]`` is whom the number plan gives them to; the others share them.

    ``settled`` is False when numbers of several countries lie mixed behind the longest prefix that is looked at.
    """

    prefix: str
    countries: tuple[str, ...]
    settled: bool = True


# --- the patterns of a number plan, as the set of digit strings that may still follow ---------------------------------


class _Rest:
    """What may still follow: one node of a pattern. Equal nodes are the same object, so hashing is by identity."""

    __slots__ = ("digits", "ends", "first", "options", "then")

    def __init__(
        self,
        ends: bool,
        digits: int = 0,
        first: _Rest | None = None,
        then: _Rest | None = None,
        options: frozenset[_Rest] = frozenset(),
    ) -> None:
        self.ends = ends  # whether the empty string is one of the strings
        self.digits = digits
        self.first = first
        self.then = then
        self.options = options


_NOTHING = _Rest(False)  # no string at all
_END = _Rest(True)  # the empty string only
_ANYTHING = _Rest(True)  # every string: what follows leading digits that are decisive


@cache
def _digit(mask: int) -> _Rest:
    return _Rest(False, digits=mask)


@cache
def _sequence(first: _Rest, then: _Rest) -> _Rest:
    if first is _NOTHING or then is _NOTHING:
        return _NOTHING
    if first is _END:
        return then
    if then is _END:
        return first
    return _Rest(first.ends and then.ends, first=first, then=then)


@cache
def _one_of(options: frozenset[_Rest]) -> _Rest:
    return _Rest(any(option.ends for option in options), options=options)


def _either(*options: _Rest) -> _Rest:
    flat: set[_Rest] = set()
    for option in options:
        flat |= option.options or {option}
    flat.discard(_NOTHING)
    if _ANYTHING in flat:
        return _ANYTHING
    if len(flat) <= 1:
        return flat.pop() if flat else _NOTHING
    return _one_of(frozenset(flat))


@cache
def _after(rest: _Rest, digit: int) -> _Rest:
    """What may follow once this digit was read."""
    if rest is _ANYTHING:
        return _ANYTHING
    if rest.digits:
        return _END if rest.digits >> digit & 1 else _NOTHING
    if rest.options:
        return _either(*(_after(option, digit) for option in rest.options))
    if rest.first is None or rest.then is None:
        return _NOTHING
    read = _sequence(_after(rest.first, digit), rest.then)
    return _either(read, _after(rest.then, digit)) if rest.first.ends else read


@cache
def _covers(wide: _Rest, narrow: _Rest) -> bool:
    """Whether every string of ``narrow`` is a string of ``wide``."""
    if narrow is _NOTHING or wide is narrow or wide is _ANYTHING:
        return True
    if wide is _NOTHING or narrow is _ANYTHING or (narrow.ends and not wide.ends):
        return False
    return all(_covers(_after(wide, digit), _after(narrow, digit)) for digit in _DIGITS)


class _Reader:
    """Reads the dialect in which number plans are written: digits, ``\\d``, ``[..]``, ``(?:..)``, ``|``, ``?``, ``{n,m}``."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def read(self) -> _Rest:
        rest = self._alternatives()
        if self.at != len(self.pattern):
            raise self._unknown()
        return rest

    def _unknown(self) -> ValueError:
        return ValueError(f"number-plan pattern not understood at {self.at}: {self.pattern}")

    def _next_is(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        if found:
            self.at += len(text)
        return found

    def _alternatives(self) -> _Rest:
        options = [self._row()]
        while self._next_is("|"):
            options.append(self._row())
        return _either(*options)

    def _row(self) -> _Rest:
        parts: list[_Rest] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self._repeated(self._atom()))
        row = _END
        for part in reversed(parts):
            row = _sequence(part, row)
        return row

    def _atom(self) -> _Rest:
        if self._next_is("(?:") or self._next_is("("):
            inner = self._alternatives()
            if not self._next_is(")"):
                raise self._unknown()
            return inner
        if self._next_is("\\d"):
            return _digit(_ALL_DIGITS)
        if self._next_is("["):
            end = self.pattern.index("]", self.at)
            chars, self.at = self.pattern[self.at : end], end + 1
            mask, index = 0, 0
            while index < len(chars):
                last = index + 2 if chars[index + 1 : index + 2] == "-" else index
                for value in range(int(chars[index]), int(chars[last]) + 1):
                    mask |= 1 << value
                index = last + 1
            return _digit(mask)
        char = self.pattern[self.at]
        if char not in "0123456789":
            raise self._unknown()
        self.at += 1
        return _digit(1 << int(char))

    def _repeated(self, atom: _Rest) -> _Rest:
        if self._next_is("?"):
            return _either(atom, _END)
        if not self._next_is("{"):
            return atom
        end = self.pattern.index("}", self.at)
        low, _, high = self.pattern[self.at : end].partition(",")
        self.at = end + 1
        rest = _END
        for _ in range(int(high or low) - int(low)):
            rest = _either(_END, _sequence(atom, rest))
        for _ in range(int(low)):
            rest = _sequence(atom, rest)
        return rest


# --- the countries of a calling code ----------------------------------------------------------------------------------


@cache
def _longest(rest: _Rest) -> int:
    """The most digits that may still follow."""
    if rest.digits:
        return 1
    if rest.options:
        return max(_longest(option) for option in rest.options)
    return 0 if rest.first is None or rest.then is None else _longest(rest.first) + _longest(rest.then)


def _shortest_number(country: str) -> int:
    plan = PhoneMetadata.metadata_for_region(country)
    lengths = plan.general_desc.possible_length if plan is not None and plan.general_desc is not None else ()
    return min(lengths, default=0)


def _numbers_of(country: str, digits_min: int) -> _Rest:
    """The national numbers of a country; all that start with its leading digits where the plan states those.

    Numbers of fewer than ``digits_min`` digits are left out: Canada's 310 xxxx can be dialled only inside Canada, and
    would hide the area code 310 of the United States.
    """
    plan = PhoneMetadata.metadata_for_region(country)
    if plan is None:
        return _NOTHING
    if plan.leading_digits:
        return _sequence(_Reader(plan.leading_digits).read(), _ANYTHING)
    kinds: tuple[PhoneNumberDesc | None, ...] = (
        plan.fixed_line, plan.mobile, plan.toll_free, plan.premium_rate, plan.shared_cost, plan.personal_number,
        plan.voip, plan.pager, plan.uan, plan.voicemail,
    )  # fmt: skip
    patterns = (kind.national_number_pattern for kind in kinds if kind is not None)
    numbers = _either(*(_Reader(pattern).read() for pattern in patterns if pattern and pattern != "NA"))
    return _either(*(option for option in numbers.options or {numbers} if _longest(option) >= digits_min))


def _blocks(prefix: str, digits_left: int, claims: tuple[tuple[str, _Rest], ...]) -> Iterator[NumberBlock]:
    """Splits the numbers behind a prefix until each block is decided. ``claims`` stand in the plan's order."""
    alive: list[tuple[str, _Rest]] = []
    for country, rest in claims:
        if rest is _NOTHING:
            continue
        alive.append((country, rest))
        if rest is _ANYTHING:  # leading digits decide: countries later in the plan's order have no say
            break
    if not alive:
        return
    countries = tuple(country for country, _ in alive)
    if all(_covers(alive[0][1], rest) for _, rest in alive[1:]):
        yield NumberBlock(prefix, countries)
    elif digits_left == 0:
        yield NumberBlock(prefix, countries, settled=False)
    else:
        for digit in _DIGITS:
            after = tuple((country, _after(rest, digit)) for country, rest in alive)
            yield from _blocks(f"{prefix}{digit}", digits_left - 1, after)


@cache
def number_blocks(calling_code: int) -> tuple[NumberBlock, ...]:
    """The blocks of one calling code, each with the country whose numbers they are. A number in no block is in no plan.

    >>> number_blocks(7)[0], number_blocks(49)
    (NumberBlock(prefix='+73', countries=('RU',), settled=True), (NumberBlock(prefix='+49', countries=('DE',), settled=True),))
    """
    countries = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(calling_code, ())
    if len(countries) == 1:
        return (NumberBlock(f"+{calling_code}", tuple(countries)),)
    digits_min = _shortest_number(countries[0]) if countries else 0  # of the main country
    claims = tuple((country, _numbers_of(country, digits_min)) for country in countries)
    return tuple(_blocks(f"+{calling_code}", NATIONAL_DIGITS_MAX, claims))


def calling_code_of(country: str) -> int | None:
    """The calling code of an ISO 3166 country; None for one that is in no number plan, such as the dissolved AN.

    >>> calling_code_of("KZ"), calling_code_of("AN")
    (7, None)
    """
    return phonenumbers.country_code_for_region(country) or None
