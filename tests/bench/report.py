"""The table that people read and the JSON that programs read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One measurement. ``passed`` is None where no goal is set."""

    what: str
    goal: str
    measured: str
    value: float
    passed: bool | None
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)


def percentile(sorted_ms: Sequence[float], share: float) -> float:
    """The value below which this share of them lies.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (3.0, 4.0)
    """
    return sorted_ms[min(len(sorted_ms) - 1, int(len(sorted_ms) * share))]


def show(console: Console, rows: list[Row], used: dict[str, dict[str, float]] | None, problems: list[str]) -> None:
    """Print what was measured."""
    table = Table(title="make bench", show_lines=True)
    for heading in ("what", "goal", "measured", "", "how"):
        table.add_column(heading, justify="right" if heading in ("goal", "measured") else "left")
    words = {True: "[green]ok[/]", False: "[red]missed[/]", None: ""}
    for row in rows:
        table.add_row(row.what, row.goal, row.measured, words[row.passed], row.note)
    console.print(table)
    if used is not None:
        split = Table(title="processor time of the whole chain, microseconds an event")
        for heading in ("", "python", "postgres", "java"):
            split.add_column(heading, justify="left" if not heading else "right")
        for name, times in used.items():
            split.add_row(
                name, *(f"{times[key]:.1f}" if key in times else "" for key in ("python", "postgres", "java"))
            )
        split.add_row("sum", f"{sum(sum(times.values()) for times in used.values()):.1f}", "", "")
        console.print(split)
    for problem in problems:
        console.print(f"[red]wrong:[/] {problem}")


def write(
    path: Path, rows: list[Row], used: dict[str, dict[str, float]] | None, problems: list[str], seconds: float
) -> None:
    """The same as JSON, with the machine it was measured on."""
    document: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "seconds": round(seconds, 1),
        "rows": [asdict(row) for row in rows],
        "processor_us_per_event": used,
        "problems": problems,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
