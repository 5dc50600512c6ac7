"""HTTP connections: how many, to whom, and whose wait for one is charged to whom.

Two things about the client matter here.

The pool of httpcore must never make a request wait. One that is cancelled just as it is given a new connection leaves
the connection behind for ever (httpcore issue 1093), and calls that share a deadline are cancelled in the very
same moment. So the pool is unbounded and the wait is ours: it costs the waiter's own time, it is measured, and a cancel
leaves nothing behind.

The client must have no memory. It is shared by all tenants, so a cookie that one call is given must not go out with
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
    """The HTTP client of one tool-runner. It has no timeouts: the scope's deadline covers all, the wait included."""
    return httpx.AsyncClient(
        timeout=None,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=tools.connections_per_host),
        follow_redirects=False,
        trust_env=False,  # a .netrc or a proxy variable must not decide whom tenants' data is sent to
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"User-Agent": "deadline-mesh", "Accept-Encoding": "identity"},  # what is counted is what is kept
    )


class OriginConnections:
    """The connections to each origin. `bulkhead` makes one's, given its name and its bounds."""

    def __init__(self, policy: Policy, bulkhead: Callable[..., Bulkhead]) -> None:
        self._bulkhead = bulkhead
        self._by_origin: dict[str, Bulkhead] = {}
        self.use(policy, policy.shares())

    def use(self, policy: Policy, shares: Mapping[str, Share]) -> None:
        """Go on with the bounds of `policy` and these shares. Who holds a connection, or waits for one, goes on to."""
        self._bounds: dict[str, Any] = {
            "limit": policy.tools.connections_per_host,
            "shares": shares,
            "most_waiting": policy.admission.most_waiting,
        }
        for bulkhead in self._by_origin.values():
            bulkhead.resize(**self._bounds)

    def to(self, origin: str) -> Bulkhead:
        """The connections to `origin`: hold a slot of it for each request."""
        if origin not in self._by_origin:
            self._by_origin[origin] = self._bulkhead(f"connections to {origin}", told="the tool's host", **self._bounds)
        return self._by_origin[origin]
