"""`tollbook demo`, as a user runs it: real servers, real records, every cell of the acceptance table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

ROOT = Path(__file__).parents[2]
DEMO_S_MAX = 240  # of a machine that runs other tests as well; alone it takes a fraction of it, at most 60


def played(data: Path, *options: str) -> str:
    """What a play printed that showed no difference and left nothing running."""
    command = [sys.executable, "-m", "services.cli", "demo", "--data", str(data), *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEMO_S_MAX, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    assert "DIFFERS" not in ran.stdout
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(data) in " ".join(process.info["cmdline"] or [])
    ]
    return ran.stdout


def test_the_demo_shows_no_difference_and_leaves_nothing_running(tmp_path: Path) -> None:
    shown_by_it = played(tmp_path / "demo")
    lines = [" ".join(line.split()) for line in shown_by_it.splitlines()]
    for account in json.loads((ROOT / "deploy" / "demo" / "cast.json").read_text())["accounts"]:
        assert any(
            line.startswith(f"{account['account']} charges before T {account['expected']['before']}") for line in lines
        )
    for shown in (
        "charges 250 250 ok",
        "charges with the late one 251 251 ok",
        "invoice numbers drawn 6 6 ok",
        "all holds",
    ):
        assert shown in lines
    for happened in (
        "rated", "quarantined", "debited", "owed", "recharge", "recharged", "cut", "capped", "declined", "suspended",
        "restored", "replayed", "closed", "waiting", "duplicates", "reversed", "credited",
    ):  # fmt: skip
        assert any(line.split(" s ", 1)[-1].startswith(f"{happened} ") for line in lines), happened
    assert "131 not billable" in shown_by_it


@pytest.mark.faults
def test_recharges_on_a_moved_clock_are_capped_open_by_themselves_and_are_paused(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in played(tmp_path / "demo", "--play", "recharges").splitlines()]
    for shown in (
        "burst recharges 11 x settled 10.00 11 x settled 10.00 ok",
        "from the first to the last 24 h 24 h ok",
        "kiosk recharges 3 x declined 21.00, settled 21.00 3 x declined 21.00, settled 21.00 ok",
        "notices recharge_unknown recharge_unknown ok",
        "movements 15.00 + 50.00 - 20.00 = 45.00 15 + 50 - 20 = 45 ok",
        "all holds",
    ):
        assert shown in lines
