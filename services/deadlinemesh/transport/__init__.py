"""The wire: how a deadline and its owner cross from process to process, exactly.

wire.py           the metadata, encoded and decoded
http_deadline.py  the same for HTTP: X-Request-Deadline and X-Request-Timeout-Ms
retry_after.py    how long an HTTP upstream asks to be left alone
outbound.py       `MeshChannel`: stamps every call, ends it with its caller
inbound.py        `DeadlineInterceptor`: context, scope and status of every call; gates decide who may enter
backlog.py        how late calls are taken up, and so their deadlines here
answer.py         the context a handler sees: what is sent first is never cut in the middle
messages.py       messages that several services speak, to the domain's words and back
status.py         errors to gRPC statuses and back
throttling.py     calls that would be shed over there are shed here
ended.py          what became of a call, for callbacks
spans.py          OpenTelemetry's gRPC package, corrected
channels.py       channels with the right options
server.py         `MeshServer`: start, health, reflection, drain, stop
"""

from deadlinemesh.transport.channels import mesh_channel, open_channel
from deadlinemesh.transport.inbound import Arrival, DeadlineInterceptor, Gate, MeshGate
from deadlinemesh.transport.outbound import MeshChannel, StreamingCall
from deadlinemesh.transport.server import MeshServer, ServerSettings
from deadlinemesh.transport.status import error_from, status_of

__all__ = [
    "Arrival",
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
