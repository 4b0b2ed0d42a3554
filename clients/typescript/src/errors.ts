import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import type { ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
} from "./generated/google/rpc/error_details_pb.js";
import type { Status } from "./generated/google/rpc/status_pb.js";

/** An upload or download that did not end with the right bytes. */
export class TransferFailed extends Error {}

/** Finds the details of one type in an error. */
type Find = <Desc extends DescMessage>(type: Desc) => MessageShape<Desc>[];

/** A call's error as lines: what, why, and each wrong field. */
export function describeCall(error: ConnectError): string[] {
  return describe(error.rawMessage, (type) => error.findDetails(type));
}

/** The error that a job ended with, likewise; the same status that a call would have failed with. */
export function describeStatus(status: Status): string[] {
  return describe(status.message, (type) => status.details.flatMap((detail) => anyUnpack(detail, type) ?? []));
}

function describe(message: string, find: Find): string[] {
  const reason = find(ErrorInfoSchema)[0]?.reason;
  return [
    reason ? `${reason}: ${message}` : message,
    ...find(BadRequestSchema).flatMap(({ fieldViolations }) =>
      fieldViolations.map((wrong) => `  ${wrong.field}: ${wrong.reason}: ${wrong.description}`),
    ),
    ...find(PreconditionFailureSchema).flatMap(({ violations }) =>
      violations.map((item) => `  ${item.subject}: ${item.description}`),
    ),
  ];
}
