"""Ends calls if the peer does not send its request, or does not read its reply.

A peer with a flow-control window of 0 holds back a reply, the status behind it, and so the whole
call. The core ends such a call itself only if the client sent a `grpc-timeout`. grpc.aio can end a
call only by sending something.

One way remains: the core resets the stream of a call that nothing refers to any more. Two tasks of
grpc.aio refer to a call, and both can be cancelled. Its server refers to the last call it took
until it takes another, so `on_ended` makes a server call itself.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable
from contextvars import Context
from enum import Enum
from functools import partial
from math import inf
from typing import Any

from deadlinemesh.deadline import Clock, DeadlineContext

__all__ = ["LAST_MESSAGE_S", "READ_GRACE_S", "UNREAD_AFTER_S", "Exchange", "Stage", "Stragglers"]

READ_GRACE_S = 0.15
"""Seconds after its deadline in which a reply must be read. Less than the 250 ms after which work
counts as an orphan.
"""

LAST_MESSAGE_S = 1.0
"""Seconds in which a message without a deadline, such as a refusal, must be read."""

UNREAD_AFTER_S = 0.05
"""Seconds after which a message that is being sent counts as unread. A message that is read leaves
at once.
"""

_JUST_BEFORE_S = 0.005
"""Seconds before its deadline at which an unread reply is noted. At the deadline itself the peer's
own timer ends the call.
"""

_BEHIND_S = 0.02
"""Seconds. If a timer is later than this, the calls to end get the same time once more."""

_END_EVERY_S = 0.02
"""Seconds between two rounds of ending calls. Finding their other tasks takes as long for one call
as for all calls due by then.
"""

_FEWEST_KEPT = 32


class Stage(Enum):
    """The event that a call waits for."""

    REQUEST = "request"
    """The peer sends its request."""
    WORK = "work"
    """The handler works. The call's scope ends it."""
    FIRST_MESSAGE = "first message"
    """The peer reads the first message. No scope may cut that."""
    REPLY = "reply"
    """The peer reads the rest of the reply."""


_WORK, _REPLY = Stage.WORK, Stage.REPLY  # Python looks the members of an enumeration up slowly


class Exchange:
    """One call, as far as it depends on its peer. `until` is the instant at which the stage must be
    over; inf for work.
    """

    __slots__ = ("apart", "context", "method", "request_late", "sending_since", "stage", "task", "unread", "until")

    def __init__(self, task: asyncio.Task[Any], method: str) -> None:
        self.task = task
        """The task of grpc.aio that runs the handler and sends the reply."""
        self.method = method
        self.until = inf
        self.stage = _WORK
        self.context: DeadlineContext | None = None
        """The context of the call; None while the gate has not believed it."""
        self.apart: asyncio.Task[None] | None = None
        """The task that sends the first message, if it is not `task`."""
        self.request_late = False
        """True if the task was cancelled because the request did not arrive in time."""
        self.sending_since = inf
        """The instant at which the sending of the current message began; inf if none is being sent.
        Not set for the last message of a call.
        """
        self.unread = False
        """True if the call has ended, by its peer's timer or by ours, with something unread."""

    def work(self) -> None:
        """Enter the stage WORK: the call waits for the handler, not for the peer."""
        self.stage, self.until = _WORK, inf


