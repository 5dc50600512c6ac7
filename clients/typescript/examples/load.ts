// Starts a run for each JSON object that it reads, a line each, and prints how the run ended. `dmesh bench exact` drives it.
import { createInterface } from "node:readline";

import { Metadata, credentials } from "@grpc/grpc-js";

import { DeadlineMesh, type RunResponse } from "@deadlinemesh/client";
import { ListRunsRequest, OrchestratorServiceClient, RunRequest } from "../src/gen/deadlinemesh/v1/orchestrator.js";

interface Order {
  id: number;
  deadline_ms: number;
  prompt: string;
  /** By the generated stub, so with `grpc-timeout` alone. */
  plain: boolean;
}

const { DMESH_ADDR: address = "", DMESH_API_KEY: apiKey = "" } = process.env;
const mesh = new DeadlineMesh({ address, apiKey });
const stub = new OrchestratorServiceClient(address, credentials.createInsecure());
const withKey = new Metadata();
withKey.set("authorization", `Bearer ${apiKey}`);

function start({ prompt, plain, deadline_ms: deadlineMs }: Order): AsyncIterable<RunResponse> {
  if (!plain) return mesh.run({ prompt }, { deadlineMs });
  return stub.run(RunRequest.fromPartial({ prompt }), withKey, { deadline: Date.now() + deadlineMs });
}

/** Watches a run to its end, and prints what was held back of its deadline and what was left of it, in microseconds. */
async function run(order: Order): Promise<void> {
  const ended = { id: order.id, held_us: 0, left_us: 0, outcome: "", error: "" };
  const began = performance.now();
  try {
    for await (const { event } of start(order)) {
      if (event?.$case === "started" && event.value.grant) {
        ended.held_us = order.deadline_ms * 1000 - (event.value.grant.grantedUs - event.value.grant.reserveUs);
      } else if (event?.$case === "finished") {
        ended.left_us = Math.round((order.deadline_ms - (performance.now() - began)) * 1000);
        ended.outcome = event.value.outcome;
      }
    }
  } catch (error) {
    ended.error = String(error);
  }
  console.log(JSON.stringify(ended));
}

// Connections are opened before any deadline runs.
await mesh.listRuns();
await new Promise<void>((resolve, reject) =>
  stub.listRuns(ListRunsRequest.fromPartial({}), withKey, (error) => (error ? reject(error) : resolve())),
);
console.log(JSON.stringify({ ready: true }));
const atWork: Promise<void>[] = [];
for await (const line of createInterface({ input: process.stdin })) atWork.push(run(JSON.parse(line) as Order));
await Promise.all(atWork);
mesh.close();
stub.close();
