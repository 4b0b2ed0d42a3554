import { Code, ConnectError } from "@connectrpc/connect";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { describeCall, describeStatus, TransferFailed } from "./errors.js";
import { State } from "./generated/ltxtrain/v1/work_pb.js";
import { outputs, submit } from "./jobs.js";
import { readSettings, SettingsInvalid } from "./settings.js";
import { parseSheet, SheetInvalid } from "./sheet.js";
import { line } from "./show.js";
import { connect, type Suite } from "./suite.js";
import { download } from "./transfer.js";
import { watch } from "./watch.js";

const USAGE = `usage:
  node dist/main.js submit SHEET.json [--data CLIPS.zip] [--validation CLIP]... [--watch] [--out DIR]
  node dist/main.js watch JOB [--after SEQUENCE] [--out DIR]

  --data CLIPS.zip     training data to upload in place of the sheet's URL
  --validation CLIP    opening clip to upload, once for each validation entry
  --watch              follow the job until it ends
  --after SEQUENCE     show events after this one
  --out DIR            then download the results here

LTXTRAIN_TRAIN, LTXTRAIN_INGEST, LTXTRAIN_TOKEN and LTXTRAIN_TLS_ROOT say where the services are; see README.md.
Exit codes: 0 succeeded, 1 the job failed, 2 wrong usage or sheet, 3 cancelled, 4 unreachable, 5 refused.`;

/** How the command ends, as the Python command line does. */
const Exit = { SUCCEEDED: 0, FAILED: 1, INVALID: 2, CANCELLED: 3, UNREACHABLE: 4, REFUSED: 5 } as const;

/** Nobody was there, or the connection broke: the last two are what Connect makes of a reset. */
const UNREACHABLE: readonly Code[] = [Code.Unavailable, Code.DeadlineExceeded, Code.Canceled, Code.Aborted];

class Usage extends Error {}

async function main(suite: Suite): Promise<number> {
  const { positionals, values } = parseCommand();
  if (values.help) {
    console.log(USAGE);
    return Exit.SUCCEEDED;
  }
  const [command, subject] = positionals;
  if (subject === undefined || positionals.length > 2) throw new Usage("one sheet, or one job");
  if (command === "watch") {
    if (!/^\d+$/.test(values.after)) throw new Usage("--after takes the number of an event");
    return follow(suite, subject, BigInt(values.after), values.out);
  }
  if (command !== "submit") throw new Usage(`${command} is no command`);
  const sheet = parseSheet(await readFile(subject, "utf8"));
  const job = await submit(suite, sheet, {
    ...(values.data !== undefined && { data: values.data }),
    validation: values.validation,
  });
  console.log(job.name);
  return values.watch || values.out !== undefined ? follow(suite, job.name, 0n, values.out) : Exit.SUCCEEDED;
}

function parseCommand() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        data: { type: "string" },
        validation: { type: "string", multiple: true, default: [] },
        watch: { type: "boolean", default: false },
        after: { type: "string", default: "0" },
        out: { type: "string" },
        help: { type: "boolean", short: "h", default: false },
      },
    });
  } catch (error) {
    throw new Usage((error as Error).message);
  }
}

/** Events on stderr until the job ends, then its results in `out`. */
async function follow(suite: Suite, name: string, after: bigint, out: string | undefined): Promise<number> {
  const open = (afterSequence: bigint, signal: AbortSignal) =>
    suite.train.watchJob({ name, afterSequence }, { signal, timeoutMs: 0 });
  for await (const { sequence, event } of watch(open, after)) console.error(`${sequence} ${line(event)}`);
  const { job } = await suite.train.getJob({ name });
  if (job === undefined) throw new ConnectError("the answer holds no job", Code.Internal);
  if (out !== undefined) {
    for (const [file, artifact] of outputs(job)) {
      const path = join(out, file);
      await download(suite, artifact, path);
      console.log(path);
    }
  }
  if (job.lifecycle?.error) console.error(describeStatus(job.lifecycle.error).join("\n"));
  if (job.lifecycle?.state === State.SUCCEEDED) return Exit.SUCCEEDED;
  return job.lifecycle?.state === State.CANCELLED ? Exit.CANCELLED : Exit.FAILED;
}

/** Tells what went wrong, and how the command ends. Anything not foreseen is thrown on. */
function tell(error: unknown): number {
  if (error instanceof Usage) {
    console.error(`${error.message}\n${USAGE}`);
    return Exit.INVALID;
  }
  if (error instanceof ConnectError) {
    console.error(describeCall(error).join("\n"));
    if (error.code === Code.InvalidArgument) return Exit.INVALID;
    return UNREACHABLE.includes(error.code) ? Exit.UNREACHABLE : Exit.REFUSED;
  }
  if (!(error instanceof Error)) throw error;
  const foreseen = error instanceof SettingsInvalid || error instanceof SheetInvalid || "errno" in error;
  if (!foreseen && !(error instanceof TransferFailed)) throw error;
  console.error(error instanceof SheetInvalid ? `The sheet is invalid:\n${error.message}` : error.message);
  return error instanceof TransferFailed ? Exit.UNREACHABLE : Exit.INVALID;
}

try {
  const suite = connect(readSettings(process.env));
  try {
    process.exitCode = await main(suite);
  } finally {
    suite.close();
  }
} catch (error) {
  process.exitCode = tell(error);
}
