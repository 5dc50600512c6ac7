// Runs an agent on a Deadline Mesh, shows what happens as it happens, and then where the time went.
import { parseArgs } from "node:util";

import {
  Cause,
  DeadlineMesh,
  MeshError,
  Outcome,
  type RunFinished,
  type RunResponse,
} from "@deadlinemesh/client";

const EXIT_FAILED = 1;
const EXIT_USAGE = 2;
const EXIT_CANCELLED = 130; // What a shell reports of a program that Ctrl-C ended.

const USAGE = `usage: run.js [flags] PROMPT
  --addr HOST:PORT     the orchestrator; also DMESH_ADDR (default localhost:50051)
  --key KEY            the tenant's API key; also DMESH_API_KEY, which keeps it out of the process list
  --deadline DURATION  the time for the whole run, such as 500ms, 20s or 2m; 0 leaves it to the tenant's tier (default 20s)
  --model NAME         the model; empty for the tenant's default
  --tool NAME          a tool the agent may use, repeatable; left out: all that the tenant may
`;

interface Arguments {
  address: string;
  apiKey: string;
  deadlineMs: number;
  model: string;
  tools: string[];
  prompt: string;
}

function readArguments(): Arguments {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      addr: { type: "string", default: process.env.DMESH_ADDR || "localhost:50051" },
      key: { type: "string", default: process.env.DMESH_API_KEY ?? "" },
      deadline: { type: "string", default: "20s" },
      model: { type: "string", default: "" },
      tool: { type: "string", multiple: true, default: [] },
    },
  });
  if (positionals.length === 0) throw new Error("there is no prompt");
  return {
    address: values.addr,
    apiKey: values.key,
    deadlineMs: milliseconds(values.deadline),
    model: values.model,
    tools: values.tool,
    prompt: positionals.join(" "),
  };
}

function milliseconds(duration: string): number {
  if (duration === "0") return 0;
  const [, amount, unit] = /^(\d+(?:\.\d+)?)(ms|s|m)$/.exec(duration) ?? [];
  if (amount === undefined) throw new Error(`--deadline ${duration}: write it as 500ms, 20s or 2m`);
  return Number(amount) * (unit === "ms" ? 1 : unit === "s" ? 1e3 : 60e3);
}

/** Watches a run to its end, printing its events. */
async function run(options: Arguments, signal: AbortSignal): Promise<RunFinished> {
  const { prompt, model, tools, deadlineMs } = options;
  const print = new Printer();
  const mesh = new DeadlineMesh(options);
  let finished: RunFinished | undefined;
  try {
    for await (const event of mesh.run({ prompt, model, tools }, { deadlineMs: deadlineMs || undefined, signal })) {
      print.event(event);
      if (event.event?.$case === "finished") finished = event.event.value;
    }
  } finally {
    mesh.close();
  }
  if (!finished) throw new Error("the stream ended before the run did; getRun tells how the run ended");
  return finished;
}

/** Prints events: text as it flows, everything else on a line of its own. */
class Printer {
  #midLine = false;
  readonly #toolNames = new Map<string, string>(); // By call id.

  event({ event, elapsedUs }: RunResponse): void {
    switch (event?.$case) {
      case "started": {
        const { runId, grant, model } = event.value;
        this.#line(elapsedUs, `run ${runId}: ${grant?.tier} tier, ${seconds(grant?.grantedUs ?? 0)} s granted, model ${model}`);
        break;
      }
      case "text":
        process.stdout.write(event.value.text);
        this.#midLine = !event.value.text.endsWith("\n");
        break;
      case "toolCallStarted": {
        const { call, remainingUs } = event.value;
        if (call) this.#toolNames.set(call.id, call.name);
        this.#line(elapsedUs, `tool ${call?.name} ${call?.argumentsJson}, ${seconds(remainingUs)} s left`);
        break;
      }
      case "toolCallProgress": {
        const { callId, fraction, message } = event.value;
        this.#line(elapsedUs, `tool ${this.#toolNames.get(callId)} ${(100 * fraction).toFixed()}% ${message}`);
        break;
      }
      case "toolCallFinished": {
        const { name, status, elapsedUs: took } = event.value;
        this.#line(elapsedUs, `tool ${name} ${status.replace("TOOL_STATUS_", "")} after ${ms(took)} ms`);
        break;
      }
    }
  }

  #line(elapsedUs: number, text: string): void {
    if (this.#midLine) console.log();
    this.#midLine = false;
    console.log(`[${ms(elapsedUs).padStart(9)} ms] ${text}`);
  }
}

function printFinished({ answer, partial, outcome, cause, detail, ledger }: RunFinished): void {
  console.log(`\n--- ${partial ? "PARTIAL answer" : "answer"} ---\n${answer}`);
  console.log(`\noutcome  ${outcome.replace("OUTCOME_", "")}`);
  if (cause !== Cause.UNSPECIFIED) console.log(`cause    ${cause.replace("CAUSE_", "")}: ${detail}`);

  const { phases = [], unattributedUs = 0, elapsedUs = 0, grantedUs = 0 } = ledger ?? {};
  const row = (name: string, time: string, share = "") =>
    console.log(`${name.padEnd(16)} ${time.padStart(10)} ${share.padStart(7)}`.trimEnd());
  const timed = (name: string, us: number) => row(name, ms(us), `${((100 * us) / Math.max(elapsedUs, 1)).toFixed(1)}%`);
  console.log();
  row("phase", "ms", "share");
  for (const { phase, spentUs } of phases) timed(phase.replace("PHASE_", "").toLowerCase(), spentUs);
  timed("unattributed", unattributedUs);
  timed("elapsed", elapsedUs);
  row("granted", ms(grantedUs));
}

function printError(error: unknown): void {
  console.error(`\nerror: ${error instanceof Error ? error.message : String(error)}`);
  if (!(error instanceof MeshError)) return;
  for (const { field, description } of error.violations) console.error(`  ${field}: ${description}`);
  if (error.retryAfterMs) console.error(`  try again in ${error.retryAfterMs / 1e3}s`);
}

function ms(us: number): string {
  return (us / 1e3).toFixed(1);
}

function seconds(us: number): string {
  return (us / 1e6).toFixed(1);
}

async function main(): Promise<number> {
  let options: Arguments;
  try {
    options = readArguments();
  } catch (error) {
    console.error(`${(error as Error).message}\n${USAGE}`);
    return EXIT_USAGE;
  }
  const controller = new AbortController();
  process.once("SIGINT", () => controller.abort()); // A second Ctrl-C is not waited on.
  try {
    const finished = await run(options, controller.signal);
    printFinished(finished);
    return finished.outcome === Outcome.COMPLETED || finished.outcome === Outcome.DEADLINE_SPENT ? 0 : EXIT_FAILED;
  } catch (error) {
    if (controller.signal.aborted) {
      console.error("\nthe run was cancelled");
      return EXIT_CANCELLED;
    }
    printError(error);
    return EXIT_FAILED;
  }
}

process.exitCode = await main();
