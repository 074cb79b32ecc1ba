"""From the bytes of a file to the fields of its rows: one row a line, memory bounded, and a bad row named by its field."""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from typing import BinaryIO

from services.kernel.errors import InvalidInput
from services.usage.importing.dialect import COMMAS, Dialect
from services.usage.importing.interface import ImportReport, RefusalCode

COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")  # how gzip, xz, zstd and zip begin
ROW_BYTES_MAX = 65_536  # a real row has a few hundred bytes; what is longer is skipped without being held


class Refused(Exception):
    """A row that cannot become an event: why, which field, and how to mend it."""

    def __init__(self, code: RefusalCode, field: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


def lines(
    records: BinaryIO, report: ImportReport, *, bytes_max: int = ROW_BYTES_MAX
) -> Iterator[tuple[int, bytes, bool]]:
    """(line number, bytes, whole) of every line that is not blank. Of a line that is too long only the beginning is
    held. A quote that is not closed ends with its line, so it cannot swallow the rows behind it. `InvalidInput` of a file that
    is compressed."""
    number = 0
    while raw := records.readline(bytes_max):
        number += 1
        if number == 1 and raw.startswith(COMPRESSED):
            raise InvalidInput("is compressed; unpack it and import what was in it", field="FILE")
        report.bytes_read += len(raw)
        complete = raw.endswith(b"\n") or len(raw) < bytes_max
        rest = raw
        while not complete and rest and not rest.endswith(b"\n"):
            rest = records.readline(ROW_BYTES_MAX)
            report.bytes_read += len(rest)
        stripped = raw.rstrip(b"\r\n")
        if number == 1:
            stripped = stripped.removeprefix(BOM_UTF8)
        if stripped:
            yield number, stripped, complete


def text_of(raw: bytes, complete: bool, column: Callable[[int], str], dialect: Dialect = COMMAS) -> str:
    """The characters of a row, or `Refused` naming the field in which it goes on too long or is not UTF-8."""
    if not complete:
        raise Refused(
            "too_long",
            column(_last_field(raw, dialect)),
            f"the row is longer than {ROW_BYTES_MAX} bytes in this field; a row of the switch never is",
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        index = _last_field(raw[: error.start] + b"x", dialect)
        raise Refused(
            "encoding", column(index), "is not UTF-8; convert the file to UTF-8 and import it again"
        ) from None


def _last_field(beginning: bytes, dialect: Dialect) -> int:
    """The index of the field in which the beginning of a row ends, whatever it holds. A CR separates no fields, but outside
    of quotes csv refuses it, strict or not."""
    return max(len(dialect.split(beginning.decode("latin-1").replace("\r", ""), strict=False)) - 1, 0)


def fields_of(text: str, column: Callable[[int], str], dialect: Dialect = COMMAS) -> list[str]:
    """The fields of a row, or `Refused` naming the one whose quotes are wrong."""
    try:
        return dialect.split(text)
    except csv.Error as error:
        raise Refused(
            "not_csv",
            column(dialect.misquoted(text)),
            f"is not CSV ({error}); check its quotes, and that lines end by LF or CR LF",
        ) from None
