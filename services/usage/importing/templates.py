"""FreeSWITCH's cdr_csv templates: a line with variables in it, read backwards.

The switch puts values into the template as they are: a quote inside a value is not escaped (``"${caller_id}"`` becomes
``""Ann" <1001>"``), so such a line is no CSV. It is read by the text between the variables instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_BILLING = "start_stamp answer_stamp end_stamp duration billsec hangup_cause uuid bleg_uuid"
_EXAMPLE = f"caller_id_name caller_id_number destination_number context {_BILLING} accountcode read_codec write_codec"
_ASTERISK = (
    "accountcode caller_id_number destination_number context caller_id channel_name bridge_channel last_app last_arg "
    "start_stamp answer_stamp end_stamp duration billsec hangup_cause amaflags uuid userfield"
)
_SQL = f"caller_id_name caller_id_number destination_number context {_BILLING}"
_OPENCDRRATE = "uuid signal_bond direction ani destination_number answer_stamp end_stamp billsec accountcode userfield network_addr"


def _quoted(names: str) -> str:
    return ",".join(f'"${{{name}}}"' for name in names.split())


# What FreeSWITCH 1.10 ships in cdr_csv.conf.xml. Three of them have a blank before the accountcode.
SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "sql": f'INSERT INTO cdr VALUES ({_quoted(_SQL)}, "${{accountcode}}");',
        "example": _quoted(_EXAMPLE),
        "snom": _quoted(_SQL) + ', "${accountcode}",' + _quoted(
            "read_codec write_codec sip_user_agent call_clientcode sip_rtp_rxstat sip_rtp_txstat sofia_record_file"
        ),
        "linksys": _quoted(f"{_EXAMPLE} sip_user_agent sip_p_rtp_stat"),
        "asterisk": _quoted(_ASTERISK),
        "opencdrrate": _quoted(_OPENCDRRATE)
        + ",\"${regex('${original_caller_id_name}'|^.)}\"," + _quoted("sip_gateway_name"),
    }
)  # fmt: skip


class Ambiguous(ValueError):
    """The line can be read in more than one way: a value holds the text that separates the variables."""


class NoMatch(ValueError):
    """The line was not written by this template. ``names`` is the variable before which it stops to fit."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Template:
    """``names`` between ``literals``: one literal more than names, the first and the last may be empty."""

    names: tuple[str, ...]
    literals: tuple[str, ...]

    def read(self, line: str) -> dict[str, str]:
        """The values of the variables; of a variable that stands twice the last. Raises `NoMatch`, `Ambiguous`.

        >>> parse('"${caller_id}","${uuid}"').read('""Ann" <1001>","a1"')
        {'caller_id': '"Ann" <1001>', 'uuid': 'a1'}
        """
        first, *between, last = self.literals
        if not line.startswith(first):
            raise NoMatch(self.names[0])
        end = len(line) - len(last)
        if not line.endswith(last) or end < len(first):
            raise NoMatch(self.names[-1])
        forward: list[tuple[int, int]] = []
        at = len(first)
        for name, literal in zip(self.names[1:], between, strict=True):
            found = line.find(literal, at, end)
            if found < 0:
                raise NoMatch(name)
            forward.append((at, found))
            at = found + len(literal)
        forward.append((at, end))
        # Found from behind the separators stand elsewhere exactly if there is another way to read the line.
        to = end
        for literal, (_, found) in zip(reversed(between), reversed(forward[:-1]), strict=True):
            to = line.rfind(literal, len(first), to)
            if to != found:
                raise Ambiguous
        return {name: line[start:stop] for name, (start, stop) in zip(self.names, forward, strict=True)}


def parse(text: str) -> Template:
    """The template in the text of ``cdr_csv.conf.xml``. Raises `ValueError` with the fix."""
    names: list[str] = []
    literals = [""]
    at = 0
    while at < len(text):
        if not text.startswith("${", at):
            literals[-1] += text[at]
            at += 1
            continue
        stop = _closing(text, at + 2)
        if names and not literals[-1]:
            raise ValueError(f"has nothing between ${{{names[-1]}}} and the next variable; separate them, by a comma")
        names.append(text[at + 2 : stop])
        literals.append("")
        at = stop + 1
    if not names:
        raise ValueError(f"is neither one of {', '.join(SHIPPED)} nor a text with ${{variables}}")
    return Template(tuple(names), tuple(literals))


def _closing(text: str, at: int) -> int:
    """The brace that closes the variable; an expression may hold variables of its own."""
    depth = 1
    for index in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError("has a variable that is not closed; add its }")
