"""A room under a sampling profiler: `python -m tests.bench.profiled ROOM`, its findings in the folder BENCH_PROFILE.

The timer counts processor time of the process, so waiting is not seen; what C code uses is counted at the line that
called it. Statements are timed by the clock, with whatever ran on the loop meanwhile.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

SAMPLE_S = 0.001  # the kernel makes it the length of its tick, often 4 ms
SHOWN = 45


class Sampler:
    """Where the process is, at every tick of its processor time."""

    def __init__(self) -> None:
        self.samples = 0
        self.lines: Counter[str] = Counter()
        self.own: Counter[str] = Counter()
        self.within: Counter[str] = Counter()
        self.statements: Counter[str] = Counter()
        self.statement_s: Counter[str] = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        event.listen(Engine, "before_cursor_execute", self._before)
        event.listen(Engine, "after_cursor_execute", self._after)

    def stop(self, path: Path) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        top = {
            "samples": self.samples,
            "own": self.own.most_common(SHOWN),
            "within": self.within.most_common(SHOWN),
            "lines": self.lines.most_common(SHOWN),
            "statements": [
                (text, self.statements[text], seconds) for text, seconds in self.statement_s.most_common(SHOWN)
            ],
        }
        path.write_text(json.dumps(top))

    def _sample(self, _: int, frame: FrameType | None) -> None:
        self.samples += 1
        if frame is None:
            return
        self.lines[f"{_short(frame)}:{frame.f_lineno}"] += 1
        self.own[_short(frame)] += 1
        seen = set()
        at: FrameType | None = frame
        while at is not None:
            seen.add(_short(at))
            at = at.f_back
        self.within.update(seen)

    def _before(self, connection: Any, *_: Any) -> None:
        connection.info["begun_at"] = time.perf_counter()

    def _after(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        text = " ".join(statement.split())[:110]
        self.statements[text] += 1
        self.statement_s[text] += time.perf_counter() - connection.info["begun_at"]


def _short(frame: FrameType) -> str:
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-2:])} {code.co_qualname}"


def main(room: str) -> None:
    """Run the room until it is told to stop, then write what was seen."""
    from services.runtime.main import run

    build = importlib.import_module(f"services.{room}.consumer").build
    sampler = Sampler()
    sampler.start()
    try:
        run(build)
    finally:
        sampler.stop(Path(os.environ["BENCH_PROFILE"]) / f"profile-{room}.json")


if __name__ == "__main__":
    main(sys.argv[1])
