"""Which tools a tenant has: asked for each run, and remembered, so that runs go on while a tool-runner is in trouble."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from deadlinemesh.deadline import Attempt, current, narrowed_after
from deadlinemesh.errors import Stopped
from deadlinemesh.orchestrator.ports import ToolPort
from deadlinemesh.orchestrator.upstreams import Stopwatch, Upstreams, UpstreamStats
from deadlinemesh.vocabulary import ToolSpec

__all__ = ["Catalog", "Listed"]

_LOG = logging.getLogger("deadlinemesh.orchestrator")

SHARE = 0.25
"""The part of a run's remaining time that it may take to learn which tools there are."""

MOST_TENANTS = 1024
"""Tenants whose tools are remembered; of those that began no run for longest they are forgotten."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The tools of one tenant."""

    specs: tuple[ToolSpec, ...]
    now: bool
    """Whether this is what there is now; else it was so when they could last be learned."""


class Catalog:
    """The tools of each tenant, as `tools` last named them."""

    def __init__(self, tools: ToolPort, upstreams: Upstreams) -> None:
        self._tools = tools
        self._upstreams = upstreams
        self._last: OrderedDict[str, tuple[ToolSpec, ...]] = OrderedDict()
        self._in_trouble = False

    async def listed(self, retries: int, waiting: Callable[[], AbstractContextManager[object]]) -> Listed:
        """The current tenant's tools; those of last time, or none, where they cannot be learned now, nor by so many `retries`.

        `waiting` is entered around a backoff. Raises only what refuses the tenant, and DeadlineSpent.
        """
        here = current()
        upstream = self._upstreams.of("tools")
        window, patience = here.remaining * SHARE, upstream.patience
        try:
            async with narrowed_after(window if patience is None else min(window, (1 + retries) * patience), "listing"):
                specs = await upstream.retried(
                    partial(self._asked_for, upstream),
                    retries,
                    is_transient=lambda error: isinstance(error, Stopped),
                    waiting=waiting,
                )
        except Stopped as trouble:
            if here.is_expired:
                raise
            if not self._in_trouble:
                _LOG.warning("no tool-runner says which tools there are, so runs use those of before: %s", trouble)
            self._in_trouble = True
            return Listed(self._last.get(here.tenant_id, ()), now=False)
        self._in_trouble = False
        self._last[here.tenant_id] = specs
        self._last.move_to_end(here.tenant_id)
        if len(self._last) > MOST_TENANTS:
            self._last.popitem(last=False)
        return Listed(specs, now=True)

    async def _asked_for(self, upstream: UpstreamStats, attempt: Attempt) -> tuple[ToolSpec, ...]:
        timed = Stopwatch(upstream)
        timed.begin()
        attempt.alive()  # so that its patience is what is known of the upstream
        specs = await self._tools.specs()
        timed.end()
        return specs
