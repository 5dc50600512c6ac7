import { type ServiceError, status } from "@grpc/grpc-js";

import { Cause } from "./gen/deadlinemesh/v1/common.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

const DOMAIN = "deadlinemesh";
const TYPES = "type.googleapis.com/google.rpc.";

/** One field of a request that was refused, and why. */
export interface Violation {
  field: string;
  description: string;
}

/** The gRPC status of a failed call with its details unpacked. Its `cause` is the error of grpc-js. */
export class MeshError extends Error {
  override readonly name = "MeshError";
  readonly code: status;
  /** Why the mesh refused or stopped the call, for machines; empty when the status does not come from the mesh. */
  readonly reason: string;
  /** The reason as one of the contract's causes; `UNSPECIFIED` when it is none. JavaScript has `cause` for another use. */
  readonly meshCause: Cause;
  /** What the mesh says of the reason: hop, phase, granted_ms, elapsed_ms. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The fields of the request that were refused, with the valid choices. */
  readonly violations: readonly Violation[];
  /** How long to wait before another try, in milliseconds; undefined when the mesh does not know. */
  readonly retryAfterMs: number | undefined;

  constructor(error: ServiceError) {
    const details = richStatus(error)?.details ?? [];
    const find = (type: string) => details.find(({ typeUrl }) => typeUrl === TYPES + type)?.value;
    const info = details
      .filter(({ typeUrl }) => typeUrl === `${TYPES}ErrorInfo`)
      .map(({ value }) => ErrorInfo.decode(value))
      .find(({ domain }) => domain === DOMAIN);
    const badRequest = find("BadRequest");
    const retryInfo = find("RetryInfo");
    const meshCause = Object.values(Cause).find((cause) => cause === `CAUSE_${info?.reason}`) ?? Cause.UNSPECIFIED;

    const suffix = meshCause === Cause.UNSPECIFIED ? "" : ` (${info?.reason})`;
    super(`${status[error.code]}: ${error.details}${suffix}`, { cause: error });
    this.code = error.code;
    this.reason = info?.reason ?? "";
    this.meshCause = meshCause;
    this.metadata = info?.metadata ?? {};
    this.violations = badRequest ? BadRequest.decode(badRequest).fieldViolations : [];
    const delay = retryInfo && RetryInfo.decode(retryInfo).retryDelay;
    this.retryAfterMs = delay && delay.seconds * 1e3 + delay.nanos / 1e6;
  }
}

function richStatus(error: ServiceError): Status | undefined {
  // Absent when the error was made on this side.
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  return Buffer.isBuffer(bytes) ? Status.decode(bytes) : undefined;
}
