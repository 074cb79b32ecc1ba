"""The demo's servers on an empty folder. Imports little, so that they come up while the rest of the demo is still read."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.kernel.errors import InvalidInput
from services.runtime import embedded

MARK = "demo"  # a file that says that a folder may be emptied: nobody loses data by a mistyped option


def start(data: Path) -> None:
    """Empties the folder and starts Kafka, PostgreSQL and Valkey on it. Blocks for some seconds.

    `InvalidInput` for a folder that holds something else than an earlier demo.
    """
    if data.exists() and any(data.iterdir()) and not (data / MARK).exists():
        raise InvalidInput(f"{data} holds something else than an earlier demo; name another folder", field="data")
    if data.exists():
        embedded.stop(data)
        shutil.rmtree(data)
    data.mkdir(parents=True)
    (data / MARK).write_text("This folder belongs to `tollbook demo`, which empties it.\n")
    embedded.start(data)
