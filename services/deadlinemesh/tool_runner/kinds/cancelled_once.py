"""A single cancellation for work that a second one would harm.

A scope cancels repeatedly, because a single `CancelledError` is easily swallowed. httpcore needs
several turns of the event loop to close a connection. A second cancellation in one of them leaves
the connection open for ever. The upstream then works on for a caller that has gone, and gets no
sign of it. So an HTTP exchange is cancelled once, and then has time to close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from deadlinemesh.deadline.lowlevel import outside_any_scope

__all__ = ["cancelled_once"]

T = TypeVar("T")

CANCELS_PASSED_OVER = 10
"""Cancellations per one that is passed on: the first, the eleventh and so on. Work that has not
ended after ten is not closing, but stuck.
"""


async def cancelled_once(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it with the caller, but only once.

    Returns or raises when it has ended.

    The caller waits for that end, so its scope sees, counts and reports work that takes too long.
    """
    # The scope must not adopt the task, because it would cancel it directly. It still owns the
    # task's threads: one looks up the host's name, and nothing can cancel that.
    task = asyncio.get_running_loop().create_task(work, context=outside_any_scope(but_threads=True))
    cancelled: asyncio.CancelledError | None = None
    cancels = 0
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            if cancels % CANCELS_PASSED_OVER == 0:
                task.cancel()
            cancels += 1
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller is cancelled and needs no result
        raise cancelled
    return task.result()
