"""Reports of one attempt to the ledger, to the retry logic and to its upstream's statistics."""

from __future__ import annotations

from deadlinemesh.deadline import Attempt, Ledger, PhaseTrack
from deadlinemesh.orchestrator.upstreams import Stopwatch, UpstreamStats
from deadlinemesh.vocabulary import Phase

__all__ = ["CallTracker", "TurnTracker"]


class TurnTracker:
    """One attempt at a model turn. Each method reports one event of the model."""

    def __init__(self, ledger: Ledger[Phase], upstream: UpstreamStats, attempt: Attempt) -> None:
        self._phases = PhaseTrack(ledger, Phase.LLM_QUEUE)
        self._timed = Stopwatch(upstream)
        self._attempt = attempt

    def started(self) -> None:
        """The turn has a model slot."""
        self._phases.enter(Phase.LLM_FIRST_TOKEN)
        self._timed.begin()
        self._attempt.alive()

    def writing(self) -> None:
        """A sign of life without content."""
        self._attempt.alive()
        self._streams()

    def text(self, *, live: bool) -> None:
        """A piece of text.

        If it is `live`, sent as it was written, the model's pace is measured.
        """
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
        """The end of the attempt, in success or failure."""
        self._phases.leave()

    def _streams(self) -> None:
        self._timed.end()
        self._phases.enter(Phase.LLM_STREAM)


class CallTracker:
    """One attempt at a tool call. Each method reports one event of the tool."""

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
        """A result with status OK."""
        self._timed.end()

    def close(self) -> None:
        """The end of the attempt, in success or failure."""
        self._phases.leave()
