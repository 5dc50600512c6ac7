"""Who may enter a hop: what a call says of itself, and the gates that believe it or refuse it."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import NoDeadline, Shed, Unauthenticated
from deadlinemesh.transport import wire
from deadlinemesh.transport.backlog import Backlog, Backlogs

__all__ = ["Arrival", "Gate", "MeshGate"]

TOO_LATE = 0.5
"""The part of its time that a call may have spent before it was taken up. gRPC queues calls in the order of their arrival, unseen
by any admission: behind more than can be taken up, each would be begun with next to nothing left. Refused in time, those after it
fare better, and their callers hear of the load."""

MOST_REMEMBERED = 4096
"""Identities of peers that a gate remembers."""

LONGEST_REMEMBERED = 512
"""Characters of one."""


class Arrival:
    """A call at the door: what it says of itself, none of it believed yet."""

    __slots__ = (
        "at",
        "backlog",
        "by_turns",
        "exact",
        "identity",
        "late",
        "malformed",
        "metadata",
        "method",
        "native_remaining",
        "on_end",
        "remaining",
    )

    def __init__(
        self,
        method: str,
        metadata: wire.Pairs,
        at: float,
        native_remaining: float | None,
        said: wire.Said | None = None,
    ) -> None:
        self.method = method
        self.metadata = metadata
        self.at = at
        """The instant of arrival."""
        self.native_remaining = native_remaining
        """What `grpc-timeout` left at that instant, in seconds; None without one."""
        exact, self.identity, self.malformed = said or wire.decode(metadata)
        self.exact = exact
        """Seconds left by `deadline-remaining-us`, at its sending; None where it was not sent or is malformed."""
        if exact is None:
            exact = native_remaining
        self.remaining = exact
        """Seconds left by the tighter of the two deadlines; None where the caller sent neither."""
        self.late = 0.0
        """Seconds from its sending to its being taken up here; 0 if unknown. As much to be believed as its caller."""
        if exact is not None and native_remaining is not None and native_remaining < exact:
            self.remaining, self.late = native_remaining, exact - native_remaining
        self.on_end: Callable[[object], None] | None = None
        """Called once when the call is over and its reply has left, refused or not. A gate may set it before it raises."""
        self.by_turns = False
        """Whether its request is read in its caller's turn; a gate that lets in who is not of the mesh says so."""
        self.backlog: Backlog | None = None
        """The calls that were taken up with it; a gate that believes the caller says so."""

    def header(self, name: str) -> str:
        """The last value of this name; empty if there is none, or it is not text."""
        return next((value for key, value in reversed(self.metadata) if key == name and isinstance(value, str)), "")


Gate = Callable[[Arrival], DeadlineContext]
"""Decides who is calling and until when. Raises the error to refuse with."""


class MeshGate:
    """The door of an inner hop: believes peers that know the mesh's token, and refuses a call without a deadline, or one that has
    spent half of its time before it was taken up.
    """

    def __init__(self, hop: str, mesh_token: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._hop = hop
        self._token = wire.checked_token(mesh_token).encode()
        self._clock = clock
        self._backlogs = Backlogs()
        self.believed: dict[str, wire.Identity] = {}
        """Whom lately believed identities name: a run's calls all carry the same."""

    def __call__(self, arrival: Arrival) -> DeadlineContext:
        caller = self.believed.get(arrival.identity) or self._introduced(arrival.identity)
        if arrival.remaining is None:
            raise NoDeadline(f"{self._hop} takes no call without a deadline: set the call's timeout", hop=self._hop)
        if arrival.late > TOO_LATE * (arrival.late + arrival.remaining):
            raise Shed(
                f"{self._hop} is behind: this call waited {arrival.late * 1000:.0f} ms to be taken up",
                retry_after=arrival.late,
                hop=self._hop,
                phase="admission",
            )
        at = arrival.at
        arrival.backlog = self._backlogs.join(at, arrival.late)
        return DeadlineContext(
            caller.tenant_id,
            at + arrival.remaining,
            caller.tier,
            caller.trace_id or wire.new_trace_id(),
            caller.run_id,
            at,
            self._clock,
        )

    def _introduced(self, header: str) -> wire.Identity:
        identity = wire.identity_of(header)
        if not compare_digest(identity.mesh_token, self._token):
            raise Unauthenticated(
                f"{self._hop} is internal: `{wire.IDENTITY}` must begin with the mesh's token; clients call the orchestrator",
                hop=self._hop,
            )
        if len(header) <= LONGEST_REMEMBERED:
            if len(self.believed) >= MOST_REMEMBERED:
                self.believed.clear()
            self.believed[header] = identity
        return identity
