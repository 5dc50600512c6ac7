import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, type Socket, connect as dial, createServer } from "node:net";
import { type TestContext, test } from "node:test";

import {
  type ChannelOptions,
  Metadata,
  Server,
  ServerCredentials,
  type ServerWritableStream,
  type ServiceError,
  type UntypedServiceImplementation,
  credentials,
  status,
} from "@grpc/grpc-js";

import { Cause, DeadlineMesh, MeshError } from "../src/index.js";
import {
  OrchestratorServiceService,
  type RunRequest,
  RunResponse,
} from "../src/gen/deadlinemesh/v1/orchestrator.js";
import { BadRequest, ErrorInfo, RetryInfo } from "../src/gen/google/rpc/error_details.js";
import { Status } from "../src/gen/google/rpc/status.js";

const EXACT = "deadline-remaining-us";

type Call = ServerWritableStream<RunRequest, RunResponse>;

const STARTED = RunResponse.fromPartial({ event: { $case: "started", value: { runId: "r1" } } });

function finished(answer: string): RunResponse {
  return RunResponse.fromPartial({ event: { $case: "finished", value: { answer } } });
}

/** Serves `run` on a free port until the test ends, and gives its address. */
async function listen(t: TestContext, run: (call: Call) => void): Promise<string> {
  const server = new Server();
  const getRun = ({ metadata }: { metadata: Metadata }, done: (error: Partial<ServiceError>) => void) =>
    done({ code: status.NOT_FOUND, details: `no such run; sent ${JSON.stringify(metadata.get(EXACT))}` });
  const silent = () => {};
  const handlers: UntypedServiceImplementation = { run, getRun, listRuns: silent, cancelRun: silent };
  server.addService(OrchestratorServiceService, handlers);
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    ),
  );
  t.after(() => server.forceShutdown());
  return `127.0.0.1:${port}`;
}

function connect(t: TestContext, address: string): DeadlineMesh {
  const mesh = new DeadlineMesh({ address, apiKey: "s3cret" });
  t.after(() => mesh.close());
  return mesh;
}

async function serve(t: TestContext, run: (call: Call) => void): Promise<DeadlineMesh> {
  return connect(t, await listen(t, run));
}

/** Fails a call as the mesh does. */
function refuse(call: Call, code: status, message: string, ...details: { typeUrl: string; value: Buffer }[]): void {
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from(Status.encode({ code, message, details }).finish()));
  call.emit("error", { code, details: message, metadata });
}

function pack<T>(type: string, codec: { encode(message: T): { finish(): Uint8Array } }, message: T) {
  return { typeUrl: `type.googleapis.com/google.rpc.${type}`, value: Buffer.from(codec.encode(message).finish()) };
}

async function collect(run: AsyncIterable<RunResponse>): Promise<RunResponse[]> {
  const events = [];
  for await (const event of run) events.push(event);
  return events;
}

async function failure(work: Promise<unknown>): Promise<MeshError> {
  const error = await work.then(() => assert.fail("the call succeeded"), (error: unknown) => error);
  assert(error instanceof MeshError, `not a MeshError: ${String(error)}`);
  return error;
}

test("a run yields its events in order and carries the key", async (t) => {
  let authorization: unknown;
  const mesh = await serve(t, (call) => {
    authorization = call.metadata.get("authorization");
    call.write(STARTED);
    call.write(finished(`${call.request.prompt} to you`));
    call.end();
  });
  assert.deepEqual(await collect(mesh.run({ prompt: "hello" })), [STARTED, finished("hello to you")]);
  assert.deepEqual(authorization, ["Bearer s3cret"]);
});

test("the line end of a key's file is left out", async (t) => {
  let authorization: unknown;
  const address = await listen(t, (call) => {
    authorization = call.metadata.get("authorization");
    call.end();
  });
  const mesh = new DeadlineMesh({ address, apiKey: "s3cret\r\n" });
  t.after(() => mesh.close());
  await collect(mesh.run({}));
  assert.deepEqual(authorization, ["Bearer s3cret"]);
});

