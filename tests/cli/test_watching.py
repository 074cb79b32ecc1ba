"""`tollbook import --watch`: every finished file of a folder is imported once, whatever happens meanwhile. Real Kafka."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.topics import USAGE_EVENTS
from services.cli import watching
from services.cli.watching import ASIDE, MEMORY, Memory, Outcome, Seen, Stop, Taken, watch
from services.kernel.errors import Refused, TollbookError
from services.runtime.broker import Offsets
from services.runtime.settings import Settings
from services.usage.importing import FORMATS, SELF_CLOSING, Importer, ImportReport, LegEvent
from services.usage.importing.asterisk import COLUMNS
from tests.support.processes import Processes, until
from tests.support.servers import Database
from tests.usage.test_asterisk import PROFILE, columns, inbound, line, profile
from tests.usage.test_freeswitch import UUID, document
from tests.usage.test_freeswitch import profile as freeswitch_profile

STILL_S = 0.3


def rows(first: int, count: int) -> bytes:
    """Answered outbound calls with running uniqueids."""
    return b"".join(line(columns(uniqueid=f"1543540817.{number}")) for number in range(first, first + count))


def ids(first: int, count: int) -> set[str]:
    return {f"1543540817.{number}|PJSIP/1115-00000001|PJSIP/thinQ-00000002|2018-11-29 20:20:17"
            for number in range(first, first + count)}  # fmt: skip


async def published(settings: Settings) -> list[bytes]:
    """Every value that lies in the topic now."""
    offsets = Offsets(settings)
    await offsets.start()
    try:
        counts = await offsets.partitions([USAGE_EVENTS])
    finally:
        await offsets.stop()
    places = [TopicPartition(settings.topic_prefix + name, part) for name in counts for part in range(counts[name])]
    if not places:
        return []
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        values: list[bytes] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                values += [record.value for record in records]
        return values
    finally:
        await consumer.stop()


def id_of(value: bytes) -> str:
    return str(json.loads(value)["id"])


# --- killed in the middle ---------------------------------------------------------------------------------------------


class Command:
    """The command in a process of its own, on one folder."""

    def __init__(self, folder: Path, database: Database, kafka: str, prefix: str) -> None:
        self.folder, self.settings = folder, Settings(kafka=kafka, topic_prefix=prefix)
        (folder / "in").mkdir()
        (folder / "switch.json").write_text(json.dumps(PROFILE))
        environment = database.environment(TOLLBOOK_KAFKA=kafka, TOLLBOOK_TOPIC_PREFIX=prefix)
        self.processes = Processes(environment, folder)

    def start(self, crash: str | None = None) -> None:
        self.processes.start(
            "watch", "services.cli", "import", "--watch", str(self.folder / "in"), "--profile",
            str(self.folder / "switch.json"), "--still", str(STILL_S), "--output", "json", crash=crash,
        )  # fmt: skip

    def put(self, name: str, data: bytes) -> None:
        (self.folder / "in" / name).write_bytes(data)

    def told(self) -> list[dict[str, Any]]:
        log = self.folder / "watch.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(one) for one in lines if one.startswith("{")]

    async def wait_told(self, *names: str) -> None:
        async def all_told() -> bool:
            return {one["file"] for one in self.told()} >= set(names)

        try:
            await until(all_told, f"{names} are told")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.processes.tail('watch')}") from None


@pytest.fixture
async def command(tmp_path: Path, database: Database, kafka: str, topic_prefix: str) -> AsyncIterator[Command]:
    async with database.connected() as owner:
        await owner.execute(
            "insert into groups.publisher values ($1, 1, $2, $3, 3024000, 600)",
            PROFILE["publisher"], ["lakeside"], [PROFILE["source"]],
        )  # fmt: skip
    running = Command(tmp_path, database, kafka, topic_prefix)
    yield running
    running.processes.stop()


@pytest.mark.parametrize("step", ["import.event.sent:700", "import.files.acknowledged:2", "import.files.done:2"])
async def test_killed_in_the_middle_it_goes_on_without_loss_and_reads_no_done_file_again(
    command: Command, step: str
) -> None:
    command.start(crash=step)
    command.put("a.csv", rows(0, 300))
    await command.wait_told("a.csv")
    command.put("b.csv", rows(300, 1_000))
    command.put("c.csv", rows(1_300, 10))
    await command.processes.wait_crashed("watch", step)
    command.start()
    if "done" not in step:
        await command.wait_told("b.csv", "c.csv")
    command.put("d.csv", rows(1_310, 5))
    await command.wait_told("d.csv")
    assert command.processes.stop("watch") == {"watch": 0}
    values = await published(command.settings)
    times = Counter(id_of(value) for value in values)
    assert times.keys() == ids(0, 1_315)
    # What came twice is the same to the byte, so that usage counts it once; what was done came once.
    assert len(set(values)) == len(times)
    assert all(times[each] == 1 for each in ids(0, 300) | ids(1_310, 5))
    if "done" in step:
        assert set(times.values()) == {1}
    told = Counter(one["file"] for one in command.told())
    assert told["a.csv"] == told["d.csv"] == 1


# --- what is taken, and when ------------------------------------------------------------------------------------------


class Watched:
    """A watch in this process."""

    def __init__(self, folder: Path, kafka: str, prefix: str) -> None:
        self.folder, self.settings = folder, Settings(kafka=kafka, topic_prefix=prefix)
        self.switch = profile()
        self.still_s = STILL_S
        self.outcomes: list[Outcome] = []
        self.warnings: list[str] = []

    async def watch(self, read: Importer, stop: Stop, *, whole_lines: bool = True) -> None:
        await watch(
            self.settings, self.folder, self.switch, read, stop, still_s=self.still_s, whole_lines=whole_lines, tell=self.outcomes.append,
            warn=self.warnings.append,
        )  # fmt: skip

    @asynccontextmanager
    async def running(self, format_name: str = "asterisk") -> AsyncIterator[None]:
        stop = Stop()
        task = asyncio.create_task(self.watch(FORMATS[format_name], stop, whole_lines=format_name not in SELF_CLOSING))
        try:
            yield
        finally:
            stop.now = True
            stop.asked.set()
            await task

    async def wait(self, count: int) -> None:
        async def told() -> bool:
            return len(self.outcomes) >= count

        await until(told, f"{count} files; so far {self.outcomes} {self.warnings}")

    async def ids(self) -> Counter[str]:
        return Counter(id_of(value) for value in await published(self.settings))


@pytest.fixture
def watched(tmp_path: Path, kafka: str, topic_prefix: str) -> Watched:
    return Watched(tmp_path, kafka, topic_prefix)


async def test_sigterm_ends_at_once_and_the_file_in_hand_is_taken_again(watched: Watched) -> None:
    (watched.folder / "big.csv").write_bytes(rows(0, 2_000))

    def terminated(records: Any, profile: Any, report: ImportReport, *, shift_days: int = 0) -> Iterator[LegEvent]:
        for number, event in enumerate(FORMATS["asterisk"](records, profile, report, shift_days=shift_days)):
            if number == 700:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    stop = Stop()
    with stop.by_signals():
        await watched.watch(terminated, stop)
    assert watched.outcomes == []
    assert 700 <= len(await watched.ids()) <= 710
    async with watched.running():
        await watched.wait(1)
    assert (await watched.ids()).keys() == ids(0, 2_000)


async def test_a_growing_file_is_taken_when_it_has_been_still_and_whole(watched: Watched) -> None:
    watched.still_s = 2.0
    async with watched.running():
        with (watched.folder / "Master.csv").open("ab", buffering=0) as file:
            for number in range(30):
                file.write(rows(number, 1)[:40])
                await asyncio.sleep(0.1)
                file.write(rows(number, 1)[40:])
                assert watched.outcomes == []
        await watched.wait(1)
    assert await watched.ids() == dict.fromkeys(ids(0, 30), 1)


async def test_half_a_row_at_the_end_of_a_file_is_waited_for_and_told(watched: Watched) -> None:
    """A uniqueid that is cut off would be another call, and the whole row would be billed beside it."""
    whole = line([*columns()[:16], "1543540817.123"])
    (watched.folder / "Master.csv").write_bytes(whole[:-6])
    async with watched.running():

        async def warned() -> bool:
            return bool(watched.warnings)

        await until(warned, "a warning")
        await asyncio.sleep(3 * STILL_S)
        assert (watched.outcomes, len(watched.warnings)) == ([], 1)
        assert "Master.csv is not taken: its last line has no end" in watched.warnings[0]
        (watched.folder / "Master.csv").write_bytes(whole)
        await watched.wait(1)
    (event_id,) = await watched.ids()
    assert event_id.startswith("1543540817.123|")


async def test_a_compressed_file_stays_where_it_is_and_is_told_once_whatever_rotation_calls_it(
    watched: Watched,
) -> None:
    packed = watched.folder / "Master.csv.1.gz"
    packed.write_bytes(gzip.compress(rows(0, 3)) + b"\n")  # its last byte may be anything
    async with watched.running():

        async def warned() -> bool:
            return bool(watched.warnings)

        await until(warned, "a warning")
        packed = packed.rename(watched.folder / "Master.csv.2.gz")
        (watched.folder / "Master.csv").write_bytes(gzip.decompress(packed.read_bytes()[:-1]))
        await watched.wait(1)
        await asyncio.sleep(3 * STILL_S)
    assert [outcome.file for outcome in watched.outcomes] == ["Master.csv"]
    assert (packed.exists(), len(watched.warnings)) == (True, 1)
    assert watched.warnings[0].startswith("Master.csv.1.gz is not taken: it is compressed; unpack it")
    assert await watched.ids() == dict.fromkeys(ids(0, 3), 1)


async def test_a_json_document_needs_no_end_of_its_last_line(watched: Watched) -> None:
    (watched.folder / "a.cdr.json").write_bytes(b'{"variables": {"uuid": "a"}}')
    async with watched.running("freeswitch-json"):
        await watched.wait(1)
    assert watched.warnings == []


@pytest.mark.parametrize(
    "cut",
    [b'{"variables": {"uuid": "a', b'{"variables": {"uuid": "a"},\n', b'{"variables": {"uuid": "a"}', b'{"a": "{b}'],
)
async def test_half_a_json_document_is_waited_for_wherever_it_is_cut(watched: Watched, cut: bytes) -> None:
    watched.switch = freeswitch_profile()
    whole = document(indented=False)
    (watched.folder / "a.cdr.json").write_bytes(cut)
    async with watched.running("freeswitch-json"):

        async def told() -> bool:
            return bool(watched.warnings or watched.outcomes)

        await until(told, "it is told")
        await asyncio.sleep(3 * STILL_S)
        assert len(watched.warnings) + len(watched.outcomes) == 1
        assert [outcome.reason for outcome in watched.outcomes if outcome.reason] == []
        if not cut.endswith(b"}"):
            assert "a.cdr.json is not taken: its last document has no end" in watched.warnings[0]
        (watched.folder / "a.cdr.json").write_bytes(whole)
        await watched.wait(len(watched.outcomes) + 1)
    assert await watched.ids() == {UUID: 1}


async def test_a_json_document_that_is_broken_before_its_end_is_put_aside(watched: Watched) -> None:
    (watched.folder / "a.cdr.json").write_bytes(b'{"variables": broken}\n')
    async with watched.running("freeswitch-json"):
        await watched.wait(1)
    assert "is not JSON" in (watched.folder / ASIDE / "a.cdr.json.reason").read_text()


async def test_a_done_file_is_not_read_again_not_even_renamed_but_one_that_grew_is_taken_on(watched: Watched) -> None:
    master = watched.folder / "Master.csv"
    master.write_bytes(rows(0, 3))
    async with watched.running():
        await watched.wait(1)
        master.rename(watched.folder / "Master.csv.1")
        master.write_bytes(rows(3, 2))
        await watched.wait(2)
    async with watched.running():
        with master.open("ab") as file:
            file.write(rows(5, 1))
        await watched.wait(3)
    assert [outcome.file for outcome in watched.outcomes] == ["Master.csv"] * 3
    assert await watched.ids() == dict.fromkeys(ids(0, 6), 1)


async def test_new_rows_of_a_file_that_grew_are_read_with_those_before_them(watched: Watched) -> None:
    """The number of a call that was put through stands in the first row of its channel."""
    first = line(inbound(lastapp="ForkCDR"))
    put_through = line(inbound(dst="6001", lastapp="Queue", dstchannel="Local/1127@agent-00000024;1"))
    master = watched.folder / "Master.csv"
    master.write_bytes(first)
    async with watched.running():
        await watched.wait(1)
        master.write_bytes(first + put_through)
        await watched.wait(2)
    values = [json.loads(value) for value in await published(watched.settings)]
    assert [value["data"]["called"] for value in values] == ["+12484329407"] * 2
    assert len({value["id"] for value in values}) == 2


@pytest.mark.parametrize("header", [b"", b"\n" + ",".join(COLUMNS).encode() + b",uniqueid,userfield\n"])
async def test_of_a_file_that_grew_long_only_the_last_rows_before_are_judged_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    """Master.csv grows for years where nobody rotates it."""
    monkeypatch.setattr("services.cli.watching.CONTEXT_BYTES", len(rows(0, 2)))
    master = watched.folder / "Master.csv"
    master.write_bytes(header + rows(0, 50))
    async with watched.running("asterisk-realtime" if header else "asterisk"):
        await watched.wait(1)
        with master.open("ab") as file:
            file.write(rows(50, 1) + b"no row\n")
        await watched.wait(2)
    first, second = (outcome.report for outcome in watched.outcomes)
    assert first is not None
    assert second is not None
    assert (first.rows, second.bytes_read) == (50, master.stat().st_size)
    assert second.rows <= 1 + 2 + 2  # the first line, the context, and what is new
    assert [refusal.line for refusal in second.refusals] == [header.count(b"\n") + 52]
    assert await watched.ids() == dict.fromkeys(ids(0, 51), 1)


@pytest.mark.parametrize("changed", ["the beginning", "the profile", "a memory of an older program"])
async def test_a_file_that_grew_is_sent_whole_where_its_beginning_might_be_judged_otherwise(
    watched: Watched, changed: str
) -> None:
    master = watched.folder / "Master.csv"
    master.write_bytes(rows(0, 3))
    async with watched.running():
        await watched.wait(1)
    before = rows(0, 3)
    if changed == "the beginning":
        before = before[:-2] + b"x\r\n"
    elif changed == "the profile":
        watched.switch = profile(internal=[])
    else:
        with sqlite3.connect(watched.folder / MEMORY) as memory:
            memory.execute("alter table done drop column digest")
        memory.close()
    master.write_bytes(before + rows(3, 1))
    async with watched.running():
        await watched.wait(2)
    assert await watched.ids() == dict.fromkeys(ids(0, 3), 2) | dict.fromkeys(ids(3, 1), 1)


async def test_a_bad_file_is_put_aside_with_its_reason_and_the_others_go_on(watched: Watched) -> None:
    (watched.folder / "1-bad.csv").write_bytes(b"\x00\x01\n\xff\xfe\n")
    (watched.folder / "2-good.csv").write_bytes(rows(0, 2) + b"one,bad,row\n")
    (watched.folder / "3-empty.csv").write_bytes(b"")
    (watched.folder / ".hidden.csv").write_bytes(rows(9, 1))
    (watched.folder / "folder").mkdir()
    async with watched.running():
        await watched.wait(3)
        (watched.folder / "1-bad.csv").write_bytes(b"bad again\n")
        await watched.wait(4)
    aside = watched.folder / ASIDE
    assert {file.name for file in aside.iterdir()} == {
        "1-bad.csv",
        "1-bad.csv.reason",
        "1-bad.csv.2",
        "1-bad.csv.2.reason",
    }
    assert (aside / "1-bad.csv").read_bytes() == b"\x00\x01\n\xff\xfe\n"
    reason = (aside / "1-bad.csv.reason").read_text()
    assert reason.startswith("not one of its 2 rows can be read; line 1, ")
    reports = {outcome.file: outcome.report for outcome in watched.outcomes}
    good, empty = reports["2-good.csv"], reports["3-empty.csv"]
    assert good is not None
    assert empty is not None
    assert (good.published, good.refused, empty.rows) == (2, 1, 0)
    assert await watched.ids() == dict.fromkeys(ids(0, 2), 1)


async def test_a_file_without_its_header_is_put_aside_by_that_reason(watched: Watched) -> None:
    (watched.folder / "cdr.csv").write_bytes(rows(0, 2))
    async with watched.running("asterisk-realtime"):
        await watched.wait(1)
    assert "export it with a header row" in (watched.folder / ASIDE / "cdr.csv.reason").read_text()


async def test_a_file_that_shows_a_mistake_of_ours_keeps_no_other_from_being_imported(watched: Watched) -> None:
    (watched.folder / "1.csv").write_bytes(rows(0, 1))
    (watched.folder / "2.csv").write_bytes(rows(1, 1))
    stop = Stop()

    def mistaken(records: Any, profile: Any, report: ImportReport, *, shift_days: int = 0) -> Iterator[LegEvent]:
        for event in FORMATS["asterisk"](records, profile, report, shift_days=shift_days):
            if event.event["id"] in ids(0, 1):
                raise KeyError("nobody thought of this")
            stop.now = True
            yield event

    await watched.watch(mistaken, stop)
    assert [outcome.file for outcome in watched.outcomes] == ["1.csv"]
    reason = (watched.folder / ASIDE / "1.csv.reason").read_text()
    assert reason == "cannot be imported, which is a mistake of this program: KeyError('nobody thought of this')\n"
    async with watched.running():
        await watched.wait(2)
    assert (await watched.ids()).keys() == ids(1, 1)


async def test_while_kafka_is_away_it_waits_and_nothing_is_lost(
    tmp_path: Path, kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BACK_OFF_S_MIN", 0.1)
    (tmp_path / "a.csv").write_bytes(rows(0, 2))
    away = Watched(tmp_path, "127.0.0.1:1", topic_prefix)
    async with away.running():

        async def warned() -> bool:
            return len(away.warnings) > 1

        await until(warned, "a warning")
    assert away.outcomes == []
    back = Watched(tmp_path, kafka, topic_prefix)
    async with back.running():
        await back.wait(1)
    assert await back.ids() == dict.fromkeys(ids(0, 2), 1)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_folder_that_goes_away_is_waited_for_even_if_another_comes_in_its_place(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    monkeypatch.setattr(watching, "BACK_OFF_S_MIN", 0.1)
    elsewhere = watched.folder / "elsewhere"
    watched.folder /= "in"
    watched.folder.mkdir()
    (watched.folder / "a.csv").write_bytes(rows(0, 2))
    async with watched.running():
        await watched.wait(1)
        watched.folder.rename(elsewhere)

        async def warned() -> bool:
            return len(watched.warnings) > 2

        await until(warned, "warnings")
        assert "in cannot be looked into (No such file or directory); tried again in" in watched.warnings[0]
        if comes_back:
            elsewhere.rename(watched.folder)
        else:
            watched.folder.mkdir()
        (watched.folder / "b.csv").write_bytes(rows(2, 1))
        await watched.wait(2)
    assert await watched.ids() == dict.fromkeys(ids(0, 3), 1)
    memory = Memory(watched.folder)
    assert memory.knows(Seen.of("b.csv", (watched.folder / "b.csv").stat()))
    memory.close()


# --- what is remembered -----------------------------------------------------------------------------------------------


async def test_a_folder_is_watched_by_one_import_at_a_time(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    with pytest.raises(Refused, match="another import watches this folder"):
        Memory(tmp_path)
    memory.close()
    Memory(tmp_path).close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / MEMORY).write_bytes(b"no database" * 1_000), "is damaged .* delete it"),
        (lambda folder: (folder / MEMORY).mkdir(), "cannot be written"),
        (lambda folder: folder.rmdir(), "is no folder; name the folder into which the switch writes"),
    ],
)
def test_a_memory_that_cannot_be_used_is_said_with_the_fix(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(TollbookError, match=message):
        Memory(folder)


def test_what_is_remembered_is_bounded_by_what_lies_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FORGET_FROM", 2)
    memory = Memory(tmp_path)
    files = [Seen(f"{number}.json", (1, number), 10, 20) for number in range(6)]
    memory.done([Taken(file, ImportReport(), "") for file in files])
    memory.forget_all_but(files[:1])
    memory.close()
    again = Memory(tmp_path)
    assert [again.knows(file) for file in files] == [True, *[False] * 5]
    again.close()


async def test_a_file_that_is_replaced_while_it_is_read_is_not_done(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(rows(0, 1))
    before = Seen.of("a.csv", file.stat())
    with file.open("ab") as more:
        more.write(rows(1, 1))
    os.utime(file, ns=(before.mtime_ns, before.mtime_ns))
    assert not before.still(Seen.of("a.csv", file.stat()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FILE: name either a file or, by --watch, a folder"),
        (["a.csv", "--watch", "in"], "FILE: name either a file or, by --watch, a folder"),
        (["--watch", "in", "--dry-run"], "dry-run: cannot be tried on a folder; name a file"),
        (["--watch", "in", "--format", "avaya"], "format: 'avaya' is no format; use one of asterisk, asterisk-realtime, freeswitch-csv, freeswitch-json, csv"),
    ],
)  # fmt: skip
async def test_a_wrong_command_line_is_exit_2(
    tollbook: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "switch.json").write_text(json.dumps(PROFILE))
    ran = await tollbook("import", *arguments, "--profile", str(tmp_path / "switch.json"))
    assert (ran.code, ran.err) == (2, f"{message}\n")
