"""Balance with a watch on its wallets: `python -m tests.bench.locking balance`, [begin, milliseconds] in the folder BENCH_LOCKS.

A watch runs from the moment the statement that locks the wallets of a batch is sent until the connection is back in its pool,
after the commit: a little longer than any of the rows is locked.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

from services.balance import store
from services.runtime.work import Work

SINCE = "wallets_locked_at"


def main(room: str) -> None:
    """Run the room until it is told to stop, then write what was seen."""
    from services.runtime.main import run

    build = importlib.import_module(f"services.{room}.consumer").build
    seen: list[tuple[float, float]] = []
    lock = store.add_to_wallets

    async def watched(work: Work, additions: Sequence[store.Addition]) -> list[store.Standing]:
        (await work.connection.get_raw_connection()).info.setdefault(SINCE, time.monotonic())
        return await lock(work, additions)

    def back(_connection: Any, record: Any) -> None:
        since = record.info.pop(SINCE, None)
        if since is not None:
            seen.append((since, (time.monotonic() - since) * 1e3))

    store.add_to_wallets = watched
    event.listen(Pool, "checkin", back)
    try:
        run(build)
    finally:
        (Path(os.environ["BENCH_LOCKS"]) / f"locks-{room}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
