/**
 * Runs agents on a Deadline Mesh.
 *
 * The messages of the contract that a client meets are exported here, all others from `@deadlinemesh/client/v1/*`. An int64
 * is a `number`: times are microseconds, exact for 285 years, and a value beyond that throws instead of being rounded.
 */
export { type CallSettings, DeadlineMesh, type DeadlineMeshOptions } from "./client.js";
export { MeshError, type Violation } from "./error.js";
export {
  Cause,
  type HopSpend,
  type Ledger,
  type Message,
  Phase,
  type PhaseSpend,
  Role,
  type ToolCall,
  ToolStatus,
  type Usage,
} from "./gen/deadlinemesh/v1/common.js";
export { type TextDelta } from "./gen/deadlinemesh/v1/llm_proxy.js";
export {
  type Grant,
  Outcome,
  type PhaseChanged,
  type RunFinished,
  type RunInfo,
  type RunLimits,
  type RunRequest,
  type RunResponse,
  type RunStarted,
  RunState,
  type ToolCallFinished,
  type ToolCallProgress,
  type ToolCallStarted,
} from "./gen/deadlinemesh/v1/orchestrator.js";
