import { Code, ConnectError } from "@connectrpc/connect";
import { setTimeout as sleep } from "node:timers/promises";
import { RetryInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { State, type Event } from "./generated/ltxtrain/v1/work_pb.js";

/** How long a watch waits. */
export interface Pace {
  /** Longer than the servers' heartbeat of 15 s, by so much that two may be lost. */
  readonly silenceMs: number;
  readonly firstBackoffMs: number;
  readonly lastBackoffMs: number;
  /** Give up when nothing was heard for so long. */
  readonly patienceMs: number;
}

export const STEADY: Pace = { silenceMs: 45_000, firstBackoffMs: 200, lastBackoffMs: 10_000, patienceMs: Infinity };

/** Another try with the same cursor would end the same way. */
const FATAL: ReadonlySet<Code> = new Set([
  Code.NotFound,
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.OutOfRange,
  Code.InvalidArgument,
  Code.FailedPrecondition,
  Code.Unimplemented,
]);

/** What every Watch call answers with; a heartbeat has no event. */
interface Response {
  readonly sequence: bigint;
  readonly event?: Event | undefined;
}

/** Starts a Watch call at a cursor. */
export type OpenStream = (afterSequence: bigint, signal: AbortSignal) => AsyncIterable<Response>;

export interface Numbered {
  readonly sequence: bigint;
  readonly event: Event;
}

export function isTerminal(event: Event): boolean {
  if (event.detail.case !== "lifecycle") return false;
  return [State.SUCCEEDED, State.FAILED, State.CANCELLED].includes(event.detail.value.state);
}

/**
 * Events after a cursor, each once and in order, until the work ends. A stream that breaks or falls silent is opened
 * again at the last sequence that was seen: keep it, and another process can go on from there.
 */
export async function* watch(
  open: OpenStream,
  afterSequence = 0n,
  pace: Pace = STEADY,
): AsyncGenerator<Numbered, void> {
  let cursor = afterSequence;
  let failures = 0;
  let heard = Date.now();
  for (;;) {
    const leave = new AbortController();
    const messages = open(cursor, leave.signal)[Symbol.asyncIterator]();
    let empty = true;
    let lost: ConnectError;
    try {
      for (;;) {
        const next = await within(pace.silenceMs, messages.next());
        if (next.done) {
          // OK without a word: the work has ended, and the cursor is at its end.
          if (empty) return;
          lost = new ConnectError("the stream ended before the work did", Code.Unavailable);
          break;
        }
        empty = false;
        failures = 0;
        heard = Date.now();
        const { sequence, event } = next.value;
        if (event === undefined || sequence <= cursor) continue;
        cursor = sequence;
        yield { sequence, event };
        if (isTerminal(event)) return;
      }
    } catch (error) {
      lost = ConnectError.from(error);
      if (FATAL.has(lost.code)) throw lost;
    } finally {
      leave.abort();
    }
    const delayMs = backoff(pace, failures, lost);
    if (Date.now() + delayMs - heard > pace.patienceMs) throw lost;
    failures += 1;
    await sleep(delayMs);
  }
}

async function within<T>(limitMs: number, answer: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const silence = new Promise<never>((_, reject) => {
    const error = new ConnectError(`nothing was heard for ${limitMs / 1000} s`, Code.Unavailable);
    timer = setTimeout(() => reject(error), limitMs);
  });
  // Left alone when silence wins, and then it fails with the stream.
  answer.catch(() => undefined);
  try {
    return await Promise.race([answer, silence]);
  } finally {
    clearTimeout(timer);
  }
}

/** With jitter, and no less than the server asked for. */
function backoff(pace: Pace, failures: number, lost: ConnectError): number {
  const limit = Math.min(pace.lastBackoffMs, pace.firstBackoffMs * 2 ** Math.min(failures, 30));
  const asked = lost.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const askedMs = asked ? Number(asked.seconds) * 1000 + asked.nanos / 1e6 : 0;
  return Math.max(limit * (0.5 + Math.random() / 2), Math.min(askedMs, pace.lastBackoffMs));
}
