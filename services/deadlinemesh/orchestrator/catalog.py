"""The tools of each tenant: listed for each run, and remembered in case the tool-runner fails."""

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
"""Share of a run's remaining time that the listing of its tools may take."""

MOST_TENANTS = 1024
"""Tenants with remembered tools. The tenant with the oldest listing is forgotten first."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The tools of one tenant."""

    specs: tuple[ToolSpec, ...]
    now: bool
    """True if the listing is of now, false if it is remembered from an earlier run."""


class Catalog:
    """The tools of each tenant, as `tools` last listed them."""

    def __init__(self, tools: ToolPort, upstreams: Upstreams) -> None:
        self._tools = tools
        self._upstreams = upstreams
        self._last: OrderedDict[str, tuple[ToolSpec, ...]] = OrderedDict()
        self._in_trouble = False

    async def listed(self, retries: int, waiting: Callable[[], AbstractContextManager[object]]) -> Listed:
        """List the current tenant's tools. If all attempts fail, the remembered ones, or none.

        `retries` are the attempts after the first. `waiting` is entered around each backoff. Raises
        errors that refuse the tenant. Raises a Stopped error only if the current deadline has
        passed.
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
        attempt.alive()  # now the attempt has the patience learned for its upstream
        specs = await self._tools.specs()
        timed.end()
        return specs
