"""The world outside the mesh, as one server: a model provider that speaks OpenAI's chat completions, and an HTTP tool.

What they do is written in the prompt: the JSON of a `Script`, which says turn by turn what the model says, which tools it wants and
how it misbehaves. So each run brings its own fate along, and the server needs no state to know it. It notes what it did, for which
run, from when to when, and whether its caller stayed: it is a witness of what goes on behind the mesh's back.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from deadlinemesh.vocabulary import Message, Role, ToolCall, history_violations

__all__ = ["TOGETHER", "Exchange", "Outside", "Script", "ToolUse", "Turn", "marked", "word"]

TOGETHER = "together"
"""In place of the seconds that the tool is to take, and followed by a `Turn.together`."""

End = Literal["ends", "stalls", "never ends", "breaks off", "resets", "garbage", "half a chunk", "is busy", "fails"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that the model wants."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a model does when it is asked once. Durations are in seconds."""

    words: int = 3
    every: float = 0.002
    """So quick that a model is known to be worth another turn in a fraction of a second: else tools would not be offered."""
    tools: tuple[ToolUse, ...] = ()
    end: End = "ends"
    retry_after: float | None = None
    together: str = ""
    """`COUNT-NAME`: it begins when so many of this name are there at once. From then on none of them has to wait."""
    times: int = 0
    """For so many attempts it ends as `end` says, and then as it should; 0: always."""


@dataclass(frozen=True, slots=True)
class Script:
    """The fate of one run. After its last turn the model has no more to say than a word."""

    run: int
    turns: tuple[Turn, ...] = (Turn(),)

    def prompt(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, prompt: str) -> Script:
        told, _ = json.JSONDecoder().raw_decode(prompt)  # behind it stands what the system says of the time
        turns = tuple(
            Turn(**{**turn, "tools": tuple(ToolUse(**one) for one in turn["tools"])}) for turn in told["turns"]
        )
        return cls(told["run"], turns)


def word(run: int) -> str:
    """What the models and tools of a run say: it tells whose it is."""
    return f"r{run}. "


def marked(text: str) -> set[int]:
    """The runs of which a text tells."""
    return {int(number) for number in re.findall(r"\br(\d+)\.", text)}


@dataclass(eq=False, slots=True)
class Exchange:
    """One request and what came of it. Instants are on the machine's monotonic clock."""

    kind: Literal["model", "tool"]
    run: int
    turn: int
    began_at: float
    told: float | None = None
    """The deadline that X-Request-Deadline told, as such an instant."""
    invalid: tuple[str, ...] = ()
    """What is wrong with the history that it was given."""
    words: int = 0
    ended_at: float | None = None
    left: bool = False
    """Whether the caller went away before it had ended."""


