import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import type { ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
} from "./generated/google/rpc/error_details_pb.js";
import type { Status } from "./generated/google/rpc/status_pb.js";

/** Where the sheet is in a request, in the fields that errors name. */
export const SHEET_PATH = "spec.extend_prefix.";

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

/** The field as the sheet's JSON has it. */
function sheetPath(field: string): string {
  return field.startsWith(SHEET_PATH) ? field.slice(SHEET_PATH.length) : field;
}

function describe(message: string, find: Find): string[] {
  const reason = find(ErrorInfoSchema)[0]?.reason;
  return [
    reason ? `${reason}: ${message}` : message,
    ...find(BadRequestSchema).flatMap(({ fieldViolations }) =>
      fieldViolations.map((wrong) => `  ${sheetPath(wrong.field)}: ${wrong.reason}: ${wrong.description}`),
    ),
    ...find(PreconditionFailureSchema).flatMap(({ violations }) =>
      violations.map((item) => `  ${item.subject}: ${item.description}`),
    ),
  ];
}
