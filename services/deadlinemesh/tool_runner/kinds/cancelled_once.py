"""One cancellation for what cannot bear two.

A scope cancels again and again, because a single `CancelledError` is easily swallowed. httpcore needs some turns of the
event loop to close a connection, and a second cancellation in one of them leaves the connection open for ever: the
upstream works on for a caller that has gone, and nothing will tell it. So an exchange gets one, and then its time to
close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from deadlinemesh.deadline.lowlevel import outside_any_scope

__all__ = ["cancelled_once"]

T = TypeVar("T")

PATIENCE = 10
"""Cancellations after which another one is passed on: what has not ended by then is not closing, but stuck."""


async def cancelled_once(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which is cancelled with the caller, but only once. Returns or raises when it has really ended.

    The caller waits for that, so its scope sees, counts and reports whatever takes too long.
    """
    # The scope must not adopt the task, or it would cancel it itself. Nothing can cancel a thread that looks up a name.
    task = asyncio.get_running_loop().create_task(work, context=outside_any_scope(but_threads=True))
    cancelled: asyncio.CancelledError | None = None
    cancels = 0
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            if cancels % PATIENCE == 0:
                task.cancel()
            cancels += 1
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen: nobody is left to be told
        raise cancelled
    return task.result()
