"""The wire: how a deadline and its owner cross from process to process, exactly.

wire.py           the metadata, encoded and decoded
http_deadline.py  the same for HTTP: X-Request-Deadline and X-Request-Timeout-Ms
retry_after.py    how long an HTTP upstream asks to be left alone
outbound.py       `MeshChannel`: stamps every call, ends it with its caller
gates.py          who may enter: what a call says of itself, and the gate of an inner hop
inbound.py        `DeadlineInterceptor`: context, scope and status of every call
requests.py       a call's request: read, and refused where it is none
backlog.py        how late calls are taken up, and so their deadlines here
guarded_context.py  a handler's context, whose first sending is never cut
stragglers.py     calls whose peer does not send, or does not read, and their end
open_calls.py     calls that need no credential, and how many of them there may be
peers.py          which connections have shown a known credential
connections.py    the inbound connections of a server, and which of them are closed
health.py         the health service
codec/            the vocabulary on the wire
status.py         errors to gRPC statuses and back
throttling.py     calls that would be shed over there are shed here
ended.py          what became of a call, for callbacks
spans.py          OpenTelemetry's gRPC package, corrected
channels.py       channels with the right options
server.py         `MeshServer`: start, health, reflection, drain, stop
"""

from deadlinemesh.transport.channels import mesh_channel, open_channel
from deadlinemesh.transport.connections import ConnectionLimits
from deadlinemesh.transport.gates import Arrival, Gate, MeshGate
from deadlinemesh.transport.inbound import DeadlineInterceptor
from deadlinemesh.transport.outbound import MeshChannel, StreamingCall
from deadlinemesh.transport.server import MeshServer, ServerSettings
from deadlinemesh.transport.status import error_from, status_of

__all__ = [
    "Arrival",
    "ConnectionLimits",
    "DeadlineInterceptor",
    "Gate",
    "MeshChannel",
    "MeshGate",
    "MeshServer",
    "ServerSettings",
    "StreamingCall",
    "error_from",
    "mesh_channel",
    "open_channel",
    "status_of",
]
