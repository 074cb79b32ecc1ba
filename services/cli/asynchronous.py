"""Lets a command be written as a coroutine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def asynchronous(function: Callable[P, Awaitable[R]]) -> Callable[P, R]:
    """The function runs in a loop of its own; its parameters stay the command line's."""

    @functools.wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        async def inside() -> R:
            return await function(*arguments, **options)

        return asyncio.run(inside())

    return run
