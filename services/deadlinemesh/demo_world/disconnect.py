"""Stops a call when its caller disconnects. ASGI servers only report the disconnect to the
application; it must stop the call itself.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["StopsWithItsCaller"]


class StopsWithItsCaller:
    """Middleware that cancels a request's handler when its connection is gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._handlers: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await _body(receive)

        async def replayed() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        answering = False

        async def sending(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        loop = asyncio.get_running_loop()
        handler = loop.create_task(_completed(self._app, scope, replayed, sending))
        left = loop.create_task(_left(receive))
        self._handlers.add(handler)
        try:
            await asyncio.wait({handler, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._handlers.discard(handler)
            for task in (handler, left):
                task.cancel()
            await asyncio.wait({handler, left})
        if not handler.cancelled():
            handler.result()
        elif not answering:  # stopped by `stop_all`; a caller that has left does not read this
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    def stop_all(self) -> None:
        """Stop every handler, as if all callers had left. Callers that are still connected get a
        503.
        """
        for handler in self._handlers:
            handler.cancel()


async def _completed(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


async def _body(receive: Receive) -> bytes:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
