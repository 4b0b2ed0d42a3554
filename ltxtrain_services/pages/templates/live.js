"use strict";
// Puts parts of the page in place as they come; the browser itself comes back after a lost connection.
const place = document.querySelector("[data-events]");
const connection = document.querySelector(".connection");
const tell = (text) => { connection.textContent = text; connection.hidden = !text; };

const put = (id, html) => {
  const part = document.getElementById(id);
  const open = new Set([...part.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent.replace(/\d+/g, "")));
  const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  part.innerHTML = html;
  for (const summary of part.querySelectorAll("details > summary")) {
    if (open.has(summary.textContent.replace(/\d+/g, ""))) { summary.parentElement.open = true; }
  }
  if (part.tagName === "SECTION") { part.hidden = !html.trim(); }
  if (focused) { part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus(); }
  setUpPlayers(part);
  keepSheet(part);
};

// The rest of a form that was left for this page; its address has it.
const sheet = new URLSearchParams(location.search).get("sheet");
const keepSheet = (part) => {
  if (!sheet) { return; }
  for (const link of part.querySelectorAll("a[data-sheet]")) { link.search += `&${new URLSearchParams({ sheet })}`; }
};
keepSheet(document);

const check = async (button) => {
  button.disabled = true;
  try {
    const response = await fetch(button.dataset.check, { method: "POST", body: sheet ?? "{}" });
    if (response.status === 401) { location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`); }
    const answer = await response.json();
    if (response.ok) { location.replace(answer.location); return; }
    tell(Array.isArray(answer.detail) ? answer.detail.map((item) => `${item.loc.slice(1).join(".")}: ${item.msg}`).join(" ") : answer.message);
  } catch { tell("The gateway does not answer. Nothing is lost: try again."); }
  button.disabled = false;
};
document.addEventListener("click", (event) => { if (event.target.matches("[data-check]")) { check(event.target); } });

const source = new EventSource(place.dataset.events);
source.addEventListener("open", () => tell(""));
source.addEventListener("message", (event) => {
  for (const [id, html] of Object.entries(JSON.parse(event.data))) { put(id, html); }
  place.dataset.cursor = event.lastEventId;
});
source.addEventListener("end", () => {
  source.close();
  place.dataset.ended = "true";
  // Whoever came from the form wants to see the clips; a link of another site starts nothing.
  const button = sheet && document.referrer.startsWith(`${location.origin}/`) && document.querySelector("[data-check]");
  if (button) { check(button); }
});
source.addEventListener("error", () => {
  tell(source.readyState === EventSource.CLOSED ? "The connection is lost; reload the page." : "The connection is lost; it is tried again …");
});
