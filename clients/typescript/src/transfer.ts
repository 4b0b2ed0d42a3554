import { ConnectError } from "@connectrpc/connect";
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rename, rm, stat } from "node:fs/promises";
import { request as requestHttp, type IncomingMessage } from "node:http";
import { request as requestHttps } from "node:https";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { TransferFailed } from "./errors.js";
import type { Suite } from "./suite.js";

const ATTEMPTS = 5;
const FIRST_BACKOFF_MS = 200;
const IDLE_MS = 60_000;
/** Larger files are sent in parts: in parallel, and after an interruption only what is missing. */
const MULTIPART_ABOVE_BYTES = 64 * 2 ** 20;
const PARALLEL_PARTS = 4;
const MAX_PARTS_A_PAGE = 100;
/** The store joins gigabytes. */
const COMPLETE_MS = 300_000;

/** Bytes of a file as it was when it was hashed. */
interface Span {
  readonly path: string;
  readonly offset: number;
  readonly size: number;
  readonly modifiedMs: number;
}

/** Uploads a file of any size, as far as the store lacks it. Returns its reference where a sheet expects a URL. */
export async function upload(suite: Suite, path: string): Promise<string> {
  const modifiedMs = (await stat(path)).mtimeMs;
  const { size, sha256 } = await digest(path);
  const whole: Span = { path, offset: 0, size, modifiedMs };
  const multipart = size > MULTIPART_ABOVE_BYTES;
  const announced = { sizeBytes: BigInt(size), sha256, fileName: basename(path), multipart };
  const created = await suite.ingest.createUpload(announced);
  if (!created.complete && multipart) {
    await putParts(suite, created.upload, whole);
    await suite.ingest.completeUpload({ upload: created.upload }, { timeoutMs: COMPLETE_MS });
  } else if (!created.complete) {
    await attempt(`${basename(path)} could not be uploaded`, () => put(created.putUrl, whole, false));
  }
  return `upload:${created.upload}`;
}

/** Sends the parts that the store lacks until it has all of them; fails after several rounds that stored none. */
async function putParts(suite: Suite, upload: string, whole: Span): Promise<void> {
  for (let stored = -1n, done = false; !done; ) {
    await attempt(`${basename(whole.path)} could not be uploaded`, async () => {
      const page = await suite.ingest.listUploadParts({ upload, pageSize: MAX_PARTS_A_PAGE });
      done = page.parts.length === 0;
      const left = page.parts.map(({ offsetBytes, sizeBytes, putUrl }) => {
        const span: Span = { ...whole, offset: Number(offsetBytes), size: Number(sizeBytes) };
        return () => put(putUrl, span, true);
      });
      try {
        await together(left);
      } catch (error) {
        // What was stored in between makes the next try a first one.
        const progressed = page.storedBytes > stored;
        stored = page.storedBytes;
        if (error instanceof TransferFailed || !progressed) throw error;
      }
    });
  }
}

/** Runs the work, some of it at once; throws the first error when all that had begun has ended. */
async function together(left: (() => Promise<void>)[]): Promise<void> {
  const errors: unknown[] = [];
  const worker = async (): Promise<void> => {
    for (let work = left.shift(); work !== undefined; work = left.shift()) {
      try {
        await work();
      } catch (error) {
        errors.push(error);
        left.length = 0;
      }
    }
  };
  await Promise.all(Array.from({ length: PARALLEL_PARTS }, worker));
  if (errors.length > 0) throw errors[0];
}

/** PUTs a span; `expires`: a refusal may be that of a URL which has expired, and is tried again with a fresh one. */
async function put(url: string, span: Span, expires: boolean): Promise<void> {
  if ((await stat(span.path)).mtimeMs !== span.modifiedMs) {
    throw new TransferFailed(`${basename(span.path)} changed while it was read`);
  }
  const headers = { "Content-Length": span.size, "Content-Type": "application/octet-stream" };
  const response = await send("PUT", url, headers, span);
  response.resume();
  if (expires && response.statusCode === 403) throw new Error("the store answered HTTP 403");
  refuse(response, [200], basename(span.path));
}

