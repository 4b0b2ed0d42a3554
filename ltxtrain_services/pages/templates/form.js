"use strict";
// The form as the sheet's JSON: only what differs from the defaults is sent. Files go straight to the object store.
const form = document.getElementById("sheet");
// Not form.dataset: an input of that name hides it.
const key = form.getAttribute("data-key");
// Where a clip is continued; a training starts among the jobs.
const action = form.getAttribute("data-action");
const fault = document.getElementById("fault");
const estimate = document.getElementById("estimate");
const inputs = [...form.querySelectorAll("[name]")];
// The name and the job to go on from are no parts of the sheet.
const beside = inputs.filter((input) => input.closest("[data-beside]"));
const mode = inputs.find((input) => input.name === "continue_from.mode");
let uploads = 0;

const valueOf = (input) => {
  if (input.type === "checkbox") {
    // What is left out is the earlier job's, where there is one.
    return String(input.checked) === input.dataset.default && !mode ? undefined : input.checked;
  }
  const text = input.value.trim();
  if (text === "") { return undefined; }
  return input.type === "number" || "whole" in input.dataset ? Number(text) : text;
};

const sheet = () => {
  const document = {};
  for (const input of inputs) {
    const value = valueOf(input);
    if (value === undefined || beside.includes(input)) { continue; }
    const entry = /^(\w+)\[(\d)\]\.(\w+)$/.exec(input.name);
    if (entry) {
      const entries = (document[entry[1]] ??= []);
      (entries[entry[2]] ??= {})[entry[3]] = value;
    } else if (input.name.startsWith("options.")) {
      (document.options ??= {})[input.name.slice(8)] = value;
    } else {
      document[input.name] = value;
    }
  }
  if (document.validation) { document.validation = [...document.validation].map((entry) => entry ?? {}); }
  return document;
};

const query = () => new URLSearchParams(beside.map((input) => [input.name, input.value.trim()]).filter(([, value]) => value));

const nameOf = (loc) => loc.slice(1).reduce((path, step) => typeof step === "number" ? `${path}[${step}]` : path ? `${path}.${step}` : step, "");

const clear = () => {
  fault.hidden = true;
  for (const wrong of form.querySelectorAll(".wrong")) { wrong.textContent = ""; }
  for (const input of inputs) { input.removeAttribute("aria-invalid"); }
};

// Each violation beside its field; what belongs to none, beside the button.
const show = (answer, alone) => {
  const rest = [];
  let first = null;
  for (const item of Array.isArray(answer.detail) ? answer.detail : [{ loc: [], msg: answer.message }]) {
    const input = inputs.find((input) => input.name === nameOf(item.loc));
    if (!input) { rest.push(item.msg); continue; }
    if (alone && !alone(input)) { continue; }
    const wrong = document.getElementById(`${input.id}-wrong`);
    if (!wrong) { rest.push(item.msg); continue; }
    wrong.textContent = item.msg;
    input.setAttribute("aria-invalid", "true");
    first ??= input;
  }
  fault.textContent = rest.join(" ");
  fault.hidden = !rest.length;
  return first;
};

