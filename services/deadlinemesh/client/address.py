"""Loopback addresses: calls to them stay on this machine."""

from __future__ import annotations

import ipaddress
import re

__all__ = ["is_loopback"]

_SCHEME = re.compile(r"(?:dns:(?://[^/]*/)?|ipv4:|ipv6:)")


def is_loopback(address: str) -> bool:
    """True if calls to `address` never leave this machine.

    `address` is a gRPC target such as `localhost:50051` or `[::1]:50051`.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    scheme = _SCHEME.match(address)
    host = address[scheme.end() if scheme else 0 :]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
