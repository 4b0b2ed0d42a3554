import { create, fromJson, type DescMessage, type JsonObject, type JsonValue } from "@bufbuild/protobuf";
import { ExtendPrefixSpecSchema, type ExtendPrefixSpec } from "./generated/ltxtrain/v1/extend_prefix_pb.js";
import { JobOptionsSchema, type JobOptions } from "./generated/ltxtrain/v1/train_pb.js";
import { words } from "./words.js";

/** The text is not a sheet: not JSON, an unknown key, a value of the wrong type. Ranges are the server's to check. */
export class SheetInvalid extends Error {}

/** What is asked, and how it is to be run. */
export interface Sheet {
  readonly spec: ExtendPrefixSpec;
  readonly options: JobOptions;
}

/** The parameter sheet's JSON, word for word; what the sheet does not have is in an object "options". */
export function parseSheet(text: string): Sheet {
  const { options, ...spec } = parseObject(text);
  try {
    return {
      spec: fromJson(ExtendPrefixSpecSchema, withEnumNames(ExtendPrefixSpecSchema, spec)),
      options: isObject(options)
        ? fromJson(JobOptionsSchema, withEnumNames(JobOptionsSchema, options))
        : create(JobOptionsSchema),
    };
  } catch (error) {
    throw new SheetInvalid((error as Error).message);
  }
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
      throw new SheetInvalid(`${field.name}: must be one of ${[...known.keys()].join(", ")}`);
    }
    renamed[field.name] = name;
  }
  return renamed;
}

function isObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
