"""No caller waits for longer than the deadline, whatever the database does: a switch has a caller of its own who waits.

What was under way may still be carried out. So the same request again finds a grant that came too late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from services.kernel.errors import Unavailable

T = TypeVar("T")

_left_behind: set[asyncio.Task[Any]] = set()  # the loop itself keeps no task


async def in_time(request: Request, answering: Coroutine[Any, Any, T]) -> T:
    """The answer, or `Unavailable` at the application's deadline. What is left behind may take its time to end: a connection on
    which nothing moves is not even given back at once."""
    answer_s_max: float = request.app.state.answer_s_max
    task = asyncio.create_task(answering)
    done, _ = await asyncio.wait({task}, timeout=answer_s_max)
    if not done:
        task.cancel()
        _left_behind.add(task)
        task.add_done_callback(_forget)
        raise Unavailable(f"there was no answer within {answer_s_max:g} s; send the same request again", code="timeout")
    return task.result()


def _forget(task: asyncio.Task[Any]) -> None:
    _left_behind.discard(task)
    if not task.cancelled():
        task.exception()  # nobody else asks for it


class TimedRoute(APIRoute):
    """A path that is answered in time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Of the path: from a request to its response."""
        handle = super().get_route_handler()

        async def timed(request: Request) -> Response:
            return await in_time(request, handle(request))

        return timed
