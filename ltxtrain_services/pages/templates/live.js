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
};

const source = new EventSource(place.dataset.events);
source.addEventListener("open", () => tell(""));
source.addEventListener("message", (event) => {
  for (const [id, html] of Object.entries(JSON.parse(event.data))) { put(id, html); }
  place.dataset.cursor = event.lastEventId;
});
source.addEventListener("end", () => { source.close(); place.dataset.ended = "true"; });
source.addEventListener("error", () => {
  tell(source.readyState === EventSource.CLOSED ? "The connection is lost; reload the page." : "The connection is lost; it is tried again …");
});
