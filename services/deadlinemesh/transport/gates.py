"""The gates of a hop: they believe or refuse each arriving call by its headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deadlinemesh.deadline import SYSTEM_CLOCK, Clock, DeadlineContext
from deadlinemesh.errors import NoDeadline, Shed
from deadlinemesh.identity.peers import MeshPeers
from deadlinemesh.transport import wire
from deadlinemesh.transport.backlog import Backlog, Backlogs

if TYPE_CHECKING:
    from deadlinemesh.identity.grants import Grant  # with policy, which a client need not import

__all__ = ["Admitted", "Arrival", "Gate", "MeshGate"]

TOO_LATE = 0.5
"""Share of its time that a call may have spent before it was taken up.

gRPC queues calls in the order of arrival, before any admission can see them. Behind a queue that is
too long, each call would begin with almost no time left. If some are refused in time, the calls
after them have more time, and their callers learn of the load.
"""


class Arrival:
    """An incoming call, described by its own headers. None of them is verified yet."""

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
        """Seconds that `grpc-timeout` left at that instant; None if the caller sent none."""
        exact, self.identity, self.malformed = said or wire.decode(metadata)
        self.exact = exact
        """Seconds left at the sending, by `deadline-remaining-us`; None if it was not sent or is
        malformed.
        """
        if exact is None:
            exact = native_remaining
        self.remaining = exact
        """Seconds left by the tighter of the two deadlines; None if the caller sent neither."""
        self.late = 0.0
        """Seconds from the sending to the instant of arrival, as far as the two deadlines show; 0
        if unknown. Derived from the caller's headers, so only as reliable as the caller.
        """
        if exact is not None and native_remaining is not None and native_remaining < exact:
            self.remaining, self.late = native_remaining, exact - native_remaining
        self.on_end: Callable[[object], None] | None = None
        """Called once when the call is over and its reply has left, also if it was refused. A gate
        may set it before it raises.
        """
        self.by_turns = False
        """True if the request is read in its caller's turn. A gate sets it for callers outside the
        mesh.
        """
        self.backlog: Backlog | None = None
        """The calls that were taken up together with this one. A gate sets it for a caller that it
        believes; otherwise None.
        """

    def header(self, name: str) -> str:
        """The last value of the header `name`; empty if there is none or it is not text."""
        return next((value for key, value in reversed(self.metadata) if key == name and isinstance(value, str)), "")


class Admitted:
    """A gate's decision on a call: its context and, at the edge, the grant of its run."""

    __slots__ = ("context", "grant")

    def __init__(self, context: DeadlineContext, grant: Grant | None = None) -> None:
        self.context = context
        self.grant = grant


Gate = Callable[[Arrival], Admitted]
"""Decides the caller and the deadline of a call. Raises the error for a refusal."""


class MeshGate:
    """The gate of an inner hop. It believes peers that know the mesh's token.

    Refuses a call without a deadline (NoDeadline), one without the token (Unauthenticated), and one
    that has spent more than TOO_LATE of its time before it was taken up (Shed).

        gate = MeshGate("tool-runner", mesh_token)
        interceptor = DeadlineInterceptor("tool-runner", gate)
    """

    def __init__(self, hop: str, mesh_token: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._hop = hop
        self.peers = MeshPeers(hop, mesh_token)
        self.believed = self.peers.believed
        """Identity headers of peers believed lately."""
        self._clock = clock
        self._backlogs = Backlogs()

    def __call__(self, arrival: Arrival) -> Admitted:
        caller = self.peers.identify(arrival.identity)
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
        return Admitted(
            DeadlineContext(
                caller.tenant_id,
                at + arrival.remaining,
                caller.tier,
                caller.trace_id or wire.new_trace_id(),
                caller.run_id,
                at,
                self._clock,
            )
        )
