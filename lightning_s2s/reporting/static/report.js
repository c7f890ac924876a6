"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- clips: one plays at a time; a queue plays the clips of a pair in turn ---

let playing = null, queue = [];

function stop() {
  if (!playing) return;
  const audio = playing.parentElement.querySelector("audio");
  audio.pause();
  audio.currentTime = 0;
  playing.classList.remove("playing");
  playing.setAttribute("aria-pressed", "false");
  playing = null;
}

function play(button) {
  stop();
  const audio = button.parentElement.querySelector("audio");
  playing = button;
  button.classList.add("playing");
  button.setAttribute("aria-pressed", "true");
  const move = () => {
    if (playing !== button) return;
    button.style.setProperty("--at", audio.duration ? audio.currentTime / audio.duration : 0);
    requestAnimationFrame(move);
  };
  audio.onended = () => {
    if (playing !== button) return;
    stop();
    if (queue.length) play(queue.shift());
  };
  audio.play().then(move, () => { queue = []; stop(); });
}

for (const button of all(".play")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    queue = [];
    button === playing ? stop() : play(button);
  });
}
for (const button of all(".hear")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const clips = button.dataset.clips === "both" ? ".play" : ".play.question";
    queue = all(".card", button.closest(".pair")).filter(card => !card.hidden).flatMap(card => all(clips, card));
    if (queue.length) play(queue.shift());
  });
}
document.addEventListener("keydown", event => { if (event.key === "Escape") { queue = []; stop(); } });

// --- filters: check boxes by name, `only` by conditions such as "heard=no", and the order of `.sorted` lists ---

const filters = document.querySelector(".filters");

function sortKey(block, by) {
  const cards = block.matches(".card") ? [block] : all(".card", block);
  const shown = cards.filter(card => !card.hidden);
  const values = (shown.length ? shown : cards).map(card => card.dataset[by] || "");
  if (by === "audio" || by === "rtf") return -Math.max(...values.map(Number));
  return by === "order" ? Math.min(...values.map(Number)) : values[0];
}

function update() {
  const ticked = {};
  for (const box of all("input[type=checkbox]", filters)) {
    ticked[box.name] ??= new Set();
    if (box.checked) ticked[box.name].add(box.value);
  }
  const only = filters.querySelector("#only")?.value || "";
  const conditions = only.split(" ").filter(Boolean).map(condition => condition.split("="));
  const cards = all(".card");
  for (const card of cards) {
    const fits = Object.entries(ticked).every(([name, values]) => values.has(card.dataset[name]))
      && conditions.every(([name, value]) => card.dataset[name] === value);
    card.hidden = !fits;
  }
  for (const group of all(".pair, .group")) group.hidden = all(".card", group).every(card => card.hidden);
  const by = filters.querySelector("#by")?.value;
  for (const list of by ? all(".sorted") : []) {
    const blocks = [...list.children].map(block => [sortKey(block, by), sortKey(block, "order"), block]);
    blocks.sort((a, b) => (a[0] > b[0]) - (a[0] < b[0]) || a[1] - b[1]);
    list.append(...blocks.map(([, , block]) => block));
  }
  const count = cards.filter(card => !card.hidden).length;
  document.querySelector(".nothing").hidden = count > 0;
  document.querySelector("#count").textContent = `${count} of ${cards.length} shown`;
}

if (filters) {
  filters.hidden = false;
  filters.addEventListener("change", update);
  update();
}
