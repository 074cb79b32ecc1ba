"""`tollbook import`: a switch's records to usage events, each acknowledged by the brokers before the file counts as done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from contracts.topics import USAGE_EVENTS, USAGE_REJECTIONS
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, plain, progress, show_json
from services.cli.reading import room
from services.kernel.errors import InvalidInput, Unavailable
from services.runtime.broker import ensure_topics, open_producer
from services.runtime.settings import Settings, load
from services.usage.importing import FORMATS, ImportReport, SwitchProfile, read_profile

REGISTRY_S_MAX = 60.0
UNACKNOWLEDGED_MAX = 5_000  # records on their way at once; bounds the memory of an import of any size
REFUSALS_SHOWN = 20
LOOK_S = 0.05


@asynchronous
async def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the switch's records")],
    profile: Annotated[Path, typer.Option(help="the switch profile, .json or .toml")],
    format_: Annotated[str, typer.Option("--format", help=f"one of: {', '.join(FORMATS)}")] = "asterisk",
    shift_days: Annotated[int, typer.Option(help="move every time by whole days (old records in demonstrations)")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="read and report, publish nothing")] = False,
    output: Output = Format.table,
) -> None:
    """Publish the calls in a switch's file; the report accounts for every row."""
    switch = read_profile(profile)
    settings = load()
    if not dry_run:
        await registry_known(settings)
    size = file.stat().st_size if file.is_file() else 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress, transient=True, disable=not progress.is_terminal) as bar:
        task = bar.add_task(file.name, total=size)
        report = await import_records(
            settings, file, switch, format_name=format_, shift_days=shift_days, dry_run=dry_run,
            moved=lambda report: bar.update(task, completed=report.bytes_read),
        )  # fmt: skip
    if output is Format.json:
        show_json(plain(report) | {"legs": report.legs, "dry_run": dry_run})
        return
    for line in in_words(report, dry_run=dry_run):
        console.print(line, markup=False)


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
    dry_run: bool = False,
    moved: Callable[[ImportReport], None] = lambda report: None,
) -> ImportReport:
    """Publishes the events of a file and returns when every one of them is acknowledged by the brokers (acks=all).

    `Unavailable` when one is not: then the file is not done. It can be imported again, as every event keeps its id.
    """
    read = FORMATS.get(format_name)
    if read is None:
        raise InvalidInput(f"{format_name!r} is no format; use one of {', '.join(FORMATS)}", field="format")
    try:
        records = file.open("rb")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}", field="FILE") from None
    report = ImportReport()
    with records:
        events = read(records, profile, report, shift_days=shift_days)
        if dry_run:
            for _ in events:
                moved(report)
            return report
        publisher = profile.publisher
        await ensure_topics(
            settings, {USAGE_EVENTS.of(publisher): USAGE_EVENTS, USAGE_REJECTIONS.of(publisher): USAGE_REJECTIONS}
        )
        producer = await open_producer(settings, "import")
        topic = settings.topic_prefix + USAGE_EVENTS.of(publisher)
        try:
            under_way: list[Any] = []
            for event in events:
                under_way.append(await producer.send(topic, to_json(event.event), key=event.account_id.encode()))
                if len(under_way) == UNACKNOWLEDGED_MAX:
                    await _acknowledged(under_way)
                    moved(report)
            await _acknowledged(under_way)
            moved(report)
        finally:
            await producer.stop()
    return report


async def _acknowledged(under_way: list[Any]) -> None:
    answers = await asyncio.gather(*under_way, return_exceptions=True)
    under_way.clear()
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    if failed:
        raise Unavailable(
            f"{len(failed)} of {len(answers)} records were not acknowledged ({type(failed[0]).__name__}); the file is not "
            "done: import it again when Kafka answers, what came through is not counted twice",
            field="kafka",
        )


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
