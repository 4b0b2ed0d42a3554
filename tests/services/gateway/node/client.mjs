// The official client, unchanged: its middleware hook sends to GATEWAY what is meant for the hosted queue.
// argv: one scenario. Prints one JSON object.
import { createFalClient } from "@fal-ai/client";

const APP = "fal-ai/ltx23-trainer-v2/extend-prefix";
const SHEET = { training_data_url: "https://example.com/clips.zip", number_of_steps: 100 };

const client = (credentials) =>
  createFalClient({
    credentials,
    requestMiddleware: async (request) => ({
      ...request,
      url: request.url.replace("https://queue.fal.run", process.env.GATEWAY),
    }),
  });
const ann = client(process.env.ANN);
const bob = client(process.env.BOB);

// What a call fails with, as a program reads it.
const fault = async (promise) => {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.name, status: error.status, message: error.message, fields: error.fieldErrors };
  }
};

const scenarios = {
  async subscribe(mode) {
    const updates = [];
    const result = await ann.subscribe(APP, {
      input: SHEET, logs: true, mode, pollInterval: 50, onQueueUpdate: (update) => updates.push(structuredClone(update)),
    });
    return { updates, result };
  },
  polling: () => scenarios.subscribe("polling"),
  streaming: () => scenarios.subscribe("streaming"),
  async stream() {
    const { request_id: requestId } = await ann.queue.submit(APP, { input: SHEET });
    const seen = [];
    for await (const update of await ann.queue.streamStatus(APP, { requestId, logs: true })) { seen.push(update); }
    return { seen, result: await ann.queue.result(APP, { requestId }) };
  },
  async refused() {
    const wrong = { number_of_steps: 5, validation: [{ prompt: "p", video_url: "ftp://example.com/a.mp4" }] };
    return { fault: await fault(ann.queue.submit(APP, { input: wrong, webhookUrl: "https://10.0.0.1/hook" })) };
  },
  async failed() {
    const { request_id: requestId } = await ann.queue.submit(APP, { input: SHEET });
    const ended = await ann.queue.subscribeToStatus(APP, { requestId, logs: true, pollInterval: 50 });
    return { ended, fault: await fault(ann.queue.result(APP, { requestId })) };
  },
  async cancelled() {
    const { request_id: requestId } = await ann.queue.submit(APP, { input: SHEET });
    const foreign = await fault(bob.queue.cancel(APP, { requestId }));
    await ann.queue.cancel(APP, { requestId });
    const ended = await ann.queue.subscribeToStatus(APP, { requestId, pollInterval: 50 });
    return { foreign, ended, fault: await fault(ann.queue.result(APP, { requestId })) };
  },
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
