"""The orchestrator: the mesh's edge and its agent loop.

A run goes forward only: edge → servicer → service → execution → agent → ports → adapters → next hop.
Tenants with processes of their own come through edge → forwarding, and in another process through
granted → servicer and so on.

    edge.py        authentication, and the grant of time
    spreader.py    ends of runs, spread a little apart
    forwarding.py  the edge as a process of its own
    granted.py     the gate behind that edge
    servicer.py    messages to the vocabulary and back
    service.py     start, get, list and cancel runs
    planning.py    a tenant's order to an agent's assignment
    execution.py   a run from its admission to its outcome
    run.py         one run: state, events, watchers
    log.py         a run's events, by number
    store.py       the known runs
    packing.py     finished runs as compressed bytes
    memory.py      the memory that tenants may hold
    catalog.py     each tenant's tools
    assignment.py  the work of one agent, and its limits
    agent.py       the agent loop
    turn.py        model turns: time, retries, fallbacks, the stream
    tool_calls.py  tool calls, from the model's wish to a result
    allotment.py   the part of the time left that a model turn may have
    tracking.py    what an attempt tells ledger, retry logic and statistics
    failures.py    errors of the hops below
    shortening.py  long results of tools, shortened or cut
    answers.py     partial answers
    upstreams.py   what is learned of models and tools, and their retries
    ports.py       the loop's view of the other hops
    adapters.py    the ports over gRPC
    events.py      the events of a run
"""

from deadlinemesh.orchestrator.adapters import GrpcModels, GrpcTools
from deadlinemesh.orchestrator.edge import EdgeGate
from deadlinemesh.orchestrator.forwarding import Forwarder
from deadlinemesh.orchestrator.granted import GrantedGate
from deadlinemesh.orchestrator.service import Orchestrator
from deadlinemesh.orchestrator.servicer import OrchestratorServicer

__all__ = [
    "EdgeGate",
    "Forwarder",
    "GrantedGate",
    "GrpcModels",
    "GrpcTools",
    "Orchestrator",
    "OrchestratorServicer",
]
