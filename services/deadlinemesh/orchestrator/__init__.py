"""The orchestrator: the mesh's edge. A run goes edge → servicer → runs → agent → ports → adapters → next hop, forward only.

Where tenants have processes of their own it is edge → forwarding, and in another process granted → servicer and so on.

edge.py       who is calling and how much time is granted
stagger.py    ends of runs, a little apart
forwarding.py a process that only grants and passes on
granted.py    a grant that comes from there
servicer.py   messages to the domain and back
runs.py       a run from its registration to its oblivion; who watches it
catalog.py    which tools a tenant has
agent.py      the agent loop
shortening.py what the model is given of a long result
answers.py    what to say when there was no time to finish
upstreams.py  what is known of models and tools, and how many retries they may have
ports.py      what the loop needs of models and tools
adapters.py   those over gRPC
events.py     what a run tells
"""

from deadlinemesh.orchestrator.adapters import GrpcModels, GrpcTools
from deadlinemesh.orchestrator.edge import HOP, EdgeGate
from deadlinemesh.orchestrator.forwarding import EDGE, Forwarder
from deadlinemesh.orchestrator.granted import GrantedGate
from deadlinemesh.orchestrator.servicer import OrchestratorServicer

__all__ = ["EDGE", "HOP", "EdgeGate", "Forwarder", "GrantedGate", "GrpcModels", "GrpcTools", "OrchestratorServicer"]
