import { clone, create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { randomUUID } from "node:crypto";
import { BadRequestSchema } from "./generated/google/rpc/error_details_pb.js";
import { ExtendPrefixSpecSchema, ValidationInputSchema, type ExtendPrefixSpec } from "./generated/ltxtrain/v1/extend_prefix_pb.js";
import type { TaskSpecSchema } from "./generated/ltxtrain/v1/task_pb.js";
import type { Job } from "./generated/ltxtrain/v1/train_pb.js";
import { SHEET_PATH } from "./errors.js";
import { SheetInvalid, type Sheet } from "./sheet.js";
import type { Suite } from "./suite.js";
import { upload } from "./transfer.js";

/** Stands for a file that is not uploaded yet while the rest of the spec is checked. */
const PENDING_UPLOAD = `upload:uploads/${"0".repeat(32)}`;

/** Local files in place of the sheet's URLs. */
export interface Files {
  /** A zip. */
  readonly data?: string;
  /** One clip for each validation entry, from the first on. */
  readonly validation?: readonly string[];
}

/** Checks the sheet, uploads the files, starts the job and returns at once. The job runs whether or not one watches. */
export async function submit(suite: Suite, sheet: Sheet, files: Files = {}): Promise<Job> {
  const { options } = sheet;
  const spec = clone(ExtendPrefixSpecSchema, sheet.spec);
  const clips = files.validation ?? [];
  while (spec.validation.length < clips.length) spec.validation.push(create(ValidationInputSchema));
  const place = (data: string, clip: (index: number) => string): void => {
    if (files.data !== undefined) spec.trainingData = { case: "trainingDataUrl", value: data };
    spec.validation.slice(0, clips.length).forEach((entry, index) => (entry.videoUrl = clip(index)));
  };
  if (files.data !== undefined && spec.trainingData.case === "dataset") {
    throw new SheetInvalid("dataset: cannot be given together with a file");
  }
  if (files.data !== undefined || clips.length > 0) {
    place(PENDING_UPLOAD, () => PENDING_UPLOAD);
    const filled = new Set(clips.map((_, index) => `${SHEET_PATH}validation[${index}].video_url`));
    if (files.data !== undefined) filled.add(`${SHEET_PATH}training_data_url`);
    await checkBeforeUpload(suite, { spec, options }, filled);
    const data = files.data === undefined ? "" : await upload(suite, files.data);
    const names: string[] = [];
    for (const clip of clips) names.push(await upload(suite, clip));
    place(data, (index) => names[index] ?? "");
  }
  const { job } = await suite.train.createJob({ requestId: randomUUID(), spec: task(spec), options });
  if (job === undefined) throw new ConnectError("the answer holds no job", Code.Internal);
  return job;
}

/** The sheet as one of the kinds of training that there are. */
function task(spec: ExtendPrefixSpec): MessageInitShape<typeof TaskSpecSchema> {
  return { task: { case: "extendPrefix", value: spec } };
}

/** Fails for what is wrong beside the fields that the files fill, before gigabytes are sent in vain. */
async function checkBeforeUpload(
  suite: Suite,
  { spec, options }: Sheet,
  filled: ReadonlySet<string>,
): Promise<void> {
  try {
    await suite.train.createJob({ requestId: randomUUID(), spec: task(spec), options, validateOnly: true });
  } catch (error) {
    const wrong = ConnectError.from(error)
      .findDetails(BadRequestSchema)
      .flatMap(({ fieldViolations }) => fieldViolations.map(({ field }) => field));
    if (wrong.length === 0 || !wrong.every((field) => filled.has(field))) throw error;
  }
}

/** Artifact names of a job's results by the file name that each ends in; empty before it has any. */
export function outputs(job: Job): Map<string, string> {
  const { loraFile, configFile, video, debugDataset, loraVideoOnlyFile } = job.output ?? {};
  const { continuedVideos = [], baseVideos = [] } = job.output ?? {};
  const single = [loraFile, configFile, video, debugDataset, loraVideoOnlyFile].filter((name) => name !== undefined);
  const names = [...single, ...continuedVideos, ...baseVideos];
  return new Map(names.filter((name) => name !== "").map((name) => [fileName(name), name]));
}

function fileName(artifact: string): string {
  const name = artifact.slice(artifact.lastIndexOf("/") + 1);
  // The name is the server's; the folder that it is written to is ours.
  return ["", ".", ".."].includes(name) ? "artifact" : name;
}
