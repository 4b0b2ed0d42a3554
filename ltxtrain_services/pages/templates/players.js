"use strict";
// Players of one clip play, pause and seek together; a button picks the step of the LoRA.
const visible = (player) => player.offsetParent !== null;
// Players that this script moved: their seeking is an answer, not a wish.
const moved = new WeakSet();
const moveTo = (player, seconds) => {
  if (player.currentTime === seconds) { return; }
  moved.add(player);
  player.currentTime = seconds;
};

const setUpPlayers = (root) => {
  for (const compare of root.querySelectorAll(".compare")) {
    const players = [...compare.querySelectorAll("video")];
    const others = (player) => players.filter((other) => other !== player && visible(other));

    for (const player of players) {
      const figure = player.closest("figure");
      const mark = figure.querySelector(".strip i");
      const known = () => {
        figure.querySelector(".duration").textContent = `${player.duration.toFixed(1)} s`;
        figure.dataset.size = `${player.videoWidth}x${player.videoHeight}`;
      };
      const unplayable = () => {
        figure.querySelector(".duration").textContent = "this browser cannot play H.264";
        figure.dataset.size = "none";
      };
      player.addEventListener("loadedmetadata", known);
      player.addEventListener("error", unplayable);
      // A video in the page itself may be read before this script is.
      if (player.readyState >= HTMLMediaElement.HAVE_METADATA) { known(); }
      if (player.error) { unplayable(); }
      const move = () => { mark.style.width = `${(100 * player.currentTime) / (player.duration || 1)}%`; };
      player.addEventListener("timeupdate", move);
      player.addEventListener("play", () => {
        if (!visible(player)) { return; }
        for (const other of others(player)) {
          if (other.paused) { moveTo(other, player.currentTime); other.play().catch(() => {}); }
        }
      });
      player.addEventListener("pause", () => {
        if (!visible(player) || player.ended) { return; }
        for (const other of others(player)) { other.pause(); }
      });
      player.addEventListener("seeking", () => {
        move();
        if (moved.delete(player) || !visible(player)) { return; }
        for (const other of others(player)) { moveTo(other, player.currentTime); }
      });
    }

    const buttons = [...compare.querySelectorAll("button[data-step]")];
    const versions = [...compare.querySelectorAll(".version")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        const before = versions.find((version) => !version.hidden).querySelector("video");
        const playing = !before.paused;
        for (const version of versions) { version.hidden = version.dataset.step !== button.dataset.step; }
        for (const other of buttons) { other.setAttribute("aria-pressed", String(other === button)); }
        const now = versions.find((version) => !version.hidden).querySelector("video");
        if (now === before) { return; }
        before.pause();
        moveTo(now, before.currentTime);
        if (playing) { now.play().catch(() => {}); }
      });
    }
  }
};
setUpPlayers(document);
