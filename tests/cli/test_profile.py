"""`tollbook profile check`: what a switch profile means, and what is wrong with it, before anything is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.usage.importing import FORMATS
from tests.cli.conftest import Tollbook

DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "switch_profile.json"


def written(folder: Path, **changes: Any) -> str:
    file = folder / "switch.json"
    file.write_text(json.dumps(json.loads(DEMO.read_bytes()) | changes))
    return str(file)


async def test_a_valid_profile_says_what_it_means_for_every_format(tollbook: Tollbook) -> None:
    said = (await tollbook("profile", "check", str(DEMO), "--output", "json")).json
    assert (said["publisher"], said["zone"], said["numbers"], said["warnings"]) == ("detroit", "America/Detroit", 8, [])
    assert said["trunks"][3] == "PJSIP/IDT, 99901 before each number, numbers without their plus"
    assert said["accounts"][5] == "22.. is field"
    assert said["formats"].keys() == FORMATS.keys()
    assert said["formats"]["csv"] == "cannot be read: the profile has no part csv"


async def test_people_read_it_as_lines(tollbook: Tollbook) -> None:
    ran = await tollbook("profile", "check", str(DEMO))
    assert ran.code == 0
    assert "--format asterisk: Master.csv of cdr_csv, 16 to 21 columns\n" in ran.out
    assert ran.out.endswith("switch_profile.json is a valid switch profile\n")


@pytest.mark.parametrize(
    ("changes", "format_name", "meaning"),
    [
        ({}, "freeswitch-csv", "the shipped template example; calling legs only: inbound if the context is public, outbound if any other number that is not internal"),
        ({"freeswitch": {"template": "asterisk"}}, "freeswitch-csv", "the shipped template asterisk; calling legs only: inbound if the channel is a trunk, outbound if bridged to a trunk"),
        ({"freeswitch": {"legs": "ab"}}, "freeswitch-csv", "cannot be read: the template has no ${direction}; add it to the template of the switch and to this one"),
        ({"freeswitch": {"template": "${uuid},${direction},${channel_name},${destination_number},${end_epoch},${billsec},${accountcode}", "legs": "ab"}}, "freeswitch-csv", "a template of your own; both legs, each judged by its own channel"),
        ({"freeswitch": {"legs": "a"}}, "freeswitch-json", "calling legs only: inbound if the channel is a trunk, outbound if bridged to one"),
        ({"csv": {"columns": {"id": 1, "called": "To", "billable": 3, "ended_at": 4}, "direction": "outbound"}}, "csv", "id.0 from 1, called from To, billable from 3, ended_at from 4; times iso, seconds s"),
    ],
)  # fmt: skip
async def test_how_a_format_would_be_read(
    tollbook: Tollbook, tmp_path: Path, changes: dict[str, Any], format_name: str, meaning: str
) -> None:
    said = (await tollbook("profile", "check", written(tmp_path, **changes), "-o", "json")).json
    assert said["formats"][format_name] == meaning


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"trunks": [{"channel": "PJSIP/a"}, {"channel": "PJSIP/a"}]}, "trunks: PJSIP/a stands 2 times, and the last holds; keep one"),
        ({"accounts": [{"code": ".*", "account": "a"}, {"code": "7", "account": "b"}]}, "accounts.1.code: is never asked, since accounts.0 matches it first; put it before that one"),
        ({"numbers": {}}, "numbers: has none of your numbers, so no inbound leg finds its account; add them"),
        ({"numbers": {"+12345": "a"}}, "numbers.+12345: cannot be a telephone number by its length; check it"),
        ({"internal": [r"^\*", "911"]}, "internal.1: 911 holds for ordinary numbers too, and calls to those would not be billed; make it more exact, such as ^911$"),
        ({"internal": [r"^\d{3,5}"]}, r"internal.0: ^\d{3,5} holds for ordinary numbers too, and calls to those would not be billed; make it more exact, such as ^911$"),
        ({"internal": ["^911|112"]}, "internal.0: ^911|112 holds for ordinary numbers too, and calls to those would not be billed; make it more exact, such as ^911$"),
        ({"internal": [r"^\+"]}, r"internal.0: ^\+ holds for ordinary numbers too, and calls to those would not be billed; make it more exact, such as ^911$"),
        ({"internal": ["^(911|112)$", "^0$", "^0[1-9]"], "country": "DE", "numbers": {"+4930123456": "a"}}, "internal.2: ^0[1-9] holds for ordinary numbers too, and calls to those would not be billed; make it more exact, such as ^911$"),
        ({"trunks": [{"channel": "PJSIP/VIOrig-0000000e"}]}, "trunks: PJSIP/VIOrig-0000000e looks like one call's channel; leave -0000000e out"),
        ({"internal": [r"^(1?248430)\d+$"], "numbers": {"+12484304060": "a"}}, "internal: a pattern matches +12484304060, which is a number of yours; make the pattern more exact"),
    ],
)  # fmt: skip
async def test_what_is_probably_not_meant_is_a_warning(
    tollbook: Tollbook, tmp_path: Path, changes: dict[str, Any], warning: str
) -> None:
    ran = await tollbook("profile", "check", written(tmp_path, **changes), "-o", "json")
    assert (ran.code, ran.json["warnings"]) == (0, [warning])
    shown = await tollbook("profile", "check", written(tmp_path, **changes))
    assert "warning: " in shown.out


async def test_a_wrong_profile_is_exit_2_with_field_and_fix(tollbook: Tollbook, tmp_path: Path) -> None:
    ran = await tollbook("profile", "check", written(tmp_path, csv={"columns": {"id": 1}}))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "csv.columns.called: is missing in switch.json; add it\n"
