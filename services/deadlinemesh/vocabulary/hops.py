"""The names, ports and gRPC services of the mesh's services."""

__all__ = ["EDGE", "GRPC_SERVICES", "LLM_PROXY", "ORCHESTRATOR", "PORTS", "TOOL_RUNNER"]

ORCHESTRATOR = "orchestrator"
LLM_PROXY = "llm-proxy"
TOOL_RUNNER = "tool-runner"
EDGE = "edge"

PORTS = {ORCHESTRATOR: 50051, LLM_PROXY: 50052, TOOL_RUNNER: 50053, EDGE: 50051}
"""Default ports by service. Clients call the orchestrator, or an edge instead of it."""

GRPC_SERVICES = {
    ORCHESTRATOR: "deadlinemesh.v1.OrchestratorService",
    LLM_PROXY: "deadlinemesh.v1.LlmProxyService",
    TOOL_RUNNER: "deadlinemesh.v1.ToolRunnerService",
    EDGE: "deadlinemesh.v1.OrchestratorService",
}
