"""`tollbook import`: a switch's records to usage events, each acknowledged by the brokers before the file counts as done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from pydantic_core import to_json
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, plain, progress, show_json, show_rows
from services.cli.publishing import Publishing
from services.cli.reading import room
from services.cli.watching import Outcome, Stop, watch
from services.kernel.errors import InvalidInput, NotFound, Unavailable
from services.runtime.settings import Settings, load
from services.usage.estimating import Estimate
from services.usage.importing import (
    FORMATS,
    SELF_CLOSING,
    Importer,
    ImportReport,
    LegEvent,
    SwitchProfile,
    read_profile,
)

REGISTRY_S_MAX = 60.0
REGISTRY_S_TRIED = 3.0  # of a dry run, which goes on without
STILL_S = 10.0
REFUSALS_SHOWN = 20
LOOK_S = 0.05
SHIFT_DAYS_MAX = 36_500  # a century: records of no switch are older


@asynchronous
async def import_file(
    profile: Annotated[Path, typer.Option(help="the switch profile, .json or .toml")],
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="the switch's records")] = None,
    format_: Annotated[str, typer.Option("--format", help=f"one of: {', '.join(FORMATS)}")] = "asterisk",
    shift_days: Annotated[
        int,
        typer.Option(
            min=-SHIFT_DAYS_MAX,
            max=SHIFT_DAYS_MAX,
            help="move every time by whole days (old records in demonstrations)",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="publish nothing; say what would be billed to each account")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--watch", metavar="FOLDER", help="import every finished file of a folder, until SIGTERM"),
    ] = None,
    still_s: Annotated[
        float,
        typer.Option("--still", min=0.1, max=86_400, help="seconds without a change after which a file is finished"),
    ] = STILL_S,
    output: Output = Format.table,
) -> None:
    """Publish the calls in a switch's file, or in every file of a folder; the report accounts for every row."""
    switch = read_profile(profile)
    importer(format_)
    if (file is None) == (folder is None):
        raise InvalidInput("name either a file or, by --watch, a folder", field="FILE")
    settings = load()
    if folder is not None:
        if dry_run:
            raise InvalidInput("cannot be tried on a folder; name a file", field="dry-run")
        await _watch(settings, folder, switch, format_, still_s, shift_days, output)
    elif file is not None:
        await _import(settings, file, switch, format_, shift_days, dry_run, output)


async def _watch(
    settings: Settings,
    folder: Path,
    switch: SwitchProfile,
    format_: str,
    still_s: float,
    shift_days: int,
    output: Format,
) -> None:
    def tell(outcome: Outcome) -> None:
        if output is Format.json:
            typer.echo(to_json(plain(outcome)))
            return
        lines = in_words(outcome.report) if outcome.report is not None else [f"put aside: {outcome.reason}"]
        for line in (f"{outcome.file}: {lines[0]}", *lines[1:]):
            console.print(line, markup=False)

    await may_publish(settings, switch)
    await registry_known(settings)
    stop = Stop()
    with stop.by_signals():
        await watch(
            settings, folder, switch, importer(format_), stop, still_s=still_s, whole_lines=format_ not in SELF_CLOSING,
            shift_days=shift_days, tell=tell, warn=lambda line: typer.echo(line, err=True),
        )  # fmt: skip


