"""Text of a turn that is read more slowly than it is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from deadlinemesh.errors import UpstreamFailed
from deadlinemesh.llm_proxy.coalescing import LARGEST_BACKLOG, coalesced
from deadlinemesh.testing.virtual_time import run
from deadlinemesh.vocabulary import FinishReason, TextDelta, ToolCall, TurnEvent, TurnFinished, TurnStarted

STARTED = TurnStarted("demo", 0.0)
CALL = ToolCall("call_1", "search", "{}")
FINISHED = TurnFinished(FinishReason.STOP, 1, 1)


class Turn:
    """Says `script`, waiting for its numbers, and keeps how far it has come and whether it was closed."""

    def __init__(self, *script: TurnEvent | float | Exception) -> None:
        self.script = script
        self.said = 0
        self.closed = False

    async def events(self) -> AsyncGenerator[TurnEvent, None]:
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    self.said += 1
                    yield step
        finally:
            await asyncio.sleep(0)  # as one that closes a connection
            self.closed = True


async def heard(turn: Turn, write_takes: float) -> list[TurnEvent]:
    found: list[TurnEvent] = []
    async with aclosing(coalesced(turn.events())) as events:
        async for event in events:
            found.append(event)
            await asyncio.sleep(write_takes)
    return found


def words(*texts: str) -> list[TextDelta]:
    return [TextDelta(text) for text in texts]


def test_text_said_during_a_write_leaves_as_one_message() -> None:
    turn = Turn(STARTED, *words("a "), 1.0, *words("b "), 0.1, *words("c "), 0.1, *words("d "), 5.0, FINISHED)
    assert run(heard(turn, 1.5)) == [STARTED, *words("a b c d "), FINISHED]


def test_text_leaves_at_once_when_no_write_is_in_flight() -> None:
    async def main() -> None:
        loop, turn = asyncio.get_running_loop(), Turn(STARTED, 1.0, *words("a "), 1.0, *words("b "), 1.0, FINISHED)
        began, at = loop.time(), []
        async for _ in coalesced(turn.events()):
            at.append(loop.time() - began)
        assert at == pytest.approx([0.0, 1.0, 2.0, 3.0])

    run(main())


def test_text_stays_on_its_side_of_a_tool_call() -> None:
    turn = Turn(STARTED, *words("a", "b"), CALL, CALL, *words("c", "d"), FINISHED)
    assert run(heard(turn, 1.0)) == [STARTED, *words("ab"), CALL, CALL, *words("cd"), FINISHED]


def test_turn_waits_for_a_reader_far_behind() -> None:
    async def main() -> None:
        turn = Turn(STARTED, *words(*["x" * 100] * 1000), FINISHED)
        async with aclosing(coalesced(turn.events())) as events:
            assert await anext(events) == STARTED
            await asyncio.sleep(60)
            assert turn.said * 100 <= LARGEST_BACKLOG + 300  # one more, and one that was taken
            rest = [event async for event in events]
        assert "".join(event.text for event in rest if isinstance(event, TextDelta)) == "x" * 100_000
        assert all(len(event.text) <= 2 * LARGEST_BACKLOG for event in rest if isinstance(event, TextDelta))
        assert rest[-1] == FINISHED

    run(main())


def test_failure_comes_after_the_text_before_it() -> None:
    async def main() -> None:
        turn = Turn(STARTED, *words("a", "b"), UpstreamFailed("it broke off"))
        async with aclosing(coalesced(turn.events())) as events:
            assert [await anext(events), await anext(events)] == [STARTED, *words("ab")]
            with pytest.raises(UpstreamFailed, match="it broke off"):
                await anext(events)

    run(main())


@pytest.mark.parametrize("script", [(STARTED, 60.0), (STARTED, *words(*["x" * LARGEST_BACKLOG] * 9))])
def test_turn_is_closed_before_its_reader_has_left(script: tuple[TurnEvent | float, ...]) -> None:
    async def main() -> None:
        turn = Turn(*script)
        async with aclosing(coalesced(turn.events())) as events:
            await anext(events)
            await asyncio.sleep(1)
            assert not turn.closed
        assert turn.closed
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_cancelled_reader_closes_the_turn() -> None:
    async def main() -> None:
        turn = Turn(STARTED, 60.0)
        reading = asyncio.create_task(heard(turn, 0.0))
        await asyncio.sleep(1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert turn.closed
        assert len(asyncio.all_tasks()) == 1

    run(main())
