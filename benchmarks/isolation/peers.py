"""The other processes of the isolation benchmark, one for each name: who is slow, who is naive, and who floods.

upstream    an HTTP service that answers each request after SERVICE_S
plain       a plain grpc.aio server whose slots are a semaphore, first come first served
flood       the aggressor: an open loop of calls, until it is terminated
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from deadlinemesh.deadline import DeadlineContext, entered
from deadlinemesh.errors import MeshError
from deadlinemesh.transport import mesh_channel
from deadlinemesh.v1 import (
    common_pb2,
    llm_proxy_pb2,
    llm_proxy_pb2_grpc,
    tool_runner_pb2,
    tool_runner_pb2_grpc,
)

__all__ = ["DEADLINE", "PLAIN_METHOD", "SERVICE_S", "SLOTS", "TOKEN", "Call", "calls_to", "lasting"]

SLOTS = 16
SERVICE_S = 0.4
"""Seconds that a slot is held by one call."""
DEADLINE = 2.0
TOKEN = "benchmark"
PLAIN_SERVICE = "benchmark.Plain"
PLAIN_METHOD = f"/{PLAIN_SERVICE}/Call"

Call = Callable[[], Awaitable[bool]]
"""One call; says whether it was answered, in time."""


def lasting(tenant_id: str) -> DeadlineContext:
    """A context of `tenant_id` with one call's time."""
    now = time.monotonic()
    return DeadlineContext(tenant_id, now + DEADLINE, "professional", f"{random.getrandbits(127):032x}", "run-1", now)


def calls_to(pool: str, port: int, tenant_id: str) -> tuple[grpc.aio.Channel, Call]:
    """A channel to the server of `pool`, and what makes one call of the tenant on it."""
    target = f"127.0.0.1:{port}"
    if pool == "plain":
        plain = grpc.aio.insecure_channel(target)
        invoke: Any = plain.unary_unary(PLAIN_METHOD)
        return plain, _counted(lambda: invoke(b"", timeout=DEADLINE))
    channel = mesh_channel(target, mesh_token=TOKEN, message_bytes=4 * 1024 * 1024)
    if pool == "model slots":
        models: Any = llm_proxy_pb2_grpc.LlmProxyServiceStub(channel)
        message = common_pb2.Message(role=common_pb2.ROLE_USER, content="Say hello")
        turn = llm_proxy_pb2.GenerateRequest(model="slow", messages=[message], max_output_tokens=4)
        return channel, _counted(lambda: _to_the_end(models.Generate(turn, kind="slow")), tenant_id)
    tools: Any = tool_runner_pb2_grpc.ToolRunnerServiceStub(channel)
    tool = {"http connections": "upstream", "worker processes": "hold"}[pool]
    request = tool_runner_pb2.CallToolRequest(call_id="1", name=tool, arguments_json="{}")
    return channel, _counted(lambda: _result(tools.CallTool(request, kind=tool)), tenant_id)


def _counted(invoke: Callable[[], Awaitable[Any]], tenant_id: str = "") -> Call:
    async def call() -> bool:
        with suppress(grpc.aio.AioRpcError, MeshError):
            if not tenant_id:
                await invoke()
                return True
            with entered(lasting(tenant_id)):
                return bool(await invoke())
        return False

    return call


async def _to_the_end(stream: Any) -> bool:
    return bool([response async for response in stream][-1].HasField("finished"))


async def _result(stream: Any) -> bool:
    last = [response async for response in stream][-1]
    return bool(last.result.status == common_pb2.TOOL_STATUS_OK)


async def _upstream() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(SERVICE_S)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


async def _plain() -> None:
    slots = asyncio.Semaphore(SLOTS)

    async def call(request: bytes, context: Any) -> bytes:
        async with slots:
            await asyncio.sleep(SERVICE_S)
        return b"ok"

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Call": grpc.unary_unary_rpc_method_handler(call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(PLAIN_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


async def _flood(pool: str, port: int, per_s: float, seed: int) -> None:
    _, call = calls_to(pool, port, "aggressor")
    draw = random.Random(seed)
    calls: set[asyncio.Future[bool]] = set()
    print(json.dumps({"flooding": per_s}), flush=True)
    at = time.monotonic()
    while True:
        at += draw.expovariate(per_s)
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        one = asyncio.ensure_future(call())
        calls.add(one)
        one.add_done_callback(calls.discard)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=("upstream", "plain", "flood"))
    parser.add_argument("--pool", default="plain")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--per-s", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.peer == "flood":
        await _flood(options.pool, options.port, options.per_s, options.seed)
    else:
        await {"upstream": _upstream, "plain": _plain}[options.peer]()


if __name__ == "__main__":
    asyncio.run(main())
