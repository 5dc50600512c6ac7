"""How late the event loop is, and whose work made it so.

One function that computes or blocks delays the deadlines of every tenant on its loop. While there is work at all, a thread asks the
loop for a sign of life, and where that fails to come it looks at what the loop is doing. Calls themselves are not touched.

What holds the interpreter as well, such as one long match of a regular expression, is looked at as it ends, and found all the same
unless the machine is too busy: the thread has been waiting for its turn since. What was gone before the look is not guessed at.
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
"""Seconds between two questions."""

LAGS_AFTER = 0.05
"""Seconds without an answer that are reported."""

_LOOK_EVERY = 0.005
"""Seconds between two looks at a loop that does not answer."""


@dataclass(frozen=True, slots=True)
class Lag:
    """The loop has not answered for `seconds`."""

    seconds: float
    function: str
    """Where it was found most often: the innermost function that is not of the standard library, and its line. Empty where it was
    gone before it could be looked at."""
    context: DeadlineContext | None
    """The call for which it worked; None where it worked for none, or that is not known."""


class LagWatch:
    """Watches the running loop from now on until `stop`; `on_lag` is called on it, once it is back."""

    def __init__(self, scopes: Scopes, on_lag: Callable[[Lag], None]) -> None:
        self._scopes = scopes
        self._on_lag = on_lag
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._answered = threading.Event()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="lag watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
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
        """What the loop works on, and for which call; None where it has gone on meanwhile, and this tells nothing."""
        task = asyncio.current_task(self._loop)
        function = _innermost(sys._current_frames().get(self._loop_thread))
        if not function or self._answered.is_set() or asyncio.current_task(self._loop) is not task:
            return None
        return function, None if task is None else self._scopes.context_of(task)


def _waits(frame: FrameType | None) -> bool:
    """Whether the loop waits for something to happen. It is not woken up to be asked, where its frame tells as much."""
    if frame is None:
        return False
    where = (frame.f_globals.get("__name__"), frame.f_code.co_name)
    return where in _WAITING or where[1] == "run_until_complete"


_WAITING = {("selectors", "select"), ("asyncio.runners", "run")}
"""Where asyncio's own loop waits, and the last that is Python's of one that waits elsewhere, as uvloop's: that, or what runs it."""


def _innermost(frame: FrameType | None) -> str:
    """The innermost function that is not of the standard library, or the innermost of all; empty where it is the loop's own."""
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
"""What of asyncio's own loop calls callbacks, and what calls that."""


def _named(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '')}.{frame.f_code.co_qualname}:{frame.f_lineno}"
