"""A client in a process of its own, that can be killed or stopped: `python -m tests.chaos.client ADDRESS KEY SECONDS PROMPT`.

Writes each response to standard output, one a line, as it comes.
"""

from __future__ import annotations

import base64
import sys

import grpc

from deadlinemesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc


def main(address: str, key: str, seconds: float, prompt: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        request = orchestrator_pb2.RunRequest(prompt=prompt)
        for response in stub.Run(request, timeout=seconds or None, metadata=(("authorization", f"Bearer {key}"),)):
            print(base64.b64encode(response.SerializeToString()).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
