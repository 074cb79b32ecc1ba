"""Importing what a switch puts into a folder: each file once, and again from its first row after a crash in its middle.

A file is taken when its size and time have been still for a while, and is done when every event of it is acknowledged.
What is done is remembered in a small database beside the files, by name and by the file's number on its disk, so that a
rotated file (`Master.csv` that becomes `Master.csv.1`) is not read again. A done file that changes afterwards is taken
again: of one that only grew what is new is sent, since rows that were sent long ago would be too old by now, else the
whole: its events keep their ids, so nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, cast

from pydantic_core import to_json

from services.cli.output import plain
from services.cli.publishing import Publishing
from services.kernel.errors import InvalidInput, Refused, Unavailable
from services.runtime import faults
from services.runtime.settings import Settings
from services.usage.importing import COMPRESSED, Importer, ImportReport, SwitchProfile

MEMORY = ".tollbook-import"  # hidden, as all names that begin with a dot are no records
ASIDE = "aside"
LOOK_S_MAX = 1.0
FORGET_FROM = 10_000  # files that are done and gone
FILES_TOGETHER_MAX = 500  # files whose acknowledgements are awaited, and which are remembered, together
BACK_OFF_S_MIN, BACK_OFF_S_MAX = 1.0, 30.0
DIGEST_BYTES = 2**16  # read at once, of a line
CONTEXT_BYTES = 4 * 2**20  # of what is done, read again before what grew: some ten thousand rows, as calls have several
TAIL_BYTES = 4_096  # in which the last brace of a document is looked for, behind which there may be blank lines

# A row that is refused with one of these could not be read at all.
UNREADABLE = ("short_row", "long_row", "too_long", "encoding", "not_csv", "header", "not_json")


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as a look at the folder finds it: it is the same as long as size and time are."""

    name: str
    inode: tuple[int, int]
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, name: str, stat: os.stat_result) -> Seen:
        return cls(name, (stat.st_dev, stat.st_ino), stat.st_size, stat.st_mtime_ns)

    def still(self, other: Seen | None) -> bool:
        return other is not None and (self.inode, self.size, self.mtime_ns) == (other.inode, other.size, other.mtime_ns)


@dataclass(frozen=True, slots=True)
class Taken:
    """A file whose events are sent; ``digest`` is that of its bytes and of what they were read by."""

    file: Seen
    report: ImportReport
    digest: str


@dataclass(frozen=True, slots=True)
class Done:
    """What is remembered of a file; no digest where an older program did it."""

    size: int
    mtime_ns: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: its report, or the reason why it was put aside."""

    file: str
    report: ImportReport | None = None
    reason: str | None = None


class Stop:
    """Set by SIGTERM and SIGINT, at once, also while a file is read."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = False

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def ask(number: int, frame: object) -> None:
            self.now = True
            loop.call_soon_threadsafe(self.asked.set)

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def within(self, wait_s: float) -> bool:
        """Whether it is asked for within this time."""
        try:
            await asyncio.wait_for(self.asked.wait(), wait_s)
        except TimeoutError:
            return False
        return True


class Stopped(Exception):
    """The file is not read to its end: it is taken again at the next start."""


class _Interruptible:
    """The bytes of a file until the watch is to stop, and their digest so far. Importers read by lines only.

    Lines before ``from_offset`` are given as empty ones, which are no rows and keep the numbers of those behind them; not the
    first, which may be a header.
    """

    def __init__(self, records: BinaryIO, stop: Stop, read_by: bytes, from_offset: int = 0) -> None:
        self._records = records
        self._stop = stop
        self._digest = sha256(read_by)
        self._from_offset = from_offset
        self._begun = False
        self.offset = 0

    def readline(self, limit: int = -1) -> bytes:
        if self._stop.now:
            raise Stopped
        raw = self._records.readline(limit)
        self._digest.update(raw)
        self.offset += len(raw)
        if self._begun and self.offset <= self._from_offset and raw.endswith(b"\n"):
            return b"\n"
        self._begun = self._begun or not raw.isspace()
        return raw

    def digest_of(self, size: int) -> str:
        """The digest once this many bytes are read, in whole lines or not."""
        while size > 0 and (raw := self.readline(min(size, DIGEST_BYTES))):
            size -= len(raw)
        return self.digest

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


