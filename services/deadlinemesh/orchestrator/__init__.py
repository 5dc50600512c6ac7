"""The orchestrator: the mesh's edge and its agent loop.

A run goes forward only: edge → servicer → service → execution → agent → ports → adapters → next
hop. A call of a dedicated tenant takes edge → forwarding in the edge's process. It then takes
granted → servicer → … in the process of the tenant's orchestrator.

    edge.py        authentication, and the grant of time
    spreader.py    due instants of runs, spread a little apart
    forwarding.py  the edge as a separate process
    granted.py     the gate of an orchestrator behind such an edge
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
    tool_calls.py  tool calls, from the model's request to a result
    allotment.py   the share of the remaining time that a model turn may use
    tracking.py    reports of an attempt to ledger, retry logic and statistics
    failures.py    errors of the hops below
    shortening.py  long results of tools, shortened or cut
    answers.py     partial answers
    upstreams.py   statistics of models and tools, and their retries
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