class Stragglers:
    """The exchanges of one hop. `on_unread` is called once for each that ends with something
    unread.
    """

    def __init__(self, clock: Clock, on_unread: Callable[[Exchange], None]) -> None:
        self.on_ended: Callable[[], None] = lambda: None
        """Called after calls were ended without a status."""
        self._clock = clock
        self._on_unread = on_unread
        self._exchanges: set[Exchange] = set()
        self._crowded = _FEWEST_KEPT
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = inf
        self._was_behind = False
        self._ends_again_at = -inf

    def expect(self, exchange: Exchange, stage: Stage, until: float) -> None:
        """Enter `stage`: the peer must act until the instant `until`. The exchange is watched until
        its task has ended.
        """
        exchange.stage, exchange.until = stage, until
        self._exchanges.add(exchange)
        if until < self._looks_at:
            self._look_at(until)
        if len(self._exchanges) > self._crowded:
            self._forget_ended()

    def open(self, exchange: Exchange) -> None:
        """Give the peer until READ_GRACE_S after the deadline to read the first message."""
        assert exchange.context is not None
        self.expect(exchange, Stage.FIRST_MESSAGE, exchange.context.absolute_deadline + READ_GRACE_S)

    def reply(self, exchange: Exchange, now: float) -> None:
        """Set the instant until which the peer must read the rest of the reply."""
        context = exchange.context
        if context is None:
            until = now + LAST_MESSAGE_S
        else:
            at = context.absolute_deadline
            until = at - _JUST_BEFORE_S if now < at - _JUST_BEFORE_S else max(at, now) + READ_GRACE_S
        self.expect(exchange, _REPLY, until)

    def give_up(self, exchange: Exchange) -> None:
        """Stop waiting for the request of one call."""
        exchange.request_late = True
        # Not from the running task: a scope would take that for the caller's leaving.
        asyncio.get_running_loop().call_soon(exchange.task.cancel, context=Context())

    def hurry(self) -> None:
        """Stop waiting for any request."""
        now = self._clock.monotonic()
        for exchange in self._exchanges:
            if exchange.stage is Stage.REQUEST:
                exchange.until = now
        self._look()

    async def sent(self) -> None:
        """Return once every reply being sent has been read, or its call has ended."""
        while sending := {one.task for one in self._exchanges if one.stage is not Stage.WORK and not one.task.done()}:
            await asyncio.wait(sending)

    def end_all(self) -> None:
        """End every call that waits for its peer."""
        self.end([one for one in self._exchanges if one.stage is not Stage.WORK and not one.task.done()])

    def unread(self, exchange: Exchange) -> None:
        """Record that the call ends with something unread."""
        if not exchange.unread:
            exchange.unread = True
            self._on_unread(exchange)

    def end(self, exchanges: Iterable[Exchange]) -> None:
        """End calls at once, without a status: their streams are reset."""
        listeners = _listeners()
        for exchange in exchanges:
            asyncio.Task.cancel(exchange.task)  # not by the scope, as it may be holding
            for task in (exchange.apart, listeners.get(exchange.task)):
                if task is not None:
                    task.cancel()
        self.on_ended()

    def _look_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = at
        # On the loop's own clock: it may differ from ours. In an empty context, so that the timer
        # keeps no call alive.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, at - self._clock.monotonic()), self._look, context=Context())

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._clock.monotonic()
        is_behind = _BEHIND_S < now - self._looks_at < inf
        self._timer, self._looks_at = None, inf
        self._forget_ended()
        late = [exchange for exchange in self._exchanges if exchange.until <= now]
        if is_behind and not self._was_behind:
            # The event loop stood still. Events of that time are not handled yet and may still
            # complete these calls.
            self._was_behind = True
            self._look_at(now + _BEHIND_S)
            return
        self._was_behind = False
        unread = []
        for exchange in late:
            deadline = None if exchange.context is None else exchange.context.absolute_deadline
            exchange.until = max(deadline or now, now) + READ_GRACE_S  # may take several cancels
            if exchange.stage is Stage.REQUEST and not exchange.request_late:
                self.give_up(exchange)
            elif exchange.stage is Stage.REPLY and deadline is not None and now < deadline:
                exchange.task.add_done_callback(partial(self._ended, exchange), context=Context())
            elif exchange.stage is not Stage.WORK:
                if now < self._ends_again_at:
                    exchange.until = self._ends_again_at
                else:
                    unread.append(exchange)
        if unread:
            self._ends_again_at = now + _END_EVERY_S
            self.end(unread)
        for exchange in unread:
            self.unread(exchange)
        nearest = min((exchange.until for exchange in self._exchanges), default=inf)
        if nearest < inf:
            self._look_at(nearest)

    def _ended(self, exchange: Exchange, _: object) -> None:
        """Note an unread reply: the call was in its reply just before its deadline, and has ended.
        It was not read if that was at the deadline itself.
        """
        assert exchange.context is not None
        if exchange.context.remaining <= 0:
            self.unread(exchange)

    def _forget_ended(self) -> None:
        self._exchanges = {exchange for exchange in self._exchanges if not exchange.task.done()}
        self._crowded = max(_FEWEST_KEPT, 2 * len(self._exchanges))

    def __len__(self) -> int:
        return sum(not exchange.task.done() for exchange in self._exchanges)


def _listeners() -> dict[asyncio.Task[Any], asyncio.Task[Any]]:
    """For the task of each call, the other task that grpc.aio has for it: that one listens for the
    call's end.

    grpc.aio keeps no reference from one to the other. So they are found among the objects that, by
    the garbage collector, the listening task refers to.
    """
    found = {}
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        if getattr(coroutine, "__name__", "") == "_schedule_rpc_coro":
            for variables in gc.get_referents(coroutine):
                for value in gc.get_referents(variables):
                    if isinstance(value, asyncio.Task):
                        found[value] = task
    return found
