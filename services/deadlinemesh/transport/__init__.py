"""The wire: carries a deadline and its owner exactly from process to process.

wire.py             the metadata of a call, encoded and decoded
http_deadline.py    the same for HTTP: X-Request-Deadline and X-Request-Timeout-Ms
retry_after.py      the delay that an HTTP upstream asks for
outbound.py         `MeshChannel`: stamps each call and ends it with its caller
gates.py            `Arrival`, an unverified call, and `MeshGate`, the gate of an inner hop
inbound.py          `DeadlineInterceptor`: context, scope and status of each call
requests.py         reads a call's request, and refuses bytes that are no message
crowded.py          refuses messages with too many parts before they are parsed
backlog.py          how late calls are taken up, and so how late their deadlines are here
guarded_context.py  a handler's context; its first sending is never cut
stragglers.py       ends calls if the peer does not send its request or read its reply
open_calls.py       calls that need no credential, and their limits
peers.py            connections that have shown a known credential, and the calls of others
connections.py      closes inbound connections of a server beyond its limits
health.py           the health service
codec/              the vocabulary on the wire
status.py           errors to gRPC statuses and back
throttling.py       sheds calls here that the other side would shed
ended.py            status and error of an ended call, for callbacks
spans.py            OpenTelemetry's gRPC package, corrected
channels.py         channels with the right options
server.py           `MeshServer`: start, health, reflection, drain, stop
"""

from deadlinemesh.transport.channels import mesh_channel, open_channel
from deadlinemesh.transport.connections import ConnectionLimits
from deadlinemesh.transport.gates import Admitted, Arrival, Gate, MeshGate
from deadlinemesh.transport.inbound import DeadlineInterceptor
from deadlinemesh.transport.outbound import MeshChannel, StreamingCall
from deadlinemesh.transport.server import MeshServer, ServerCredentials, ServerSettings
from deadlinemesh.transport.status import error_from, status_of

__all__ = [
    "Admitted",
    "Arrival",
    "ConnectionLimits",
    "DeadlineInterceptor",
    "Gate",
    "MeshChannel",
    "MeshGate",
    "MeshServer",
    "ServerCredentials",
    "ServerSettings",
    "StreamingCall",
    "error_from",
    "mesh_channel",
    "open_channel",
    "status_of",
]
