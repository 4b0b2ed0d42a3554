import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { setTimeout as sleep } from "node:timers/promises";
import { IngestService } from "./generated/ltxtrain/v1/ingest_pb.js";
import { TrainService } from "./generated/ltxtrain/v1/train_pb.js";
import type { Settings } from "./settings.js";

const UNARY_DEADLINE_MS = 10_000;
const ATTEMPTS = 4;
const FIRST_BACKOFF_MS = 100;

/** Clients of the services that a job needs; Train itself asks the preprocess service. */
export interface Suite {
  readonly train: Client<typeof TrainService>;
  readonly ingest: Client<typeof IngestService>;
  readonly settings: Settings;
  /** Ends every call and connection. */
  close(): void;
}

/** Nothing is dialled before the first call. */
export function connect(settings: Settings): Suite {
  const interceptors = [retrying, ...(settings.token ? [showing(settings.token)] : [])];
  const tls = {
    ...(settings.tlsRoot && { ca: settings.tlsRoot }),
    ...(settings.tlsCert && { cert: settings.tlsCert }),
    ...(settings.tlsKey && { key: settings.tlsKey }),
  };
  // The servers accept a ping each 5 s.
  const session = (url: string) => new Http2SessionManager(url, { pingIntervalMs: 30_000, pingTimeoutMs: 10_000 }, tls);
  const sessions = { train: session(settings.train), ingest: session(settings.ingest) };
  const transport = (baseUrl: string, sessionManager: Http2SessionManager) =>
    createGrpcTransport({ baseUrl, sessionManager, interceptors, defaultTimeoutMs: UNARY_DEADLINE_MS });
  return {
    settings,
    train: createClient(TrainService, transport(settings.train, sessions.train)),
    ingest: createClient(IngestService, transport(settings.ingest, sessions.ingest)),
    close: () => {
      sessions.train.abort();
      sessions.ingest.abort();
    },
  };
}

function showing(token: string): Interceptor {
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
}

/** Unary calls are tried again when nobody answers. A job is made once all the same: its request has an id. */
const retrying: Interceptor = (next) => async (request) => {
  for (let attempt = 1; ; attempt++) {
    try {
      return await next(request);
    } catch (error) {
      const lost = ConnectError.from(error).code === Code.Unavailable;
      if (request.stream || !lost || attempt === ATTEMPTS) throw error;
      await sleep(FIRST_BACKOFF_MS * 2 ** (attempt - 1));
    }
  }
};
