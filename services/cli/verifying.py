"""`tollbook verify`: runs the auditor and shows what it looked at."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, progress, show_json
from services.cli.verify import Report, run
from services.runtime.settings import load


@asynchronous
async def verify(
    period: Annotated[str | None, typer.Option(help="this month only, such as 2026-10; else everything")] = None,
    output: Output = Format.table,
) -> None:
    """Prove from what is stored and what is in Kafka that nothing is lost, twice or wrong; exit 1 when anything differs."""
    with progress.status("verifying") as status:
        report = await run(load(), period, tell=lambda line: status.update(escape(line)))
    if output is Format.json:
        show_json(
            {
                "ok": report.ok,
                "period": report.period,
                "checks": [
                    {"name": check.name, "ok": check.ok, "looked_at": check.looked_at, "differences": check.differences}
                    for check in report.checks
                ],
                "facts": report.facts,
            }
        )
    else:
        show_report(report)
    if not report.ok:
        raise typer.Exit(1)


def show_report(report: Report) -> None:
    """Each check on a line, with what differs below it; then the facts."""
    for check in report.checks:
        console.print(f"{'ok' if check.ok else 'DIFFERS':<8} {check.name}: {check.looked_at}", markup=False)
        for difference in check.differences:
            console.print(f"         {difference}", markup=False)
    for name, fact in report.facts.items():
        console.print(f"         {name}: {fact}", markup=False)
    console.print("all holds" if report.ok else "verification failed")
