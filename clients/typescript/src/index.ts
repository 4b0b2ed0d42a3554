export { describeCall, describeStatus, TransferFailed } from "./errors.js";
export { outputs, submit, type Files } from "./jobs.js";
export { json, registry } from "./json.js";
export { readSettings, SettingsInvalid, type Settings } from "./settings.js";
export { parseSheet, SheetInvalid, type Sheet } from "./sheet.js";
export { connect, type Suite } from "./suite.js";
export { download, upload } from "./transfer.js";
export { isTerminal, STEADY, watch, type Numbered, type OpenStream, type Pace } from "./watch.js";
