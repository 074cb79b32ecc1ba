"""Structured logs: one JSON object a line on standard error, without personal data.

Nothing logs a record's content, a number called, a token or SQL parameters: places (topic, partition, offset, ids of ours)
are enough to find a record in quarantine.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """time, level, where, message; for an error its type and the places in the code, never its arguments."""

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "room": self._room,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None and record.levelno >= logging.ERROR:
            line["error"] = record.exc_info[0].__name__
            line["at"] = " < ".join(
                f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(record.exc_info[2])[-6:])
            )
        return json.dumps(line, ensure_ascii=False)


def configure(room: str, level: str) -> None:
    """Log to standard error from now on; libraries only when something is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(room))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("services").setLevel(level)
    # a broker that has just started answers "no coordinator yet" a few times; the client asks again by itself
    logging.getLogger("aiokafka.consumer.group_coordinator").setLevel(logging.CRITICAL)
    logging.getLogger("services.runtime.faststream").setLevel(logging.ERROR)
