"""Proxies that the environment names: providers use them, hops never do."""

from __future__ import annotations

import os
from typing import Any

import grpc
import httpx2
import pytest

from deadlinemesh.llm_proxy.providers import provider_of, providers_of
from deadlinemesh.llm_proxy.providers.proxies import UnusableProxy, transport_to
from deadlinemesh.llm_proxy.providers.unusable import UnusableProvider
from deadlinemesh.policy.model import OpenAIModel, ScriptedModel
from deadlinemesh.transport.channels import open_channel

ELSEWHERE = "https://api.openai.com/v1"
LIMITS = httpx2.Limits()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def proxy_of(url: str) -> str:
    """The proxy between here and `url`; empty without one."""
    proxy = getattr(transport_to(url, LIMITS)._pool, "_proxy_url", None)
    return "" if proxy is None else bytes(proxy).decode()


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, ELSEWHERE, ""),
        ({"HTTPS_PROXY": "http://one:3128"}, ELSEWHERE, "http://one:3128/"),
        ({"https_proxy": "one:3128"}, ELSEWHERE, "http://one:3128/"),
        ({"http_proxy": "http://one:3128"}, ELSEWHERE, ""),
        ({"all_proxy": "http://one:3128"}, ELSEWHERE, "http://one:3128/"),
        ({"all_proxy": "http://one:3128", "HTTPS_PROXY": "http://two:3128"}, ELSEWHERE, "http://two:3128/"),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "openai.com"}, ELSEWHERE, ""),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "*"}, ELSEWHERE, ""),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "example.com"}, ELSEWHERE, "http://one:3128/"),
        ({"http_proxy": "http://one:3128", "no_proxy": "10.0.0.0/8"}, "http://10.1.2.3/v1", ""),
        ({"http_proxy": "http://one:3128", "no_proxy": "10.1.2.3:8080"}, "http://10.1.2.3:8080/v1", ""),
        ({"http_proxy": "http://one:3128"}, "http://10.1.2.3/v1", "http://one:3128/"),
        ({"http_proxy": "http://one:3128", "ALL_PROXY": "socks5://two:1080"}, "http://127.0.0.1:9/v1", ""),
        ({"http_proxy": "http://one:3128"}, "http://localhost:9/v1", ""),
        ({"http_proxy": "http://one:3128"}, "http://[::1]:9/v1", ""),
    ],
)
def test_a_provider_uses_the_proxy_named_for_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(url) == proxy


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("ALL_PROXY", "socks5://me:secret@one:1080", "needs the package socksio"),
        ("all_proxy", "socks5h://me:secret@one:1080", "needs the package socksio"),
        ("HTTPS_PROXY", "ftp://me:secret@one:21", "is no proxy's URL"),
        ("https_proxy", "http://me:secret@", "is no proxy's URL"),
        ("https_proxy", "socks4://me:secret@one:1080", "is no proxy's URL"),
        ("https_proxy", "http://me:secret@one:notaport", "is not a URL"),
        ("https_proxy", "http://me:secret@one:99999", "is no proxy's URL"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_by_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UnusableProxy) as refused:
        provider_of(OpenAIModel(provider="openai", model="any", api_key_env=""))
    said = str(refused.value)
    assert said.startswith(f"{variable} cannot be used for api.openai.com: ")
    assert why in said
    assert "secret" not in said


def test_an_unusable_proxy_costs_only_the_models_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://one:1080")
    far = OpenAIModel(provider="openai", model="any", api_key_env="")
    near = OpenAIModel(provider="openai", model="any", api_key_env="", base_url="http://127.0.0.1:9/v1")
    found = providers_of({"far": far, "near": near, "scripted": ScriptedModel(provider="scripted")})
    assert [name for name, one in found.items() if isinstance(one, UnusableProvider)] == ["far"]
    with pytest.raises(ValueError, match="no model can be used; model far cannot be used: ALL_PROXY cannot be used"):
        providers_of({"far": far})


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")


async def test_a_hop_is_called_directly_whatever_the_variables_say(proxied: None) -> None:
    async def answer(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", message_bytes=1024) as channel:
            echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test.Echo/Echo")
            assert await echo(b"here", timeout=10) == b"here"
    finally:
        await server.stop(None)
