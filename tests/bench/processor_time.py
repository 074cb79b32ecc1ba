"""Who used the processors during a run: each room's Python, its share of PostgreSQL, Kafka."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import asyncpg
import psutil  # type: ignore[import-untyped]

from services.runtime.embedded import Name, Running

BACKENDS = "select pid, application_name from pg_stat_activity"


@dataclass(frozen=True)
class Used:
    """Seconds of processor time so far: of Python and of PostgreSQL per room, of the servers as wholes."""

    python: dict[str, float]
    postgres: dict[str, float]
    postgres_in_all: float
    kafka: float

    def since(self, before: Used) -> Used:
        return Used(
            {room: seconds - before.python.get(room, 0.0) for room, seconds in self.python.items()},
            {room: seconds - before.postgres.get(room, 0.0) for room, seconds in self.postgres.items()},
            self.postgres_in_all - before.postgres_in_all,
            self.kafka - before.kafka,
        )

    def per_event(self, events: int) -> dict[str, dict[str, float]]:
        """Microseconds an event, as {"usage": {"python": 12.3, "postgres": 8.3}, ..., "kafka": {"all": 1.2}}."""
        table = {
            room: {
                "python": round(seconds / events * 1e6, 1),
                "postgres": round(self.postgres.get(room, 0.0) / events * 1e6, 1),
            }
            for room, seconds in self.python.items()
        }
        rest = self.postgres_in_all - sum(self.postgres.values())
        table["postgres, its own work"] = {"postgres": round(rest / events * 1e6, 1)}
        table["kafka"] = {"java": round(self.kafka / events * 1e6, 1)}
        return table


async def used(connection: asyncpg.Connection, rooms: Mapping[str, list[int]], servers: Mapping[Name, Running]) -> Used:
    """Now. ``rooms`` are the processes of each room; a backend is known by the name its room gave the connection."""
    owners = {row["pid"]: row["application_name"] for row in await connection.fetch(BACKENDS)}
    postgres: dict[str, float] = defaultdict(float)
    in_all = 0.0
    server = psutil.Process(servers["postgres"].pid)
    # what has ended since is in the times of the children of the server
    times = server.cpu_times()
    in_all += times.user + times.system + times.children_user + times.children_system
    for backend in server.children():
        seconds = _seconds(backend)
        in_all += seconds
        name = owners.get(backend.pid) or ""
        if name.startswith("tollbook."):
            postgres[name.removeprefix("tollbook.")] += seconds
    python = {room: sum(_seconds(psutil.Process(pid)) for pid in pids) for room, pids in rooms.items()}
    return Used(python, dict(postgres), in_all, _seconds(psutil.Process(servers["kafka"].pid)))


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
