import { create, fromJson, type DescMessage, type JsonObject, type JsonValue, type MessageShape } from "@bufbuild/protobuf";
import { ExtendPrefixSpecSchema, type ExtendPrefixSpec } from "./generated/ltxtrain/v1/extend_prefix_pb.js";
import { JobOptionsSchema, type JobOptions } from "./generated/ltxtrain/v1/train_pb.js";
import { words } from "./words.js";

/** The text is not a sheet: not JSON, unknown keys, values of the wrong type; a line each. Ranges are the server's. */
export class SheetInvalid extends Error {
  readonly problems: readonly string[];

  constructor(...problems: string[]) {
    super(problems.map((problem) => `  ${problem}`).join("\n"));
    this.problems = problems;
  }
}

/** What is asked, and how it is to be run. */
export interface Sheet {
  readonly spec: ExtendPrefixSpec;
  readonly options: JobOptions;
}

/** The parameter sheet's JSON, word for word; what the sheet does not have is in an object "options". */
export function parseSheet(text: string): Sheet {
  const { options, ...spec } = parseObject(text);
  const problems: string[] = [];
  const sheet = {
    spec: parse(ExtendPrefixSpecSchema, spec, "", problems),
    options: isObject(options) ? parse(JobOptionsSchema, options, "options.", problems) : create(JobOptionsSchema),
  };
  if (problems.length > 0) throw new SheetInvalid(...problems);
  return sheet;
}

/** The message of an object; each key that cannot be read is left out and told. */
function parse<Desc extends DescMessage>(
  type: Desc,
  object: JsonObject,
  place: string,
  problems: string[],
): MessageShape<Desc> {
  const readable: JsonObject = {};
  for (const [key, value] of Object.entries(object)) {
    try {
      const entry = withEnumNames(type, { [key]: value });
      fromJson(type, entry);
      Object.assign(readable, entry);
    } catch (error) {
      const message = (error as Error).message;
      problems.push(message.includes(key) ? `${place}${message}` : `${place}${key}: ${message}`);
    }
  }
  return fromJson(type, readable);
}

function parseObject(text: string): JsonObject {
  let value: JsonValue;
  try {
    value = JSON.parse(text.replace(/^\uFEFF/, "")) as JsonValue;
  } catch (error) {
    throw new SheetInvalid(`not JSON: ${(error as Error).message}`);
  }
  if (!isObject(value)) throw new SheetInvalid("a sheet is a JSON object");
  if (value["options"] != null && !isObject(value["options"])) throw new SheetInvalid("options is a JSON object");
  return value;
}

/** The same object with the contract's names in place of the sheet's words. */
function withEnumNames(type: DescMessage, object: JsonObject): JsonObject {
  const renamed = { ...object };
  for (const field of type.fields) {
    const given = object[field.name];
    if (field.fieldKind !== "enum" || given == null) continue;
    const known = words(field.enum);
    const name = typeof given === "string" ? (known.get(given) ?? given) : undefined;
    if (name === undefined || ![...known.values()].includes(name)) {
      throw new Error(`${field.name}: must be one of ${[...known.keys()].join(", ")}`);
    }
    renamed[field.name] = name;
  }
  return renamed;
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