test("a key that no header can hold is refused and not repeated", () => {
  for (const apiKey of ["s3cret\ns3cret", "s3cret\0", "s3cr\u00e9t"]) {
    assert.throws(
      () => new DeadlineMesh({ address: "localhost:1", apiKey }),
      new TypeError("the API key has characters that no header may have: give the key itself, in one line"),
    );
  }
});

test("the deadline travels, and without one there is none", async (t) => {
  const deadlines: number[] = [];
  const mesh = await serve(t, (call) => {
    deadlines.push(Number(call.getDeadline()));
    call.end();
  });
  await collect(mesh.run({}));
  const before = Date.now();
  await collect(mesh.run({}, { deadlineMs: 60_000 }));
  assert.equal(deadlines[0], Infinity);
  const remaining = (deadlines[1] ?? NaN) - before;
  assert(remaining > 30_000 && remaining < 61_000, `the server saw ${remaining} ms`);
});

test("the deadline is sent exactly too, and only where there is one", async (t) => {
  const sent: unknown[] = [];
  const mesh = await serve(t, (call) => {
    sent.push(call.metadata.get(EXACT));
    assert.deepEqual(call.metadata.get("authorization"), ["Bearer s3cret"]);
    call.end();
  });
  for (const deadlineMs of [20_000, 300_000, 1500.0015, undefined, 20_000]) await collect(mesh.run({}, { deadlineMs }));
  assert.deepEqual(sent, [["19999850"], ["299999850"], ["1499851"], [], ["19999850"]]);
  assert.match((await failure(mesh.getRun("r1", { deadlineMs: 20_000 }))).message, /sent \["19999850"\]/);
  assert.match((await failure(mesh.getRun("r1"))).message, /sent \[\]/);
});

test("a deadline that is long past or never comes makes no malformed value", async (t) => {
  const sent: unknown[] = [];
  const mesh = await serve(t, (call) => {
    sent.push(call.metadata.get(EXACT)[0]);
    call.end();
  });
  for (const deadlineMs of [1e10, Infinity]) await collect(mesh.run({}, { deadlineMs }));
  assert.deepEqual(sent, ["9999999999850", undefined]);
  await failure(collect(mesh.run({}, { deadlineMs: -5 })));
});

test("leaving the loop cancels the server's handler", async (t) => {
  let stopped: Promise<unknown> | undefined;
  const mesh = await serve(t, (call) => {
    stopped = once(call, "cancelled");
    call.write(STARTED);
  });
  for await (const _ of mesh.run({})) break;
  assert(stopped);
  await stopped;
});

test("aborting the signal cancels the server's handler and throws the signal's reason", async (t) => {
  let stopped: Promise<unknown> | undefined;
  const mesh = await serve(t, (call) => {
    stopped = once(call, "cancelled");
    call.write(STARTED);
  });
  const controller = new AbortController();
  const reason = new Error("enough");
  await assert.rejects(async () => {
    for await (const _ of mesh.run({}, { signal: controller.signal })) controller.abort(reason);
  }, reason);
  assert(stopped);
  await stopped;
});

