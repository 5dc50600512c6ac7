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

export interface DeadlineMeshOptions {
  /** The orchestrator's `host:port`, or any target that gRPC understands. */
  address: string;
  /** The tenant's API key. */
  apiKey: string;
  /** How to connect. Left out: TLS, except to a loopback address, where the connection is plain. */
  credentials?: ChannelCredentials | undefined;
  /** Settings of the gRPC channel. Unless they have a `grpc.service_config`, calls are spread over all addresses of a name. */
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

  constructor({ address, apiKey, credentials: chosen, channelOptions }: DeadlineMeshOptions) {
    const options = { ...SPREAD, ...channelOptions };
    this.#stub = new OrchestratorServiceClient(address, chosen ?? defaultCredentials(address), options);
    // Not call credentials: gRPC refuses those on a plain connection.
    this.#metadata.set("authorization", `Bearer ${apiKey}`);
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
    const call = this.#stub.run(RunRequest.fromPartial(request), this.#metadata, callOptions(settings));
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
    return unary((options, done) => this.#stub.getRun({ runId }, this.#metadata, options, done), settings);
  }

  /** Lists the tenant's known runs, newest first. */
  listRuns(request: DeepPartial<ListRunsRequest> = {}, settings?: CallSettings): Promise<ListRunsResponse> {
    const full = ListRunsRequest.fromPartial(request);
    return unary((options, done) => this.#stub.listRuns(full, this.#metadata, options, done), settings);
  }

  /** Stops a run and returns when it has stopped. */
  cancelRun(runId: string, settings?: CallSettings): Promise<CancelRunResponse> {
    return unary((options, done) => this.#stub.cancelRun({ runId }, this.#metadata, options, done), settings);
  }

  /** Closes the connection once the calls in flight have ended. */
  close(): void {
    this.#stub.close();
  }
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
