"""HTTP connections: a limit per origin, shared fairly, with each wait charged to its waiter.

Two properties of the client are essential.

The pool of httpcore must never make a request wait. A request that is cancelled just as it is given
a new connection leaks that connection for ever (httpcore issue 1093). Calls that share a deadline
are cancelled at the very same moment. So the pool is unbounded, and requests wait in a bulkhead of
this project instead. That wait spends the waiter's own time, is measured, and leaks nothing when
cancelled.

The client must keep no state. All tenants share it, so a cookie from one call must not go out with
another's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from deadlinemesh.admission import Bulkhead, Share
from deadlinemesh.policy.model import Policy, ToolsPolicy

__all__ = ["OriginConnections", "pooled_client"]


def pooled_client(tools: ToolsPolicy) -> httpx.AsyncClient:
    """The HTTP client of one tool-runner.

    It has no timeouts: the scope's deadline covers everything, including the wait.
    """
    return httpx.AsyncClient(
        timeout=None,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=tools.connections_per_host),
        follow_redirects=False,
        trust_env=False,  # a .netrc or a proxy variable must not redirect tenants' data
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"User-Agent": "deadline-mesh", "Accept-Encoding": "identity"},  # limits count real sizes
    )


class OriginConnections:
    """A bulkhead of connections for each origin.

    `bulkhead` makes one, given its name and its bounds.
    """

    def __init__(self, policy: Policy, bulkhead: Callable[..., Bulkhead]) -> None:
        self._bulkhead = bulkhead
        self._by_origin: dict[str, Bulkhead] = {}
        self.reconfigure(policy, policy.shares())

    def reconfigure(self, policy: Policy, shares: Mapping[str, Share]) -> None:
        """Apply the bounds of `policy` and these shares. Holders and waiters are kept."""
        self._bounds: dict[str, Any] = {
            "limit": policy.tools.connections_per_host,
            "shares": shares,
            "most_waiting": policy.admission.most_waiting,
        }
        for bulkhead in self._by_origin.values():
            bulkhead.resize(**self._bounds)

    def to(self, origin: str) -> Bulkhead:
        """The connections to `origin`. Hold one slot for each request."""
        if origin not in self._by_origin:
            self._by_origin[origin] = self._bulkhead(f"connections to {origin}", told="the tool's host", **self._bounds)
        return self._by_origin[origin]