test("an aborted signal keeps a call from starting and ends one in flight", async (t) => {
  const mesh = await serve(t, () => assert.fail("the run was started"));
  const reason = new Error("enough");
  await assert.rejects(collect(mesh.run({}, { signal: AbortSignal.abort(reason) })), reason);
  await assert.rejects(mesh.getRun("r1", { signal: AbortSignal.abort(reason) }), reason);
  const controller = new AbortController();
  const list = mesh.listRuns({}, { signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(list, reason);
});

test("an answer stands when the status behind it is lost", async (t) => {
  const mesh = await serve(t, (call) => {
    call.write(finished("partial"));
    refuse(call, status.DEADLINE_EXCEEDED, "too late");
  });
  assert.deepEqual(await collect(mesh.run({})), [finished("partial")]);
});

test("an error unpacks the status' details", async (t) => {
  const violations = [{ field: "model", description: 'choose one of "small", "large"' }];
  const mesh = await serve(t, (call) => {
    refuse(
      call,
      status.RESOURCE_EXHAUSTED,
      "too many runs",
      pack("ErrorInfo", ErrorInfo, { reason: "SHED", domain: "deadlinemesh", metadata: { hop: "orchestrator" } }),
      pack("BadRequest", BadRequest, BadRequest.fromPartial({ fieldViolations: violations })),
      pack("RetryInfo", RetryInfo, { retryDelay: { seconds: 1, nanos: 500_000_000 } }),
    );
  });
  const error = await failure(collect(mesh.run({})));
  assert.equal(error.message, "RESOURCE_EXHAUSTED: too many runs (SHED)");
  assert.equal(error.code, status.RESOURCE_EXHAUSTED);
  assert.equal(error.reason, "SHED");
  assert.equal(error.meshCause, Cause.SHED);
  assert.deepEqual(error.metadata, { hop: "orchestrator" });
  assert.deepEqual(error.violations.map(({ field, description }) => ({ field, description })), violations);
  assert.equal(error.retryAfterMs, 1500);
});

test("another domain's ErrorInfo is no reason", async (t) => {
  const mesh = await serve(t, (call) => {
    const info = { reason: "SHED", domain: "example.com", metadata: {} };
    refuse(call, status.UNAVAILABLE, "gateway", pack("ErrorInfo", ErrorInfo, info));
  });
  const error = await failure(collect(mesh.run({})));
  assert.equal(error.reason, "");
  assert.equal(error.meshCause, Cause.UNSPECIFIED);
});

test("unary calls fail with the same error", async (t) => {
  const mesh = await serve(t, () => {});
  assert.equal((await failure(mesh.getRun("gone"))).code, status.NOT_FOUND);
});

/** Serves at two addresses, and gives a client of both and who has served. */
async function twoPods(t: TestContext, channelOptions?: ChannelOptions): Promise<[DeadlineMesh, Set<string>]> {
  const served = new Set<string>();
  const pod = (name: string) =>
    listen(t, (call) => {
      served.add(name);
      call.end();
    });
  const address = `ipv4:${await pod("a")},${await pod("b")}`;
  const mesh = new DeadlineMesh({ address, apiKey: "s3cret", credentials: credentials.createInsecure(), channelOptions });
  t.after(() => mesh.close());
  return [mesh, served];
}

test("calls are spread over all addresses of a name", async (t) => {
  const [mesh, served] = await twoPods(t, { "grpc.keepalive_time_ms": 20_000 });
  // All go to the first until there is a connection to the second.
  while (served.size < 2) await collect(mesh.run({}));
});

test("channelOptions override how calls are spread", async (t) => {
  const config = JSON.stringify({ loadBalancingConfig: [{ pick_first: {} }] });
  const [mesh, served] = await twoPods(t, { "grpc.service_config": config });
  for (let calls = 0; calls < 20; calls++) await collect(mesh.run({}));
  assert.equal(served.size, 1);
});

/** Forwards to `address` until it is told to fall silent, which closes nothing. Gives its own address and how to tell it. */
async function proxy(t: TestContext, address: string): Promise<[string, () => void]> {
  const sockets: Socket[] = [];
  const server = createServer((near) => {
    const far = dial(Number(address.split(":")[1]));
    near.pipe(far).pipe(near);
    sockets.push(near, far);
    for (const socket of [near, far]) socket.on("error", () => {});
  }).listen(0, "127.0.0.1");
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  await once(server, "listening");
  const silence = () => {
    for (const socket of sockets) socket.unpipe();
  };
  return [`127.0.0.1:${(server.address() as AddressInfo).port}`, silence];
}

test("a run whose connection has gone silent fails after 40 s", async (t) => {
  const [address, silence] = await proxy(t, await listen(t, (call) => call.write(STARTED)));
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const run = connect(t, address).run({});
  assert.deepEqual((await run.next()).value, STARTED);
  silence();
  const failed = failure(collect(run));
  t.mock.timers.tick(20_000); // the ping
  t.mock.timers.tick(20_000); // which is not answered
  assert.equal((await failed).code, status.UNAVAILABLE);
});

test("only a loopback address is spoken to without TLS by default", async (t) => {
  const address = await listen(t, () => assert.fail("the key travelled in the clear"));
  const mesh = connect(t, `ipv4:${address}`); // Not written as a loopback address, so the plain server must be refused.
  assert.equal((await failure(collect(mesh.run({})))).code, status.UNAVAILABLE);
});