# --- what is done -----------------------------------------------------------------------------------------------------


class Memory:
    """The files of a folder that are done, each synced to its disk before the next is begun. One watch at a time."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InvalidInput(f"{folder} is no folder; name the folder into which the switch writes", field="watch")
        try:
            self._database = sqlite3.connect(folder / MEMORY, isolation_level=None, timeout=0)
            for statement in (
                "pragma locking_mode = exclusive",
                "pragma synchronous = extra",
                "begin exclusive",
                "create table if not exists done (name text not null, device integer not null, inode integer not null,"
                " size integer not null, mtime_ns integer not null, at text not null default current_timestamp,"
                " report text not null, digest text)",
                "create index if not exists done_name on done (name)",
                "commit",
            ):
                self._database.execute(statement)
            if "digest" not in {name for _, name, *_ in self._database.execute("pragma table_info (done)")}:
                self._database.execute("alter table done add column digest text")  # of an older program
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise Refused("another import watches this folder; stop that one first", field="watch") from None
            raise InvalidInput(
                f"{folder / MEMORY} cannot be written ({error}); what is done is remembered in it", field="watch"
            ) from None
        except sqlite3.DatabaseError as error:
            raise InvalidInput(
                f"{folder / MEMORY} is damaged ({error}); delete it: every file is read again, and nothing counted twice",
                field="watch",
            ) from None
        self._itself = Seen.of(MEMORY, (folder / MEMORY).stat())
        self._by_name: dict[str, Done] = {}
        self._by_inode: dict[tuple[int, int], Done] = {}
        for name, device, inode, size, mtime_ns, digest in self._database.execute(
            "select name, device, inode, size, mtime_ns, digest from done order by rowid"
        ):
            self._remember(Seen(name, (device, inode), size, mtime_ns), digest)

    def lies_in(self, folder: Path) -> bool:
        """Whether the folder is the one whose files it remembers, not another that took its place."""
        try:
            return Seen.of(MEMORY, (folder / MEMORY).stat()).inode == self._itself.inode
        except OSError:
            return False

    def _remember(self, file: Seen, digest: str | None) -> None:
        self._by_name[file.name] = self._by_inode[file.inode] = Done(file.size, file.mtime_ns, digest)

    def knows(self, file: Seen) -> bool:
        return any(
            done is not None and (done.size, done.mtime_ns) == (file.size, file.mtime_ns)
            for done in (self._by_inode.get(file.inode), self._by_name.get(file.name))
        )

    def before(self, file: Seen) -> Done | None:
        """What was done of a file before it changed."""
        return self._by_inode.get(file.inode) or self._by_name.get(file.name)

    def done(self, taken: list[Taken]) -> None:
        """On disk when this returns, or not at all."""
        try:
            self._database.execute("begin")
            self._database.executemany(
                "insert into done (name, device, inode, size, mtime_ns, report, digest) values (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        each.file.name, *each.file.inode, each.file.size, each.file.mtime_ns,
                        to_json(plain(each.report)).decode(), each.digest,
                    )
                    for each in taken
                ],
            )  # fmt: skip
            self._database.execute("commit")
        except sqlite3.DatabaseError as error:
            if self._database.in_transaction:
                self._database.execute("rollback")
            raise Unavailable(f"{MEMORY} cannot be written ({error}); free its disk", field="watch") from error
        for each in taken:
            self._remember(each.file, each.digest)

    def forget_all_but(self, there: Collection[Seen]) -> None:
        """Forgets files that are gone, once they are many: what is remembered is bounded by what lies in the folder."""
        if len(self._by_name) <= FORGET_FROM + 2 * len(there):
            return
        names, inodes = {file.name for file in there}, {file.inode for file in there}
        gone = [
            (rowid,)
            for rowid, name, *inode in self._database.execute("select rowid, name, device, inode from done")
            if name not in names and tuple(inode) not in inodes
        ]
        self._database.execute("begin")
        self._database.executemany("delete from done where rowid = ?", gone)
        self._database.execute("commit")
        self._by_name = {name: what for name, what in self._by_name.items() if name in names}
        self._by_inode = {inode: what for inode, what in self._by_inode.items() if inode in inodes}

    def close(self) -> None:
        self._database.close()


# --- the watch --------------------------------------------------------------------------------------------------------


async def watch(
    settings: Settings,
    folder: Path,
    profile: SwitchProfile,
    read: Importer,
    stop: Stop,
    *,
    still_s: float,
    whole_lines: bool = True,
    shift_days: int = 0,
    tell: Callable[[Outcome], None],
    warn: Callable[[str], None],
) -> None:
    """Imports every finished file of a folder until it is asked to stop. Kafka's absence is waited out, and the folder's.

    With ``whole_lines`` a file is not finished before its last line is: half a row could pass for another call. Without, it
    holds documents that close themselves, and is not finished before a brace ends it.
    """
    watched = _Watch(folder, profile, read, stop, Memory(folder), whole_lines, shift_days, tell, warn)
    back_off_s = BACK_OFF_S_MIN
    try:
        while not stop.now:
            try:
                watched.find_folder()
                async with Publishing(settings, profile.publisher) as publishing:
                    while not stop.now:
                        await watched.take(publishing, watched.ready(still_s))
                        back_off_s = BACK_OFF_S_MIN
                        await stop.within(min(still_s / 2, LOOK_S_MAX))
            except Unavailable as error:
                warn(f"{error}; tried again in {back_off_s:.0f} s")
                await stop.within(back_off_s)
                back_off_s = min(back_off_s * 2, BACK_OFF_S_MAX)
    finally:
        watched.close()


class _Watch:
    """One folder: what was seen in it, and what is to be taken."""

    def __init__(
        self,
        folder: Path,
        profile: SwitchProfile,
        read: Importer,
        stop: Stop,
        memory: Memory,
        whole_lines: bool,
        shift_days: int,
        tell: Callable[[Outcome], None],
        warn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._profile = profile
        self._read = read
        self._stop = stop
        self._memory = memory
        self._whole_lines = whole_lines
        self._shift_days = shift_days
        self._read_by = f"{profile.model_dump_json()} {shift_days}".encode()
        self._tell = tell
        self._warn = warn
        self._still: dict[str, tuple[Seen, float]] = {}
        self._left: set[Seen] = set()  # bad files that could not be moved away
        self._unended: set[Seen] = set()  # files that were told of because their last line or document has no end
        self._compressed: set[tuple[int, int]] = set()  # those that were told of because they are, whatever their names

    def find_folder(self) -> None:
        """Takes the memory of another folder, if that took the place of the one that was watched."""
        if not self._memory.lies_in(self._folder):
            self._entries()  # while there is none, the old one may come back
            self._memory.close()
            self._memory = Memory(self._folder)

    def close(self) -> None:
        self._memory.close()

    def ready(self, still_s: float) -> list[Seen]:
        """The files that are not done and have not changed for ``still_s``, the oldest first."""
        now = time.monotonic()
        found: dict[str, tuple[Seen, float]] = {}
        for entry in self._entries():
            if entry.name.startswith("."):
                continue
            try:
                if not entry.is_file():
                    continue
                file = Seen.of(entry.name, entry.stat())
            except OSError:
                continue  # gone between the two looks
            before, since = self._still.get(entry.name, (None, now))
            found[entry.name] = (file, since if file.still(before) else now)
        self._still = found
        self._memory.forget_all_but([file for file, _ in found.values()])
        ready = [
            file
            for file, since in found.values()
            if now - since >= still_s
            and not self._memory.knows(file)
            and file not in self._left
            and self._can_be_taken(file)
        ]
        return sorted(ready, key=lambda file: (file.mtime_ns, file.name))

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as entries:
                return list(entries)
        except OSError as error:
            raise Unavailable(f"{self._folder} cannot be looked into ({error.strerror})", field="watch") from None

    def _can_be_taken(self, file: Seen) -> bool:
        """Whether a file is whole, and not compressed: what rotation packs in this folder stays where it is."""
        try:
            with (self._folder / file.name).open("rb") as records:
                head = records.read(TAIL_BYTES)
                records.seek(max(file.size - TAIL_BYTES, 0))
                tail = records.read(TAIL_BYTES)
        except OSError:
            return True  # whoever takes it finds out
        if head.startswith(COMPRESSED):
            if file.inode not in self._compressed:
                self._compressed.add(file.inode)
                self._warn(f"{file.name} is not taken: it is compressed; unpack it, if its calls are not imported yet")
            return False
        whole = tail.endswith(b"\n") if self._whole_lines else tail.rstrip().endswith(b"}")
        if whole or not tail:
            return True
        if file not in self._unended:
            self._unended.add(file)
            what = "line has no end, so it may be half a row" if self._whole_lines else "document has no end"
            self._warn(f"{file.name} is not taken: its last {what}; wait for the rest, or end it")
        return False

    async def take(self, publishing: Publishing, files: list[Seen]) -> None:
        """Imports files and remembers them; a bad one is put aside, and the others go on."""
        sent: list[Taken] = []
        for file in files:
            try:
                taken = await self._sent(publishing, file)
            except FileNotFoundError:
                continue
            except Stopped:
                break
            except InvalidInput as error:
                self._put_aside(file, str(error))
                continue
            except OSError as error:
                self._put_aside(file, f"cannot be read: {error.strerror or error}")
                continue
            except Unavailable:
                raise
            except (
                Exception
            ) as error:  # a file that shows a mistake of ours must not keep the others from being imported
                self._put_aside(file, f"cannot be imported, which is a mistake of this program: {error!r}")
                continue
            if taken is None:
                continue
            report = taken.report
            if report.rows and report.rows == sum(report.refused_by_code[code] for code in UNREADABLE):
                self._put_aside(file, f"not one of its {report.rows} rows can be read; {report.refusals[0]}")
                continue
            sent.append(taken)
            if len(sent) == FILES_TOGETHER_MAX:
                await self._done(publishing, sent)
        await self._done(publishing, sent)

    async def _sent(self, publishing: Publishing, file: Seen) -> Taken | None:
        """A file whose events are all sent; None if it changed while it was read: then it is not done."""
        report = ImportReport()
        with (self._folder / file.name).open("rb") as records:
            if not file.still(Seen.of(file.name, os.fstat(records.fileno()))):
                return None
            sent_before = self._sent_before(file, records)
            from_offset = sent_before - CONTEXT_BYTES if self._whole_lines else 0
            lines = _Interruptible(records, self._stop, self._read_by, from_offset)
            for event in self._read(cast(BinaryIO, lines), self._profile, report, shift_days=self._shift_days):
                if lines.offset > sent_before:
                    await publishing.send(event)
                    faults.step("import.event.sent")
            report.bytes_read = lines.offset
            if not file.still(Seen.of(file.name, os.fstat(records.fileno()))):
                return None
            return Taken(file, report, lines.digest)

    def _sent_before(self, file: Seen, records: BinaryIO) -> int:
        """How many bytes at the beginning of a file that grew are done: none, unless they are the same and were read by the
        same profile."""
        done = self._memory.before(file)
        if done is None or done.size >= file.size:
            return 0
        digest = _Interruptible(records, self._stop, self._read_by).digest_of(done.size)
        records.seek(0)
        return done.size if digest == done.digest else 0

    async def _done(self, publishing: Publishing, sent: list[Taken]) -> None:
        await publishing.acknowledged()
        if not sent:
            return
        faults.step("import.files.acknowledged")
        self._memory.done(sent)
        faults.step("import.files.done")
        for taken in sent:
            self._tell(Outcome(taken.file.name, taken.report))
        sent.clear()

    def _put_aside(self, file: Seen, reason: str) -> None:
        aside = self._folder / ASIDE
        try:
            aside.mkdir(exist_ok=True)
            name, number = file.name, 1
            while (aside / name).exists():
                number += 1
                name = f"{file.name}.{number}"
            (aside / f"{name}.reason").write_text(f"{reason}\n")
            (self._folder / file.name).rename(aside / name)
        except OSError as error:
            self._left.add(file)
            self._warn(f"{file.name} cannot be put aside ({error.strerror}); it is left where it is until it changes")
        self._tell(Outcome(file.name, reason=reason))