class Outside:
    """The server. `exchanges` are all that there were."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._gathered: dict[tuple[str, str], tuple[set[Exchange], asyncio.Event]] = {}
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def at_work(self) -> list[Exchange]:
        """Those for which something is still being done."""
        return [one for one in self.exchanges if one.ended_at is None]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *rest = head.split("\r\n")
                headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest) if name}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if not await self._attended(reader, writer, self._answer(line, headers, body, writer)):
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _attended(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Any) -> bool:
        """Answer for as long as the caller stays. Whether the connection is good for another request."""
        answering = asyncio.ensure_future(answer)
        # Nobody sends a second request before the first is answered: what can be read is the end.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
                return False
            return bool(answering.result())
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        path = line.split(" ")[1]
        if path.endswith("/chat/completions"):
            asked = json.loads(body)
            script, turn, invalid = _read(asked["messages"])
            exchange = Exchange("model", script.run, turn, time.monotonic(), invalid=invalid)
            work = self._speak(script, exchange, "tools" in asked, writer)
        else:
            _, _, run, seconds = path.split("/")
            told = float(headers["x-request-deadline"]) - (time.time() - time.monotonic())
            exchange = Exchange("tool", int(run), 0, time.monotonic(), told)
            work = self._use(seconds, exchange, writer)
        self.exchanges.append(exchange)
        try:
            return await work
        except (asyncio.CancelledError, ConnectionError):
            exchange.left = True
            raise
        finally:
            exchange.ended_at = time.monotonic()

    async def _gather(self, exchange: Exchange, together: str) -> None:
        """Wait until as many are there at once as are to be together."""
        here, complete = self._gathered.setdefault((exchange.kind, together), (set(), asyncio.Event()))
        here.add(exchange)
        if len(here) >= int(together.partition("-")[0]):
            complete.set()
        try:
            await complete.wait()
        finally:
            here.discard(exchange)

    async def _use(self, seconds: str, exchange: Exchange, writer: asyncio.StreamWriter) -> bool:
        if seconds.startswith(TOGETHER):
            await self._gather(exchange, seconds.removeprefix(TOGETHER))
        else:
            await asyncio.sleep(float(seconds))
        await _respond(writer, "200 OK", word(exchange.run))
        return True

    async def _speak(self, script: Script, exchange: Exchange, may_call: bool, writer: asyncio.StreamWriter) -> bool:
        turn = script.turns[exchange.turn] if exchange.turn < len(script.turns) else Turn(1)
        tried = sum((one.kind, one.run, one.turn) == ("model", script.run, exchange.turn) for one in self.exchanges)
        end = "ends" if turn.times and tried > turn.times else turn.end
        if turn.together:
            await self._gather(exchange, turn.together)
        if end in ("is busy", "fails"):
            status = "429 Too Many Requests" if end == "is busy" else "503 Service Unavailable"
            wait = "" if turn.retry_after is None else f"Retry-After: {turn.retry_after:g}\r\n"
            await _respond(writer, status, json.dumps({"error": {"message": f"{word(script.run)}{end}"}}), wait)
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if end == "garbage":
            await _send(writer, b"data: {\xff\xfe this is {no JSON]\n\n<html>\0\0</html>\n\n")
        while exchange.words < turn.words or end == "never ends":
            await _send(writer, _chunk({"content": word(script.run)}))
            exchange.words += 1
            await asyncio.sleep(turn.every)
        match end:
            case "stalls":
                await asyncio.Event().wait()
            case "breaks off":
                return False
            case "half a chunk":
                writer.write(b"1000\r\ndata: {")
                await writer.drain()
                return False
            case "resets":
                linger = struct.pack("ii", 1, 0)  # closed with a reset, not in an orderly way
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
        calls = turn.tools if may_call else ()
        for index, use in enumerate(calls):
            function = {"name": use.name, "arguments": json.dumps(use.arguments)}
            call = {"index": index, "id": f"call_{script.run}_{exchange.turn}_{index}", "type": "function"}
            await _send(writer, _chunk({"tool_calls": [{**call, "function": function}]}))
        await _send(writer, _chunk({}, "tool_calls" if calls else "stop"))
        usage = {"prompt_tokens": 10, "completion_tokens": exchange.words, "total_tokens": 10 + exchange.words}
        await _send(writer, _event({"choices": [], "usage": usage}))
        await _send(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _read(wire: Sequence[dict[str, Any]]) -> tuple[Script, int, tuple[str, ...]]:
    """The script, the number of the turn that is asked for, and what is wrong with the history."""
    messages = [
        Message(
            Role(one["role"]),
            one.get("content") or "",
            tuple(
                ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
                for call in one.get("tool_calls", ())
            ),
            one.get("tool_call_id", ""),
        )
        for one in wire
    ]
    asked = next(message.content for message in reversed(messages) if message.role is Role.USER)
    turn = sum(message.role is Role.ASSISTANT for message in messages)
    wrong = tuple(f"{one.field}: {one.description}" for one in history_violations(messages, "messages"))
    return Script.read(asked), turn, wrong


async def _respond(writer: asyncio.StreamWriter, status: str, body: str, headers: str = "") -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}".encode())
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


def _event(body: dict[str, Any]) -> bytes:
    told = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", **body}
    return f"data: {json.dumps(told)}\n\n".encode()


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
