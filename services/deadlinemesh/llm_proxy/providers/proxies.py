"""The proxy between the llm-proxy and a model's endpoint, from the standard environment variables.

Only providers use a proxy. Hops, tools, telemetry collectors, and endpoints on this machine are
reached directly, regardless of the variables.
"""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from urllib import request as urllib_request

import httpx2

from deadlinemesh.llm_proxy.providers.unusable import Unusable

__all__ = ["UnusableProxy", "transport_to"]

_SCHEMES = ("http", "https", "socks5", "socks5h")


class UnusableProxy(Unusable):
    """A variable names a proxy that cannot be used.

    The message names the variable and the remedy.
    """


def transport_to(url: str, limits: httpx2.Limits) -> httpx2.AsyncHTTPTransport:
    """An HTTP transport to the endpoint `url`, through the proxy that the environment names.

    `HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` names it for the scheme, unless `NO_PROXY` lists the
    host. Raises UnusableProxy if the variable's value cannot be used. The message does not repeat
    the value: it may hold a password.
    """
    endpoint, proxies = httpx2.URL(url), urllib_request.getproxies_environment()
    scheme = endpoint.scheme if endpoint.scheme in proxies else "all"
    value = proxies.get(scheme, "")
    if not value or _is_local(endpoint.host) or _is_excepted(endpoint, proxies):
        return httpx2.AsyncHTTPTransport(limits=limits)
    try:
        proxy = httpx2.URL(value if "://" in value else f"http://{value}")
        if proxy.scheme not in _SCHEMES or not proxy.host or not (proxy.port is None or 0 < proxy.port < 65536):
            raise ValueError(f"it is no proxy's URL: write {', '.join(_SCHEMES)}, then ://HOST:PORT")
        return httpx2.AsyncHTTPTransport(limits=limits, proxy=proxy)
    except httpx2.InvalidURL:
        reason = "it is not a URL: write http://HOST:PORT"
    except ImportError:
        reason = "it names a SOCKS proxy, which needs the package socksio: install it, or name an HTTP proxy"
    except ValueError as error:
        reason = str(error)
    raise UnusableProxy(
        f"{_variable(scheme)} cannot be used for {endpoint.host}: {reason}, or list the host in NO_PROXY"
    )


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_excepted(endpoint: httpx2.URL, proxies: dict[str, str]) -> bool:
    named = endpoint.host if endpoint.port is None else f"{endpoint.host}:{endpoint.port}"
    bypassed: bool = urllib_request.proxy_bypass_environment(named, proxies)  # type: ignore[attr-defined]  # the stubs lack it
    return bypassed or _is_in_network(endpoint.host, proxies.get("no", ""))


def _is_in_network(host: str, no_proxy: str) -> bool:
    for network in no_proxy.split(","):
        try:
            if ip_address(host) in ip_network(network.strip(), strict=False):
                return True
        except ValueError:  # a host name, or not a network
            continue
    return False


def _variable(scheme: str) -> str:
    """The name of the proxy's variable, as written in the environment.

    Small letters are preferred.
    """
    name = f"{scheme}_proxy"
    return max((one for one in os.environ if one.lower() == name), default=name)
