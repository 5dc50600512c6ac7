"""The orchestrator: the mesh's edge. A run goes edge → servicer → runs → agent → ports → adapters → next hop, forward only.

edge.py       who is calling and how much time is granted
servicer.py   messages to the domain and back
runs.py       a run from its registration to its oblivion; who watches it
agent.py      the agent loop
answers.py    what to say when there was no time to finish
upstreams.py  what is known of models and tools, and how many retries they may have
ports.py      what the loop needs of models and tools
adapters.py   those over gRPC
events.py     what a run tells
"""

from deadlinemesh.orchestrator.adapters import GrpcModels, GrpcTools
from deadlinemesh.orchestrator.edge import HOP, EdgeGate
from deadlinemesh.orchestrator.servicer import OrchestratorServicer

__all__ = ["HOP", "EdgeGate", "GrpcModels", "GrpcTools", "OrchestratorServicer"]
