"""What is told to end, ends."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.ending import end, stacks


@pytest.mark.parametrize("answers", [0, 1, 2])
async def test_a_task_that_answers_cancellations_with_errors_is_ended(answers):
    left = answers

    async def runs():
        nonlocal left
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                left -= 1
                if left < 0:
                    raise

    task = asyncio.create_task(runs())
    ended = asyncio.create_task(asyncio.sleep(0))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await end([task, ended])
    assert task.cancelled()
    assert left == -1


async def test_it_is_told_where_each_task_stands():
    async def stands_here():
        await asyncio.sleep(3600)

    task = asyncio.create_task(stands_here())
    await asyncio.sleep(0)
    assert "stands_here" in stacks()
    await end([task])
