"""How the rows of a file are separated and quoted."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Dialect:
    """How a file separates and quotes its fields. A quote inside a field is doubled, or has ``escape`` before it."""

    delimiter: str = ","
    quote: str = '"'
    escape: str | None = None

    def split(self, text: str, *, strict: bool = True) -> list[str]:
        """The fields of one row. Raises `csv.Error` where the quotes are wrong."""
        reader = csv.reader(
            (text,), strict=strict, delimiter=self.delimiter, quotechar=self.quote,
            escapechar=self.escape, doublequote=self.escape is None,
        )  # fmt: skip
        return next(reader, [])

    @cached_property
    def _field(self) -> re.Pattern[str]:
        delimiter, quote = re.escape(self.delimiter), re.escape(self.quote)
        inside = f"{quote}{quote}" if self.escape is None else f"{re.escape(self.escape)}."
        other = quote if self.escape is None else quote + re.escape(self.escape)
        return re.compile(rf"{quote}(?:[^{other}]|{inside})*{quote}(?={delimiter}|$)|(?!{quote})[^{delimiter}]*")

    def misquoted(self, text: str) -> int:
        """The index of the first field whose quotes are wrong: not closed, or followed by no delimiter."""
        index = at = 0
        while (field := self._field.match(text, at)) is not None and field.end() < len(text):
            index, at = index + 1, field.end() + 1
        return index


COMMAS = Dialect()
