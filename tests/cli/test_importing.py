"""The report of an import accounts for every row, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tollbook

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
FILE, PROFILE = str(DEMO / "asterisk_master.csv"), str(DEMO / "switch_profile.json")


async def test_a_dry_run_accounts_for_every_row_of_the_sample(tollbook: Tollbook) -> None:
    report = (await tollbook("import", FILE, "--profile", PROFILE, "--dry-run", "--output", "json")).json
    assert report["rows"] == report["published"] + report["internal"] + report["no_leg"] + report["refused"] == 1000
    assert (report["legs"], report["dry_run"]) == (413, True)
    assert report["refused"] == len(report["refusals"]) == sum(report["refused_by_code"].values())
    assert set(report["refusals"][0]) == {"line", "field", "code", "message"}


async def test_a_dry_run_says_so_and_names_the_first_refusals(tollbook: Tollbook) -> None:
    ran = await tollbook("import", FILE, "--profile", PROFILE, "--dry-run")
    assert ran.code == 0
    assert ran.out.startswith("1000 rows: 386 would be published, 572 internal, 15 no leg, 27 refused\n")
    assert "is no telephone number, and nobody answered" in ran.out


SAMPLE = (DEMO / "asterisk_master.csv").read_bytes().splitlines(keepends=True)
UNREADABLE, LEG, UNANSWERED = b"1115,1115\n", SAMPLE[1], SAMPLE[92]


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([UNREADABLE, UNREADABLE], 1),
        ([UNREADABLE, UNANSWERED], 1),
        ([UNREADABLE, LEG], 0),
        ([UNANSWERED], 0),
        ([], 0),
    ],
)
async def test_a_file_of_which_no_row_is_usable_is_exit_1(
    tollbook: Tollbook, tmp_path: Path, rows: list[bytes], code: int
) -> None:
    """Whoever imports by a script would not see that nothing was billed."""
    file = tmp_path / "records.csv"
    file.write_bytes(b"".join(rows))
    for output in ("table", "json"):
        ran = await tollbook("import", str(file), "--profile", PROFILE, "--dry-run", "--output", output)
        assert (ran.code, ran.err) == (code, "")
    assert ran.json["rows"] == len(rows)


async def test_a_file_of_which_every_row_is_internal_says_what_may_be_wrong(tollbook: Tollbook, tmp_path: Path) -> None:
    """A trunk that is misspelled in the profile, or new on the switch, would lose everything in silence."""
    file, misspelled = tmp_path / "records.csv", tmp_path / "switch.json"
    file.write_bytes(LEG)
    misspelled.write_text((DEMO / "switch_profile.json").read_text().replace("PJSIP/", "PJSP/"))
    ran = await tollbook("import", str(file), "--profile", str(misspelled), "--dry-run")
    assert ran.out.startswith("1 rows: 0 would be published, 1 internal")
    assert "note: not one call left the switch" in ran.out
    assert "not one call" not in (await tollbook("import", str(file), "--profile", PROFILE, "--dry-run")).out