async def _import(
    settings: Settings, file: Path, switch: SwitchProfile, format_: str, shift_days: int, dry_run: bool, output: Format
) -> None:
    if not dry_run:
        await may_publish(settings, switch)
        await registry_known(settings)
    size = _size(file)
    tried = None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True, disable=not progress.is_terminal) as bar:
        task = bar.add_task(file.name, total=size)

        def moved(report: ImportReport) -> None:
            bar.update(task, completed=report.bytes_read)

        if dry_run:
            tried = await try_records(settings, file, switch, format_, shift_days=shift_days, moved=moved)
            report = tried.report
        else:
            report = await import_records(
                settings, file, switch, format_name=format_, shift_days=shift_days, moved=moved
            )
    if output is Format.json:
        facts = plain(report) | {"legs": report.legs, "dry_run": dry_run}
        show_json(facts | (tried.facts() if tried is not None else {}))
    else:
        for line in in_words(report, dry_run=dry_run):
            console.print(line, markup=False)
        if report.rows == report.internal > 0:
            console.print(
                "note: not one call left the switch; if that is wrong, no channel of the file is among the profile's trunks, or"
                " its internal patterns match every number",
                markup=False,
            )
        if tried is not None:
            tried.show()
    if report.is_unusable:
        raise typer.Exit(1)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def importer(format_name: str) -> Importer:
    """The importer of a format by its name."""
    read = FORMATS.get(format_name)
    if read is None:
        raise InvalidInput(f"{format_name!r} is no format; use one of {', '.join(FORMATS)}", field="format")
    return read


async def may_publish(settings: Settings, profile: SwitchProfile) -> None:
    """Refuses a profile whose publisher is not registered, or whose source is none of its: every event would be quarantined."""
    from services.groups import api

    async with room("groups", settings) as groups:
        publisher = next(
            (each for each in await api.publishers(groups) if each.publisher_id == profile.publisher), None
        )
    if publisher is None:
        raise NotFound(
            f"{profile.publisher} is not registered; register it by `tollbook org publisher`, or mend the profile: nothing was"
            " published",
            field="publisher",
        )
    if profile.source not in publisher.sources:
        raise InvalidInput(
            f"{profile.source} is none of {profile.publisher} ({', '.join(publisher.sources)[:200]}); add it by `tollbook org"
            " change-publisher`, or mend the profile: nothing was published",
            field="source",
        )


async def registry_known(settings: Settings, *, timeout_s: float = REGISTRY_S_MAX) -> None:
    """Waits until usage knows the registry as it is now, so that nobody who is registered is unknown to it."""
    from services.groups import api as groups_api
    from services.usage import api as usage_api

    async with room("groups", settings) as groups, room("usage", settings) as usage:
        marks = await groups_api.marks(groups)
        give_up = time.monotonic() + timeout_s
        while not await _reached(usage, {(m.link, m.topic, m.partition): m.last_seq for m in marks}, usage_api):
            if time.monotonic() > give_up:
                raise Unavailable(
                    f"does not know the newest of the registry after {timeout_s:.0f} s; start it by `tollbook up` or "
                    "`tollbook run usage`, then import again: nothing was published",
                    field="usage",
                )
            await asyncio.sleep(LOOK_S)


async def _reached(usage: AsyncEngine, marks: dict[tuple[str, str, int], int], api: Any) -> bool:
    read = {topic.name for topic in api.REGISTRY_TOPICS}
    received = {(m.link, m.topic, m.partition): m.last_seq for m in await api.registry_received(usage)}
    return all(received.get(place, 0) >= last_seq for place, last_seq in marks.items() if place[1] in read)


async def import_records(
    settings: Settings,
    file: Path,
    profile: SwitchProfile,
    *,
    format_name: str = "asterisk",
    shift_days: int = 0,
    moved: Callable[[ImportReport], None] = lambda report: None,
) -> ImportReport:
    """Publishes the events of a file and returns when every one of them is acknowledged by the brokers (acks=all).

    `Unavailable` when one is not: then the file is not done. It can be imported again, as every event keeps its id.
    """
    report = ImportReport()
    with _open(file) as records:
        events = importer(format_name)(records, profile, report, shift_days=shift_days)
        async with Publishing(settings, profile.publisher) as publishing:
            for event in events:
                if await publishing.send(event):
                    moved(report)
            await publishing.acknowledged()
            moved(report)
    return report


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}", field="FILE") from None


