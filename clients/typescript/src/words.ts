import type { DescEnum } from "@bufbuild/protobuf";
import { AspectRatioSchema } from "./generated/ltxtrain/v1/extend_prefix_pb.js";
import { ReportReasonSchema } from "./generated/ltxtrain/v1/work_pb.js";

/**
 * The word of each enum value as people write it: "medium" for RESOLUTION_MEDIUM, "16:9" for ASPECT_RATIO_16_9.
 * Reasons stay in capitals, as in errors: "CLIP_TOO_SHORT".
 */
export function words(type: DescEnum): Map<string, string> {
  const prefix = (type.value[0]?.name ?? "").replace(/UNSPECIFIED$/, "");
  return new Map(
    type.values
      .filter((value) => value.number !== 0)
      .map(({ name }) => {
        if (type.typeName === ReportReasonSchema.typeName) return [name.slice(prefix.length), name];
        const text = name.slice(prefix.length).toLowerCase();
        // The sheet writes shapes as 16:9, which no identifier can hold.
        return [type.typeName === AspectRatioSchema.typeName ? text.replace("_", ":") : text, name];
      }),
  );
}

/** The word of a value; its number for one that this client is too old to know. */
export function word(type: DescEnum, number: number): string {
  const name = type.value[number]?.name;
  for (const [text, full] of words(type)) if (full === name) return text;
  return String(number);
}
