import {
  type CallOptions,
  type ChannelCredentials,
  type ChannelOptions,
  Metadata,
  type ServiceError,
  credentials,
} from "@grpc/grpc-js";

import { MeshError } from "./error.js";
import {
  type CancelRunResponse,
  type DeepPartial,
  type GetRunResponse,
  type ListRunsResponse,
  ListRunsRequest,
  OrchestratorServiceClient,
  RunRequest,
  type RunResponse,
} from "./gen/deadlinemesh/v1/orchestrator.js";

/** gRPC's configuration of calls in turn to all addresses of a name. By its default all calls go to one of them. */
const SPREAD = { "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }) };

/** After 20 s of silence during a call its server is asked for a sign of life, and after as many again given up. */
const KEEPALIVE = { "grpc.keepalive_time_ms": 20_000, "grpc.keepalive_timeout_ms": 20_000 };

/** The least time, in microseconds, from here to where a call is read. */
const LEAST_TRANSIT_US = 150;

export interface DeadlineMeshOptions {
  /** The orchestrator's `host:port`, or any target that gRPC understands. */
  address: string;
  /** The tenant's API key. White space around it, such as the line end of its file, is left out. */
  apiKey: string;
  /** How to connect. Left out: TLS, except to a loopback address, where the connection is plain. */
  credentials?: ChannelCredentials | undefined;
  /**
   * Settings of the gRPC channel. Unless they say otherwise, by `grpc.service_config` and `grpc.keepalive_…`, calls are
   * spread over all addresses of a name, and one whose connection has been silent for 40 s fails.
   */
  channelOptions?: ChannelOptions | undefined;
}

export interface CallSettings {
  /** The time for the whole call, in milliseconds from its start. Left out: the tenant's tier decides. */
  deadlineMs?: number | undefined;
  /** Aborting it cancels the call, which then throws the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** Speaks to an orchestrator on behalf of one tenant. It connects when first used; many calls may share it. */
export class DeadlineMesh {
  readonly #stub: OrchestratorServiceClient;
  readonly #metadata = new Metadata();

  /** @throws {TypeError} when no header can hold the key. */
  constructor({ address, apiKey, credentials: chosen, channelOptions }: DeadlineMeshOptions) {
    const options = { ...SPREAD, ...KEEPALIVE, ...channelOptions };
    this.#stub = new OrchestratorServiceClient(address, chosen ?? defaultCredentials(address), options);
    // Not call credentials: gRPC refuses those on a plain connection.
    this.#metadata.set("authorization", `Bearer ${checkedKey(apiKey)}`);
  }

  /**
   * Runs an agent and yields what happens; the last event is `finished`. Taking the first event starts the run and its
   * deadline; leaving the loop, or aborting the signal, cancels it.
   *
   * A run whose time is spent is no error: its last event carries the partial answer.
   *
   * @throws {MeshError} when the call fails.
   */
  async *run(request: DeepPartial<RunRequest>, settings: CallSettings = {}): AsyncGenerator<RunResponse, void, undefined> {
    const { signal } = settings;
    signal?.throwIfAborted();
    const call = this.#stub.run(RunRequest.fromPartial(request), this.#sentWith(settings), callOptions(settings));
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
    let finished = false;
    try {
      for await (const event of call as AsyncIterable<RunResponse>) {
        finished ||= event.event?.$case === "finished";
        yield event;
      }
    } catch (error) {
      signal?.throwIfAborted();
      // An answer that came just in time stands, even if the deadline outran the status behind it.
      if (!finished) throw new MeshError(error as ServiceError);
    } finally {
      signal?.removeEventListener("abort", cancel);
      // grpc-js does not do so when its stream is left early.
      call.cancel();
    }
  }

  /** Tells what is known of a run. */
  getRun(runId: string, settings?: CallSettings): Promise<GetRunResponse> {
    return unary((options, done) => this.#stub.getRun({ runId }, this.#sentWith(settings), options, done), settings);
  }

  /** Lists the tenant's known runs, newest first. */
  listRuns(request: DeepPartial<ListRunsRequest> = {}, settings?: CallSettings): Promise<ListRunsResponse> {
    const full = ListRunsRequest.fromPartial(request);
    return unary((options, done) => this.#stub.listRuns(full, this.#sentWith(settings), options, done), settings);
  }

  /** Stops a run and returns when it has stopped. */
  cancelRun(runId: string, settings?: CallSettings): Promise<CancelRunResponse> {
    return unary((options, done) => this.#stub.cancelRun({ runId }, this.#sentWith(settings), options, done), settings);
  }

  /** Closes the connection once the calls in flight have ended. */
  close(): void {
    this.#stub.close();
  }

  /**
   * A call's metadata: the key and, where it has a deadline, how long that is in whole microseconds, which `grpc-timeout` may not
   * say exactly. Where the call then waits for a connection, `grpc-timeout` is the shorter, and the mesh goes by it.
   */
  #sentWith({ deadlineMs }: CallSettings = {}): Metadata {
    if (deadlineMs === undefined || !Number.isFinite(deadlineMs)) return this.#metadata;
    const metadata = this.#metadata.clone();
    const remainingUs = Math.max(0, Math.floor(deadlineMs * 1000 - LEAST_TRANSIT_US));
    metadata.set("deadline-remaining-us", String(Math.min(remainingUs, Number.MAX_SAFE_INTEGER)));
    return metadata;
  }
}

/** The key as it is sent. The error does not repeat it, as that of grpc-js would. */
function checkedKey(key: string): string {
  const trimmed = key.trim();
  if (!/^[\x20-\x7e]*$/.test(trimmed)) {
    throw new TypeError("the API key has characters that no header may have: give the key itself, in one line");
  }
  return trimmed;
}

function unary<Response>(
  start: (options: CallOptions, done: (error: ServiceError | null, response: Response) => void) => { cancel(): void },
  settings: CallSettings = {},
): Promise<Response> {
  const { signal } = settings;
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const call = start(callOptions(settings), (error, response) => {
      signal?.removeEventListener("abort", cancel);
      if (error === null) resolve(response);
      else reject(signal?.aborted ? signal.reason : new MeshError(error));
    });
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
  });
}

function callOptions({ deadlineMs }: CallSettings): CallOptions {
  return deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
}

function defaultCredentials(address: string): ChannelCredentials {
  const loopback = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$/.test(address);
  return loopback ? credentials.createInsecure() : credentials.createSsl();
}