@dataclass(frozen=True, slots=True)
class Tried:
    """A dry run: the report, what would be billed if usage could be asked, and what to know about it."""

    report: ImportReport
    estimate: Estimate | None
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """For programs: ``accounts`` is null where nothing could be priced."""
        if self.estimate is None:
            return {"accounts": None, "quarantined": None, "notes": self.notes}
        accounts = [
            {name: value for name, value in plain(each).items() if name != "amount_nano"} | {"amount": each.amount}
            for each in self.estimate.accounts
        ]
        return {"accounts": accounts, "quarantined": self.estimate.quarantined, "notes": self.notes}

    def show(self) -> None:
        """For people."""
        if self.estimate is not None:
            show_rows(
                [
                    {
                        "account": each.account_id, "legs": each.legs, "billed": each.billed_s,
                        "amount": each.amount if each.currency else "", "currency": each.currency,
                        "free": each.not_billable, "repeats": each.repeats, "waiting": each.waiting,
                        "quarantined": ", ".join(f"{n} x {reason}" for reason, n in sorted(each.quarantined.items())),
                    }
                    for each in self.estimate.accounts
                ],
                {"account": "account", "legs": "legs", "billed": "seconds billed", "amount": "amount",
                 "currency": "", "free": "not billable", "repeats": "counted before", "waiting": "waiting",
                 "quarantined": "would be quarantined"},
                Format.table,
                empty="nothing would be billed",
                right=("legs", "billed", "amount", "free", "repeats", "waiting"),
            )  # fmt: skip
            for each in self.estimate.quarantined[:REFUSALS_SHOWN]:
                where = f"{each.field}: " if each.field else ""
                console.print(
                    f"  {each.reason}, {each.account_id}, event {each.event_id}: {where}{each.message}", markup=False
                )
            more = sum(sum(each.quarantined.values()) for each in self.estimate.accounts) - REFUSALS_SHOWN
            if more > 0:
                console.print(f"  and {more} more that would be quarantined", markup=False)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)


async def try_records(
    settings: Settings,
    file: Path,
    profile: SwitchProfile,
    format_name: str = "asterisk",
    *,
    shift_days: int = 0,
    moved: Callable[[ImportReport], None] = lambda report: None,
) -> Tried:
    """Reads a file, and asks usage what would be billed for it. Publishes nothing; without servers it only reads."""
    from services.usage import api as usage_api

    read = importer(format_name)

    def events(records: BinaryIO, report: ImportReport) -> Iterator[LegEvent]:
        for event in read(records, profile, report, shift_days=shift_days):
            moved(report)
            yield event

    notes: list[str] = []
    try:
        report = ImportReport()
        with _open(file) as records:
            async with room("usage", settings) as usage:
                await usage_api.registry_received(usage)  # before anything is read: whether it can be asked
                try:
                    await registry_known(settings, timeout_s=REGISTRY_S_TRIED)
                except Unavailable:
                    notes.append("usage does not know the newest of the registry: who is new there may seem unknown")
                estimate = await usage_api.estimate(usage, profile.publisher, events(records, report))
        if estimate.parts > 1:
            notes.append(
                f"the file was tried in {estimate.parts} parts; what is priced by tiers begins in each where it stands now"
            )
        return Tried(report, estimate, tuple(notes))
    except (Unavailable, NotFound) as error:
        notes = [f"not priced, because usage cannot be asked: {error}"]
    report = ImportReport()
    with _open(file) as records:
        for _ in events(records, report):
            pass
    return Tried(report, None, tuple(notes))


def in_words(report: ImportReport, *, dry_run: bool = False) -> list[str]:
    """The report for people: every row accounted for."""
    done = "would be published" if dry_run else "published and acknowledged"
    lines = [
        f"{report.rows} rows: {report.published} {done}, {report.internal} internal, {report.no_leg} no leg, "
        f"{report.refused} refused"
    ]
    lines += [f"  {count} x {code}" for code, count in sorted(report.refused_by_code.items())]
    lines += [f"  {refusal}" for refusal in report.refusals[:REFUSALS_SHOWN]]
    if report.refused > REFUSALS_SHOWN:
        lines.append(f"  and {report.refused - REFUSALS_SHOWN} more; --output json names up to {len(report.refusals)}")
    return lines
