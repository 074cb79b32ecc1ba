"""Named steps at which a test can kill this process, and nothing else.

``TOLLBOOK_CRASH=usage.batch.committed:3`` makes the third passage of that step a SIGKILL of the process by itself;
``TOLLBOOK_CRASH_LOG`` names a file that gets a line before the process dies, its id and the step, so that a test can prove
that it died there and of nothing else.
Without the variable a step costs one comparison.
"""

from __future__ import annotations

import os
import signal

_spec = os.environ.get("TOLLBOOK_CRASH", "")
_step, _, _count = _spec.partition(":")
_left = int(_count or "1") if _step else 0


def step(name: str) -> None:
    """Pass a named step; die here when a test asked for it."""
    global _left
    if not _step or name != _step:
        return
    _left -= 1
    if _left > 0:
        return
    log = os.environ.get("TOLLBOOK_CRASH_LOG")
    if log:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, f"{os.getpid()} {name}\n".encode())
        os.fsync(handle)
        os.close(handle)
    os.kill(os.getpid(), signal.SIGKILL)