const post = async (path, body, headers = {}) => {
  const response = await fetch(path, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers },
  });
  if (response.status === 401) { location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`); }
  return { ok: response.ok, answer: await response.json() };
};

const send = async (path, body) => {
  if (uploads) { fault.textContent = "A file is still on its way."; fault.hidden = false; return; }
  clear();
  try {
    const { ok, answer } = await post(path, body, { "Idempotency-Key": key });
    if (ok) { location.assign(answer.location); } else { show(answer)?.focus(); }
  } catch { show({ message: "The gateway does not answer. Nothing is lost: try again." }); }
};

form.addEventListener("submit", (event) => { event.preventDefault(); send(`${action ?? "/jobs"}?${query()}`, sheet()); });
document.getElementById("check").addEventListener("click", () => {
  const { dataset, ...rest } = sheet();
  send(`${dataset ? `/${dataset}/check` : "/datasets"}?${query()}`, rest);
});

// The estimate follows what is typed, and so do the faults of the fields that were touched.
const touched = new Set();
let timer;
const guess = async () => {
  if (action) { return; }
  try {
    const { ok, answer } = await post("/estimate", sheet());
    clear();
    // More steps of the same training cost less than all of them.
    if (ok) { estimate.textContent = mode && mode.value !== "weights" ? "" : answer.estimate; } else { show(answer, (input) => touched.has(input)); }
  } catch { estimate.textContent = ""; }
};
form.addEventListener("input", (event) => {
  touched.add(event.target);
  clearTimeout(timer);
  timer = setTimeout(guess, 400);
});
guess();

// SHA-256 (FIPS 180-4), fed piece by piece: the browser's own wants a whole file in memory.
const K = new Uint32Array(64);
const START = new Uint32Array(8);
{
  let found = 0;
  for (let n = 2; found < 64; n += 1) {
    let prime = true;
    for (let d = 2; d * d <= n; d += 1) { if (n % d === 0) { prime = false; break; } }
    if (!prime) { continue; }
    const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32);
    if (found < 8) { START[found] = fraction(Math.sqrt(n)); }
    K[found] = fraction(Math.cbrt(n));
    found += 1;
  }
}
class Sha256 {
  constructor() { this.h = START.slice(); this.w = new Uint32Array(64); this.rest = new Uint8Array(0); this.size = 0; }
  block(view, at) {
    const { h, w } = this;
    for (let i = 0; i < 16; i += 1) { w[i] = view.getUint32(at + 4 * i); }
    for (let i = 16; i < 64; i += 1) {
      const x = w[i - 15], y = w[i - 2];
      const s = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const t = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (w[i - 16] + s + w[i - 7] + t) | 0;
    }
    let [a, b, c, d, e, f, g, k] = h;
    for (let i = 0; i < 64; i += 1) {
      const s = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const one = (k + s + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const t = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const two = (t + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      k = g; g = f; f = e; e = (d + one) | 0; d = c; c = b; b = a; a = (one + two) | 0;
    }
    h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += k;
  }
  add(bytes) {
    this.size += bytes.length;
    if (this.rest.length) {
      const joined = new Uint8Array(this.rest.length + bytes.length);
      joined.set(this.rest); joined.set(bytes, this.rest.length);
      bytes = joined;
    }
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    let at = 0;
    for (; at + 64 <= bytes.length; at += 64) { this.block(view, at); }
    this.rest = bytes.slice(at);
  }
  hex() {
    const size = this.size, end = new Uint8Array(this.rest.length < 56 ? 64 : 128);
    end.set(this.rest); end[this.rest.length] = 0x80;
    const view = new DataView(end.buffer);
    view.setUint32(end.length - 8, Math.floor(size / 2 ** 29)); view.setUint32(end.length - 4, (size % 2 ** 29) * 8);
    for (let at = 0; at < end.length; at += 64) { this.block(view, at); }
    return [...this.h].map((word) => word.toString(16).padStart(8, "0")).join("");
  }
}

const PIECE = 4 * 2 ** 20;
const digest = async (file, progress) => {
  const hash = new Sha256();
  for (let at = 0; at < file.size; at += PIECE) {
    hash.add(new Uint8Array(await file.slice(at, at + PIECE).arrayBuffer()));
    progress(at / file.size);
  }
  return hash.hex();
};

const put = (url, file, progress) => new Promise((resolve, reject) => {
  const request = new XMLHttpRequest();
  request.open("PUT", url);
  request.upload.addEventListener("progress", (event) => progress(event.loaded / file.size));
  request.addEventListener("load", () => request.status < 300 ? resolve() : reject(new Error(`The object store answered ${request.status}.`)));
  request.addEventListener("error", () => reject(new Error("The object store does not answer.")));
  request.send(file);
});

const upload = async (drop, file) => {
  const input = document.getElementById(drop.dataset.for);
  const text = drop.querySelector("span"), bar = drop.querySelector("progress");
  const wrong = document.getElementById(`${input.id}-wrong`);
  const progress = (what, from, to) => (share) => { bar.value = from + share * (to - from); text.textContent = `${what} ${file.name} …`; };
  uploads += 1;
  bar.hidden = false;
  wrong.textContent = "";
  try {
    const sha256 = await digest(file, progress("Reading", 0, 0.3));
    const { ok, answer } = await post("/uploads", { size: file.size, sha256, name: file.name });
    if (!ok) { throw new Error(answer.message); }
    await put(answer.put_url, file, progress("Sending", 0.3, 1));
    input.value = answer.url;
    text.textContent = `${file.name} is uploaded`;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  } catch (error) {
    text.textContent = `${file.name} is not uploaded: choose it again`;
    wrong.textContent = error.message;
  } finally {
    uploads -= 1;
    bar.hidden = true;
  }
};

for (const drop of document.querySelectorAll(".drop")) {
  const chooser = drop.querySelector("input");
  chooser.addEventListener("input", (event) => event.stopPropagation());
  chooser.addEventListener("change", () => { if (chooser.files[0]) { upload(drop, chooser.files[0]); } });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) { drop.addEventListener(name, () => drop.classList.remove("over")); }
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) { upload(drop, event.dataTransfer.files[0]); }
  });
}
