"""`python -m services.runtime.embedded start|stop|status --data DIR [--only NAME]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from services.kernel.errors import TollbookError
from services.runtime import embedded


def main() -> int:
    """Runs one action and prints each server's address; 1 when something failed or does not run."""
    parser = argparse.ArgumentParser(prog="python -m services.runtime.embedded")
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--data", type=Path, default=Path(".tollbook"), help="the data folder (default .tollbook)")
    parser.add_argument("--only", choices=embedded.NAMES, action="append", help="this server only; may be repeated")
    asked = parser.parse_args()
    names = tuple(asked.only or embedded.NAMES)
    try:
        if asked.action == "start":
            embedded.start(asked.data, names, tell=_say)
        elif asked.action == "stop":
            embedded.stop(asked.data, names)
    except TollbookError as error:
        _say(str(error))
        return 1
    found = embedded.status(asked.data)
    for name in names:
        one = found[name]
        _say(f"{name}: port {one.ports['client']}, process {one.pid}" if one else f"{name}: does not run")
    return 0 if asked.action == "stop" or all(found[name] for name in names) else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
