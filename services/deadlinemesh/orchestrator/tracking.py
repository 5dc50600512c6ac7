"""What an attempt at a turn or a call tells the ledger, the retry logic and the statistics of its upstream."""

from __future__ import annotations

from deadlinemesh.deadline import Attempt, Ledger, PhaseTrack
from deadlinemesh.orchestrator.upstreams import Stopwatch, UpstreamStats
from deadlinemesh.vocabulary import Phase

__all__ = ["CallTracker", "TurnTracker"]


class TurnTracker:
    """One attempt at a model turn. Each method is one thing that the model did."""

    def __init__(self, ledger: Ledger[Phase], upstream: UpstreamStats, attempt: Attempt) -> None:
        self._phases = PhaseTrack(ledger, Phase.LLM_QUEUE)
        self._timed = Stopwatch(upstream)
        self._attempt = attempt

    def started(self) -> None:
        """The model has a slot."""
        self._phases.enter(Phase.LLM_FIRST_TOKEN)
        self._timed.begin()
        self._attempt.alive()

    def writing(self) -> None:
        """A sign of life, without content."""
        self._attempt.alive()
        self._streams()

    def text(self, *, live: bool) -> None:
        """A piece of text. It counts for the model's pace if it is `live`, sent as it was written."""
        self._attempt.settled()
        self._streams()
        if live:
            self._timed.speaks()

    def call(self) -> None:
        """A complete tool call."""
        self._attempt.settled()
        self._streams()

    def finished(self, output_tokens: int) -> None:
        """The end of the turn."""
        self._timed.finish(output_tokens)

    def close(self) -> None:
        """The end of the attempt, whatever came of it."""
        self._phases.leave()

    def _streams(self) -> None:
        self._timed.end()
        self._phases.enter(Phase.LLM_STREAM)


class CallTracker:
    """One attempt at a tool call. Each method is one thing that the tool did."""

    def __init__(self, ledger: Ledger[Phase], upstream: UpstreamStats, attempt: Attempt) -> None:
        self._phases = PhaseTrack(ledger, Phase.TOOL_QUEUE)
        self._timed = Stopwatch(upstream)
        self._attempt = attempt

    def started(self) -> None:
        """The tool has a connection or a worker."""
        self._phases.enter(Phase.TOOL_CALL)
        self._timed.begin()
        self._attempt.alive()

    def progressed(self) -> None:
        """A sign of life."""
        self._attempt.alive()

    def succeeded(self) -> None:
        """A result of status OK."""
        self._timed.end()

    def close(self) -> None:
        """The end of the attempt, whatever came of it."""
        self._phases.leave()
