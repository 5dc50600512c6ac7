"""`DeadlineMesh`: the client that runs agents on a mesh.

A call sends its deadline twice: as gRPC's timeout, rounded up by the C core, and exactly, in
metadata. So the mesh need not hold back the time that the rounding may add.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from typing import Any, Self

import grpc

from deadlinemesh.client.address import is_loopback
from deadlinemesh.errors import ClientCancelled, UpstreamFailed
from deadlinemesh.transport import StreamingCall, error_from, open_channel, wire
from deadlinemesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from deadlinemesh.vocabulary.hops import ORCHESTRATOR

__all__ = ["DeadlineMesh", "checked_key"]

MESSAGE_BYTES = 4 * 1024 * 1024
"""Bytes of the largest message accepted. The default of gRPC and of the embedded policy too."""


LONGEST = 366 * 86400.0
"""Seconds of the longest deadline sent. gRPC treats very much longer ones as passed."""

_NOT_YET_CONNECTED = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


class DeadlineMesh:
    """Calls the orchestrator at `address` for the tenant of the key `api_key`.

    The connection uses TLS with the system's roots. To a loopback address it is plain text.
    `credentials` set other roots or certificates. `plaintext=True` is for a sidecar or a private
    network that encrypts. A given `channel` is used as it is, in place of all these. The client
    connects at its first call. Use it in one event loop.

    Every method may raise any of `deadlinemesh.errors`. A `deadline` is in seconds. The budget of
    the tenant's tier holds if there is no deadline, or if the budget is shorter. Raises ValueError
    for an invalid key or deadline.
    """

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        api_key: str,
        plaintext: bool | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        message_bytes: int = MESSAGE_BYTES,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        if credentials is not None and plaintext:
            raise ValueError("credentials are for TLS: they contradict plaintext=True")
        plain = is_loopback(address) if plaintext is None else plaintext
        self.address = address
        self._credentials = None if plain and credentials is None else credentials or grpc.ssl_channel_credentials()
        self._metadata = (("authorization", f"Bearer {checked_key(api_key)}"),)
        self._message_bytes = message_bytes
        self._channel = channel
        self._stub: Any = None

    async def run(
        self,
        prompt: str,
        *,
        deadline: float | None = None,
        model: str = "",
        tools: Iterable[str] = (),
        request_id: str = "",
        instructions: str = "",
        history: Iterable[common_pb2.Message] = (),
        max_iterations: int = 0,
        max_output_tokens: int = 0,
    ) -> AsyncGenerator[orchestrator_pb2.RunResponse, None]:
        """Run an agent and yield its events. The last event is `finished`.

        A spent deadline is no error: `finished` then names it and has the partial answer. Leaving
        the loop cancels the run, once the generator has no more references. Put `aclosing` around
        the generator to cancel the run at once.
        """
        request = orchestrator_pb2.RunRequest(
            request_id=request_id,
            prompt=prompt,
            instructions=instructions,
            history=history,
            model=model,
            tools=tools,
            limits=orchestrator_pb2.RunLimits(max_iterations=max_iterations, max_output_tokens=max_output_tokens),
        )
        finished = False
        try:
            # grpc.aio itself never cancels an abandoned stream, not even after a plain `break`.
            async with StreamingCall(await self._begin("Run", request, deadline)) as call:
                async for event in call:
                    finished = finished or event.HasField("finished")
                    yield event
        except grpc.aio.AioRpcError as error:
            # An answer that came just in time stands, even if the deadline passed before the status
            # came.
            if not finished:
                raise error_from(error, ORCHESTRATOR, in_its_words=True) from None
        except asyncio.CancelledError:
            raise _why_cancelled() from None

    async def answer(self, prompt: str, **options: Any) -> orchestrator_pb2.RunFinished:
        """Run an agent and return its end, with `outcome` and `answer`.

        `options` are those of `run`.
        """
        finished: orchestrator_pb2.RunFinished | None = None
        async with aclosing(self.run(prompt, **options)) as events:
            async for event in events:
                if event.HasField("finished"):
                    finished = event.finished
        if finished is None:
            raise UpstreamFailed("the stream ended before the run did; get_run tells how it ended", hop=ORCHESTRATOR)
        return finished

    async def get_run(self, run_id: str, *, deadline: float | None = None) -> orchestrator_pb2.GetRunResponse:
        """Return the state of a run and its conversation.

        Raises NotFound if the run is unknown, forgotten, or another tenant's.
        """
        request = orchestrator_pb2.GetRunRequest(run_id=run_id)
        reply: orchestrator_pb2.GetRunResponse = await self._ask("GetRun", request, deadline)
        return reply

    async def list_runs(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        state: orchestrator_pb2.RunState = orchestrator_pb2.RUN_STATE_UNSPECIFIED,
        deadline: float | None = None,
    ) -> orchestrator_pb2.ListRunsResponse:
        """Return one page of the tenant's runs, newest first.

        For the next page, pass its `next_page_token` as `page_token`.
        """
        request = orchestrator_pb2.ListRunsRequest(page_size=page_size, page_token=page_token, state=state)
        reply: orchestrator_pb2.ListRunsResponse = await self._ask("ListRuns", request, deadline)
        return reply

    async def cancel_run(self, run_id: str, *, deadline: float | None = None) -> orchestrator_pb2.RunInfo:
        """Stop a run, and return it when it has stopped. A finished run does not change."""
        request = orchestrator_pb2.CancelRunRequest(run_id=run_id)
        run: orchestrator_pb2.RunInfo = (await self._ask("CancelRun", request, deadline)).run
        return run

    async def close(self) -> None:
        """Cancel the runs that this client watches, and close the connection."""
        self._stub = None
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _begin(self, method: str, request: Any, deadline: float | None) -> Any:
        """Begin a call.

        If it has a deadline, it begins once the channel is connected. So the exact deadline is sent
        as soon as it is written.
        """
        timeout = _timeout(deadline)
        channel, stub = self._connection()
        if timeout is None:
            return getattr(stub, method)(request, metadata=self._metadata)
        timeout = await _once_connected(channel, timeout)
        metadata = (*self._metadata, (wire.REMAINING_US, wire.exact(timeout)))
        return getattr(stub, method)(request, timeout=timeout, metadata=metadata)

    async def _ask(self, method: str, request: Any, deadline: float | None) -> Any:
        """Make a unary call and return the reply."""
        try:
            return await (await self._begin(method, request, deadline))
        except grpc.aio.AioRpcError as error:
            raise error_from(error, ORCHESTRATOR, in_its_words=True) from None
        except asyncio.CancelledError:
            raise _why_cancelled() from None

    def _connection(self) -> tuple[grpc.aio.Channel, Any]:
        # A channel belongs to the running event loop, so it is made in the first call.
        if self._channel is None:
            self._channel = open_channel(self.address, message_bytes=self._message_bytes, credentials=self._credentials)
        if self._stub is None:
            self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channel)
        return self._channel, self._stub

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def checked_key(key: str) -> str:
    """The key as it is sent: without the line end that mounted secrets often have.

    Raises ValueError if a header cannot hold it.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key has characters that no header may have: give the key itself, in one line")
    return key


def _timeout(deadline: float | None) -> float | None:
    if deadline is not None and math.isnan(deadline):
        raise ValueError("a deadline is a number of seconds, or None for the tier's budget; not nan")
    return None if deadline is None else min(deadline, LONGEST)


async def _once_connected(channel: grpc.aio.Channel, timeout: float) -> float:
    """Wait until `channel` is connected or has failed, and return the rest of `timeout` in seconds.

    Raises ClientCancelled if the channel is closed meanwhile.
    """
    state = channel.get_state(try_to_connect=True)
    if state in _NOT_YET_CONNECTED:
        clock = asyncio.get_running_loop()
        began_at = clock.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while state in _NOT_YET_CONNECTED:
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        timeout = max(0.0, timeout - (clock.time() - began_at))
    if state is grpc.ChannelConnectivity.SHUTDOWN:
        raise ClientCancelled("the client was closed")
    return timeout


def _why_cancelled() -> BaseException:
    """The error to raise for a cancelled call.

    grpc.aio raises CancelledError even if the channel was closed. That is ClientCancelled here.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        return asyncio.CancelledError()
    return ClientCancelled("the client was closed")
