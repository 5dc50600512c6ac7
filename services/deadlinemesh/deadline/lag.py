"""The lateness of the event loop, and the call that caused it.

One function that computes or blocks delays the deadlines of every tenant on its loop. While any
scope is live, a thread asks the loop for a sign of life. If the loop does not answer, the thread
samples the loop's stack. Calls themselves are not touched.

Code that also holds the GIL, such as one long regular expression match, is sampled as it ends. The
thread has been waiting for the GIL, so it still finds this code, unless the machine is too busy.
Code that ended before the sample is not guessed at.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from types import FrameType

from deadlinemesh.deadline.context import DeadlineContext
from deadlinemesh.deadline.scope import Scopes

__all__ = ["ASK_EVERY", "LAGS_AFTER", "Lag", "LagWatch"]

ASK_EVERY = 0.025
"""Seconds between two requests for a sign of life."""

LAGS_AFTER = 0.05
"""Seconds without an answer. After these, a lag is reported."""

_LOOK_EVERY = 0.005
"""Seconds between two samples of a loop that does not answer."""


@dataclass(frozen=True, slots=True)
class Lag:
    """The loop did not answer for `seconds`."""

    seconds: float
    function: str
    """The function found in most samples, with its line: the innermost one outside the standard
    library. Empty if the work ended before the first sample."""
    context: DeadlineContext | None
    """The call that the function worked for; None if there is none, or if it is not known."""


class LagWatch:
    """Watches the running loop until `stop`. After a lag, `on_lag` is called on the loop."""

    def __init__(self, scopes: Scopes, on_lag: Callable[[Lag], None]) -> None:
        self._scopes = scopes
        self._on_lag = on_lag
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._answered = threading.Event()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="lag watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(ASK_EVERY):
            if not len(self._scopes) or _waits(sys._current_frames().get(self._loop_thread)):
                continue
            try:
                self._ask()
            except RuntimeError:  # the loop is closed
                return

    def _ask(self) -> None:
        self._answered.clear()
        asked_at = time.monotonic()
        self._loop.call_soon_threadsafe(self._answered.set, context=Context())
        if self._answered.wait(LAGS_AFTER):
            return
        seen: Counter[tuple[str, DeadlineContext | None]] = Counter()
        while True:
            if found := self._look():
                seen[found] += 1
            if self._answered.wait(_LOOK_EVERY) or self._stopped.is_set():
                break
        function, context = seen.most_common(1)[0][0] if seen else ("", None)
        lag = Lag(time.monotonic() - asked_at, function, context)
        self._loop.call_soon_threadsafe(self._on_lag, lag, context=Context())

    def _look(self) -> tuple[str, DeadlineContext | None] | None:
        """The loop's present function, and the call that it works for.

        None if the loop went on during the sample, or if only the loop's own code runs.
        """
        task = asyncio.current_task(self._loop)
        function = _innermost(sys._current_frames().get(self._loop_thread))
        if not function or self._answered.is_set() or asyncio.current_task(self._loop) is not task:
            return None
        return function, None if task is None else self._scopes.context_of(task)


def _waits(frame: FrameType | None) -> bool:
    """True if the frame shows that the loop waits for events. Then it need not be woken."""
    if frame is None:
        return False
    where = (frame.f_globals.get("__name__"), frame.f_code.co_name)
    return where in _WAITING or where[1] == "run_until_complete"


_WAITING = {("selectors", "select"), ("asyncio.runners", "run")}
"""Modules and functions of a waiting loop: asyncio's own, and the last Python frame above uvloop's,
as that waits in C. There, the last frame may also be `run_until_complete`."""


def _innermost(frame: FrameType | None) -> str:
    """The innermost function outside the standard library, else the innermost of all.

    Empty if only the loop's own code runs.
    """
    first = frame
    while frame is not None and not _is_of_the_loop(frame):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in sys.stdlib_module_names:
            return _named(frame)
        frame = frame.f_back
    return "" if first is None or first is frame or _waits(first) else _named(first)


def _is_of_the_loop(frame: FrameType) -> bool:
    return frame.f_code.co_name == "run_until_complete" or frame.f_code in _TURNS


_TURNS = {asyncio.Handle._run.__code__, asyncio.BaseEventLoop._run_once.__code__}  # type: ignore[attr-defined]  # not of its stub
"""Code objects of asyncio's callback dispatch. Frames at or above them are the loop itself."""


def _named(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}:{frame.f_lineno}"
