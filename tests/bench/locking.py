"""Balance with a watch on its wallets: `python -m tests.bench.locking balance`, milliseconds in the folder BENCH_LOCKS.

A watch runs from the moment the statement that locks the wallets of a batch is sent until the connection is back in its pool,
after the commit: a little longer than any of the rows is locked.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

LOCKING = "INSERT INTO balance.wallet"
SINCE = "wallets_locked_at"


def main(room: str) -> None:
    """Run the room until it is told to stop, then write what was seen."""
    from services.runtime.main import run

    build = importlib.import_module(f"services.{room}.consumer").build
    seen: list[float] = []

    def before(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(LOCKING):
            connection.info.setdefault(SINCE, time.perf_counter())

    def back(_connection: Any, record: Any) -> None:
        since = record.info.pop(SINCE, None)
        if since is not None:
            seen.append((time.perf_counter() - since) * 1e3)

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Pool, "checkin", back)
    try:
        run(build)
    finally:
        (Path(os.environ["BENCH_LOCKS"]) / f"locks-{room}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
