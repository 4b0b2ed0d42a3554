import { createRegistry, toJson, type DescFile, type DescMessage, type JsonValue, type MessageShape } from "@bufbuild/protobuf";
import { file_ltxtrain_v1_ingest } from "./generated/ltxtrain/v1/ingest_pb.js";
import { file_ltxtrain_v1_preprocess } from "./generated/ltxtrain/v1/preprocess_pb.js";
import { file_ltxtrain_v1_train } from "./generated/ltxtrain/v1/train_pb.js";

const withImports = (file: DescFile): DescFile[] => [file, ...file.dependencies.flatMap(withImports)];

/** Every type of the contract, those of an error's details among them: `toJson` and `fromJson` ask for them. */
export const registry = createRegistry(
  ...[file_ltxtrain_v1_ingest, file_ltxtrain_v1_preprocess, file_ltxtrain_v1_train].flatMap(withImports),
);

/** A message as ProtoJSON, also one that holds the error of a failed job. */
export function json<Desc extends DescMessage>(type: Desc, message: MessageShape<Desc>): JsonValue {
  return toJson(type, message, { registry });
}
