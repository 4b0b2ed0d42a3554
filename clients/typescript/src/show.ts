import { Artifact_KindSchema } from "./generated/ltxtrain/v1/artifact_pb.js";
import {
  OutcomeSchema,
  ReportReasonSchema,
  StageSchema,
  StateSchema,
  type Event,
} from "./generated/ltxtrain/v1/work_pb.js";
import { word } from "./words.js";

/** An event as one line. */
export function line(event: Event): string {
  const stage = word(StageSchema, event.stage);
  const { detail } = event;
  switch (detail.case) {
    case "lifecycle":
      return word(StateSchema, detail.value.state);
    case "progress":
      return `${stage} ${detail.value.completed}/${detail.value.total || "?"}`;
    case "reportLine": {
      const reasons = detail.value.reasons.map((reason) => word(ReportReasonSchema, reason)).join(", ");
      return `${word(OutcomeSchema, detail.value.outcome)} ${detail.value.path} ${reasons}`.trimEnd();
    }
    case "trainMetrics":
      return `step ${detail.value.step} loss ${detail.value.loss.toFixed(4)}`;
    case "artifact":
      return `${word(Artifact_KindSchema, detail.value.kind)} ${detail.value.name}`;
    case "warning":
      return `warning: ${detail.value.message}`;
    default:
      // A detail that is newer than this client too.
      return `${stage} ${detail.case ?? ""}`.trimEnd();
  }
}
