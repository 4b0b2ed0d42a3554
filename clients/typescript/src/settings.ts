import { readFileSync } from "node:fs";

/** An address, token or certificate cannot be used; the text names the setting. */
export class SettingsInvalid extends Error {}

/** Where the services are and what is shown to them. */
export interface Settings {
  /** URL of the train service: http:// is plaintext, https:// is TLS. */
  readonly train: string;
  readonly ingest: string;
  readonly token?: string;
  /** PEM. */
  readonly tlsRoot?: Buffer;
  readonly tlsCert?: Buffer;
  readonly tlsKey?: Buffer;
  /** Larger files are sent in parts: in parallel, and after an interruption only what is missing. */
  readonly multipartAboveBytes: number;
}

const MULTIPART_ABOVE_BYTES = 64 * 2 ** 20;

/**
 * Settings from the variables that the Python client reads too: LTXTRAIN_TRAIN, _INGEST, _TOKEN (or _TOKEN_FILE),
 * _TLS_ROOT, _TLS_CERT, _TLS_KEY; and LTXTRAIN_MULTIPART_ABOVE_BYTES.
 */
export function readSettings(environment: NodeJS.ProcessEnv): Settings {
  const read = (name: string): Buffer | undefined => {
    const path = environment[name];
    return path ? readFile(path, name) : undefined;
  };
  const tlsRoot = read("LTXTRAIN_TLS_ROOT");
  const tlsCert = read("LTXTRAIN_TLS_CERT");
  const tlsKey = read("LTXTRAIN_TLS_KEY");
  if ((tlsCert === undefined) !== (tlsKey === undefined)) {
    throw new SettingsInvalid("LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY belong together: set both, or none.");
  }
  const multipartAbove = environment["LTXTRAIN_MULTIPART_ABOVE_BYTES"] || String(MULTIPART_ABOVE_BYTES);
  if (!/^\d+$/.test(multipartAbove)) {
    throw new SettingsInvalid(`LTXTRAIN_MULTIPART_ABOVE_BYTES=${multipartAbove}: a whole number is needed.`);
  }
  const token = read("LTXTRAIN_TOKEN_FILE")?.toString().trim() || environment["LTXTRAIN_TOKEN"];
  const secure = tlsRoot !== undefined || tlsCert !== undefined;
  const url = (name: string, usual: string): string => serviceUrl(environment[name] || usual, secure, token, name);
  return {
    train: url("LTXTRAIN_TRAIN", "127.0.0.1:7003"),
    ingest: url("LTXTRAIN_INGEST", "127.0.0.1:7001"),
    ...(token && { token }),
    ...(tlsRoot && { tlsRoot }),
    ...(tlsCert && { tlsCert }),
    ...(tlsKey && { tlsKey }),
    multipartAboveBytes: Number(multipartAbove),
  };
}

function serviceUrl(address: string, secure: boolean, token: string | undefined, name: string): string {
  const written = /^https?:\/\//.test(address);
  const text = written ? address : `${secure ? "https" : "http"}://${address}`;
  if (!URL.canParse(text) || !/:\d+\/?$/.test(text)) {
    throw new SettingsInvalid(`${name}=${address}: an address needs a host and a port, as in 127.0.0.1:7003.`);
  }
  const url = new URL(text);
  const loopback = url.hostname === "localhost" || url.hostname === "[::1]" || url.hostname.startsWith("127.");
  if (token && url.protocol === "http:" && !written && !loopback) {
    throw new SettingsInvalid(
      `The token would go to ${address} unencrypted. Set LTXTRAIN_TLS_ROOT, or write https://${address}; ` +
        `on a network that you trust, write http://${address}.`,
    );
  }
  return url.origin;
}

function readFile(path: string, name: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new SettingsInvalid(`${name}: ${(error as Error).message}`);
  }
}