/**
 * Downloads an artifact to `path`, which appears whole and checked by sha256, or not at all. What a broken try brought
 * lies beside it until then and is not fetched again.
 */
export async function download(suite: Suite, artifact: string, path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await attempt(`${basename(path)} could not be downloaded`, async () => {
    // Asked for in each try, for the URL expires.
    const { artifact: found, downloadUrl } = await suite.train.getArtifact({ name: artifact });
    const blob = found?.blob;
    if (blob === undefined) throw new TransferFailed(`${artifact} has no bytes`);
    const part = join(dirname(path), `.${basename(path)}.${blob.sha256.slice(0, 12)}.part`);
    const had = await sizeOf(part);
    if (had === 0 || had < blob.sizeBytes) await append(downloadUrl, part, had);
    const { size, sha256 } = await digest(part);
    if (BigInt(size) < blob.sizeBytes) throw new Error(`it ended after ${size} of ${blob.sizeBytes} bytes`);
    if (sha256 !== blob.sha256) {
      await rm(part);
      throw new Error("the bytes do not have the announced sha256");
    }
    await rename(part, path);
  });
}

async function append(url: string, part: string, had: number): Promise<void> {
  // Identity, for the digest is of the bytes as they are stored.
  const headers = { "Accept-Encoding": "identity", ...(had > 0 && { Range: `bytes=${had}-` }) };
  const response = await send("GET", url, headers);
  if (had > 0 && (response.statusCode === 200 || response.statusCode === 416)) {
    response.destroy();
    await rm(part);
    throw new Error(`the store does not go on from byte ${had}`);
  }
  refuse(response, [200, 206], basename(part));
  await pipeline(response, createWriteStream(part, { flags: "a" }));
}

/** One request; `body` is a part of a file, or all of it. */
async function send(
  method: string,
  url: string,
  headers: Record<string, string | number>,
  body?: Span,
): Promise<IncomingMessage> {
  const start = url.startsWith("https:") ? requestHttps : requestHttp;
  const request = start(url, { method, headers, timeout: IDLE_MS });
  request.on("timeout", () => request.destroy(new Error("the store fell silent")));
  const response = new Promise<IncomingMessage>((resolve, reject) => {
    request.once("response", resolve);
    request.on("error", reject);
  });
  if (body === undefined || body.size === 0) {
    request.end();
  } else {
    // A store may answer, and hang up, before it has read all: its answer counts.
    const { path, offset, size } = body;
    pipeline(createReadStream(path, { start: offset, end: offset + size - 1 }), request).catch(() => undefined);
  }
  return response;
}

function refuse(response: IncomingMessage, accepted: number[], label: string): void {
  const code = response.statusCode ?? 0;
  if (accepted.includes(code)) return;
  response.destroy();
  if (code >= 500) throw new Error(`the store answered HTTP ${code}`);
  throw new TransferFailed(`The object store refused ${label}: HTTP ${code}.`);
}

/** Tries again what a broken connection or a server error ended. Texts never hold a presigned URL: it is a secret. */
async function attempt(what: string, work: () => Promise<void>): Promise<void> {
  for (let count = 1; ; count++) {
    try {
      return await work();
    } catch (error) {
      if (error instanceof TransferFailed || error instanceof ConnectError) throw error;
      if (count === ATTEMPTS) throw new TransferFailed(`${what}: ${(error as Error).message} (${count} tries)`);
      await sleep(FIRST_BACKOFF_MS * 2 ** (count - 1));
    }
  }
}

async function digest(path: string): Promise<{ size: number; sha256: string }> {
  const hash = createHash("sha256");
  let size = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
    hash.update(chunk as Buffer);
    size += (chunk as Buffer).length;
  }
  return { size, sha256: hash.digest("hex") };
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await stat(path)).size;
  } catch {
    return 0;
  }
}
