"""Async tests on a clock that jumps: `@in_virtual_time` makes minutes pass in milliseconds, always the same way."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

from deadlinemesh.deadline import DeadlineContext
from deadlinemesh.testing import virtual_time

__all__ = ["in_virtual_time", "now", "with_seconds"]

P = ParamSpec("P")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a virtual loop of its own. Waiting for what will never happen fails it at once."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        virtual_time.run(test(*args, **kwargs))

    return run


def now() -> float:
    """The instant on the running virtual loop."""
    return virtual_time.clock().monotonic()


def with_seconds(seconds: float, *, tenant_id: str = "acme", run_id: str = "run-1") -> DeadlineContext:
    """A context on the running virtual loop with so many seconds to spend."""
    return DeadlineContext(
        tenant_id=tenant_id,
        absolute_deadline=now() + seconds,
        tier="free",
        trace_id="0" * 31 + "1",
        run_id=run_id,
        started_at=now(),
        clock=virtual_time.clock(),
    )
