"""`tollbook demo`, as a user runs it: real servers, real records, every cell of the acceptance table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
DEMO_S_MAX = 240  # of a machine that runs other tests as well; alone it takes a fraction of it, at most 60


def test_the_demo_shows_no_difference_and_leaves_nothing_running(tmp_path: Path) -> None:
    data = tmp_path / "demo"
    command = [sys.executable, "-m", "services.cli", "demo", "--data", str(data)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEMO_S_MAX, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
    assert "DIFFERS" not in ran.stdout
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
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
    assert "131 not billable" in ran.stdout
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(data) in " ".join(process.info["cmdline"] or [])
    ]
