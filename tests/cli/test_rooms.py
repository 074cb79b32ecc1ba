"""Room processes that crash are seen, explained, and started again with a back-off."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.rooms import BACK_OFF_S_MIN, RoomProcesses, own_environment
from services.kernel.errors import Unavailable

STARTS_S_MAX = 60.0


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[RoomProcesses]:
    """Processes that find no server and so cannot run."""
    made = RoomProcesses(tmp_path / "logs", own_environment(tmp_path / "nothing-here"))
    yield made
    made.stop()


def crashed(rooms: RoomProcesses) -> list[str]:
    give_up = time.monotonic() + STARTS_S_MAX
    while time.monotonic() < give_up:
        if found := rooms.look():
            return [copy.room for copy in found]
        time.sleep(0.05)
    raise AssertionError("no room ended")


def test_a_room_that_ends_is_started_again_after_a_back_off_that_doubles(rooms: RoomProcesses) -> None:
    rooms.start(["payments"])
    assert crashed(rooms) == ["payments"]
    (copy,) = rooms.copies
    assert (copy.exit_code, copy.crashes, copy.back_off_s) == (1, 1, 2 * BACK_OFF_S_MIN)
    assert rooms.look() == []
    assert crashed(rooms) == ["payments"]
    assert (copy.crashes, copy.back_off_s) == (2, 4 * BACK_OFF_S_MIN)


def test_a_program_that_starts_nothing_again_shows_the_end_of_the_log(rooms: RoomProcesses) -> None:
    rooms.start(["payments"])
    process = rooms.copies[0].process
    assert process is not None
    process.wait(STARTS_S_MAX)
    with pytest.raises(Unavailable, match="TOLLBOOK_") as raised:
        rooms.check()
    assert raised.value.field == "payments"
    assert "ended with code 1" in raised.value.message
