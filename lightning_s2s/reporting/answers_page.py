"""The style and the script of the report; kept in Python so that every kind of installation carries them."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fafaf8; --card: #fff; --ink: #1d2129; --soft: #59606d; --line: #e0e1e5; --wash: #f1f1f3; --focus: #2457d6;
  --good: #14713f; --bad: #b3261e; --mel: none; --head: #2457d6;
  --neutral: #5b6472; --happy: #96640a; --sad: #2560b8; --angry: #b3352b; --other: #7a3fa0;
  --stage-0: #44618f; --stage-1: #2f8f8b; --stage-2: #7ba342; --stage-3: #dfa32c; --stage-4: #cf6440;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161b; --card: #1c1f26; --ink: #e8eaee; --soft: #a3aab8; --line: #31353f; --wash: #252932;
    --focus: #8fb0ff; --good: #6fd19b; --bad: #ff9087; --mel: invert(1); --head: #8fb0ff;
    --neutral: #b1b9c7; --happy: #edbb5c; --sad: #8bb8ff; --angry: #ff9a8d; --other: #d2a4f0;
    --stage-0: #6f8fc4; --stage-1: #45b0ab; --stage-2: #93bf55; --stage-3: #e8b548; --stage-4: #e07f5c;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 5rem; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 3rem 0 .25rem; }
h3 { font-size: 1.05rem; margin: 0; }
.bar + section h2, main > section h2 { margin-top: 1.75rem; }
p { margin: 0; }
.lead { max-width: 46rem; color: var(--soft); }
.small { font-size: .84rem; color: var(--soft); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; border-radius: 4px; }
.skip { position: absolute; left: -999rem; }
.skip:focus { position: static; }
.hidden-text { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
[hidden] { display: none !important; }

.figures { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: .9rem;
  margin: 1.75rem 0 0; padding: 0; list-style: none; }
.figures li, .pair, .answer.single, .panel { background: var(--card); border: 1px solid var(--line);
  border-radius: .8rem; }
.figures li { padding: 1rem 1.1rem; display: flex; flex-direction: column; }
.figures strong { font-size: 1.9rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.figures .name { font-size: .92rem; line-height: 1.35; margin-bottom: .5rem; min-height: 2.7em; }
.figures .small { line-height: 1.4; margin-top: .2rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.verdict { font-weight: 600; }

.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .9rem;
  margin-top: .9rem; align-items: stretch; }
.panel { padding: 1.1rem 1.25rem 1.25rem; min-width: 0; }
.panel h3 { margin-bottom: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: left; }
td, th { padding: .22rem .9rem .22rem 0; vertical-align: top; }
td.number, th.number { text-align: right; }
.matrix td { text-align: center; min-width: 3.4rem; padding: .4rem .5rem; border: 2px solid var(--card);
  border-radius: .4rem;
  background: color-mix(in srgb, var(--tone, var(--head)) calc(var(--share) * 42%), var(--wash)); }
.matrix td.miss { --tone: var(--bad); } .matrix td.hit { --tone: var(--good); font-weight: 650; }
.matrix th { white-space: nowrap; padding: .4rem .6rem .4rem 0; }
.matrix thead th { text-align: center; padding-right: 0; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: 0;
  font-size: .88rem; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.curves { display: flex; flex-wrap: wrap; gap: .6rem 1.25rem; margin-top: .8rem; }
.curves figure { margin: 0; } .curves svg { display: block; }

.timeline { display: flex; height: .62rem; border-radius: .31rem; overflow: hidden; background: var(--wash); }
.timeline span { display: block; min-width: 0; }
.big table { width: 100%; } .big td:last-child, .big th:last-child { padding-right: 0; }
.big .timeline { height: 1.3rem; border-radius: .4rem; margin-bottom: .8rem; }
.s0 { background: var(--stage-0); } .s1 { background: var(--stage-1); } .s2 { background: var(--stage-2); }
.s3 { background: var(--stage-3); } .s4 { background: var(--stage-4); }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; margin-right: .45rem; }

.bar { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: .55rem 1.25rem; align-items: center;
  margin: 1rem -1.5rem 1rem; padding: .7rem 1.5rem; background: var(--paper); border-bottom: 1px solid var(--line); }
.bar fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; min-width: 0; }
.bar legend { float: left; margin-right: .6rem; padding: .3rem 0; }
.bar label { font-size: .88rem; }
.chip { display: inline-flex; align-items: center; border: 1px solid var(--line); border-radius: 99px;
  padding: .2rem .8rem; cursor: pointer; background: var(--card); color: var(--tone, var(--ink)); min-height: 2rem; }
.chip input { position: absolute; opacity: 0; pointer-events: none; }
.chip:has(:checked) { border-color: currentcolor; background: color-mix(in srgb, currentcolor 12%, var(--card)); }
.chip:not(:has(:checked)) { text-decoration: line-through; opacity: .7; }
.chip:has(:focus-visible) { outline: 3px solid var(--focus); outline-offset: 2px; }
select, .hear { font: inherit; font-size: .88rem; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; padding: .3rem .6rem; min-height: 2rem; max-width: 100%; }
.hear { cursor: pointer; white-space: nowrap; }
.hear:hover, .play:hover .knob { border-color: var(--head); }

.pair { margin-bottom: 1rem; overflow: hidden; }
.pair > header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; padding: .85rem 1.25rem;
  border-bottom: 1px solid var(--line); }
.pair > header h3 { flex: 1 1 16rem; }
.pair h3 small { font-weight: 400; color: var(--soft); font-size: .84rem; margin-left: .5rem; white-space: nowrap; }
.columns { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 1px; }
.columns .answer { outline: 1px solid var(--line); }
.singles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18.5rem), 1fr)); gap: 1rem; }
.answer { display: flex; flex-direction: column; gap: .5rem; padding: 1rem 1.25rem 1.1rem; min-width: 0;
  background: var(--card); overflow-wrap: anywhere; }
.tone-neutral { --tone: var(--neutral); } .tone-happy { --tone: var(--happy); } .tone-sad { --tone: var(--sad); }
.tone-angry { --tone: var(--angry); } .tone-other { --tone: var(--other); }
.tag { display: inline-block; font-size: .84rem; font-weight: 600; color: var(--tone); padding: .05rem .6rem;
  border-radius: 99px; background: color-mix(in srgb, var(--tone) 14%, var(--card)); }
.line { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: .2rem .6rem;
  font-size: .84rem; }
.answer .words { font-weight: 600; }
.reply { margin-top: .35rem; padding-top: .7rem; border-top: 1px solid var(--line); }
.reply q { quotes: none; font-size: .98rem; }
.measured { margin-top: auto; padding-top: .5rem; font-size: .8rem; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.measured .timeline { margin-bottom: .35rem; }
.clip audio { width: 100%; }
.js .clip audio { display: none; }
.play { display: grid; grid-template-columns: 2.25rem minmax(0, 1fr) 2.6rem; gap: .6rem; align-items: center;
  width: 100%; border: 0; padding: .1rem 0; background: none; color: inherit; font: inherit; text-align: left;
  cursor: pointer; }
.knob { width: 2.25rem; height: 2.25rem; border-radius: 50%; border: 1px solid var(--line); background: var(--wash);
  display: grid; place-items: center; }
.knob::before { content: ""; border-left: .72rem solid currentcolor; border-block: .42rem solid transparent;
  margin-left: .18rem; }
.playing .knob { background: var(--head); border-color: var(--head); color: var(--card); }
.playing .knob::before { border: 0; width: .72rem; height: .72rem; margin: 0; background: currentcolor; }
.track { position: relative; display: block; height: 3rem; width: var(--length); background: var(--wash);
  border-radius: .35rem; overflow: hidden; }
.track img { position: absolute; inset: 0; width: 100%; height: 100%; filter: var(--mel); opacity: .85;
  display: block; }
.track::after { content: ""; position: absolute; inset: 0 auto 0 0; width: calc(var(--at, 0) * 100%);
  background: color-mix(in srgb, var(--head) 24%, transparent); border-right: 2px solid var(--head); opacity: 0; }
.playing .track::after { opacity: 1; }
.length { font-size: .8rem; color: var(--soft); text-align: right; font-variant-numeric: tabular-nums; }
.nothing { padding: 2rem 0; color: var(--soft); }
@media (max-width: 68rem) {
  .columns { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures { grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
}
@media (max-width: 40rem) {
  .columns { grid-template-columns: minmax(0, 1fr); }
  body { padding: 1.5rem 1rem 4rem; }
  .bar { position: static; margin-inline: -1rem; padding-inline: 1rem; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; }
  .figures li { padding: .8rem .85rem; } .figures strong { font-size: 1.5rem; }
  .pair > header, .answer { padding-inline: 1rem; }
  .panel { padding-inline: 1rem; }
}
@media print { .bar, .hear { display: none; } .pair, .answer, .panel { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
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
  audio.onended = () => { if (playing === button) { stop(); if (queue.length) play(queue.shift()); } };
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
    const answers = all(".answer", button.closest(".pair")).filter(answer => !answer.hidden);
    queue = answers.flatMap(answer => all(clips, answer));
    if (queue.length) play(queue.shift());
  });
}
document.addEventListener("keydown", event => { if (event.key === "Escape") { queue = []; stop(); } });

const bar = document.querySelector(".bar");
function keyOf(block, by) {
  const cards = block.matches(".answer") ? [block] : all(".answer", block);
  const shown = cards.filter(card => !card.hidden);
  const values = (shown.length ? shown : cards).map(card => card.dataset[by] || "");
  if (by === "audio" || by === "rtf") return -Math.max(...values.map(value => parseFloat(value) || 0));
  return by === "order" ? Math.min(...values.map(Number)) : values[0];
}
function update() {
  const wanted = new Set(all("input[name=emotion]:checked", bar).map(box => box.value));
  const only = bar.querySelector("#only").value, by = bar.querySelector("#by").value;
  let count = 0;
  const cards = all(".answer");
  for (const card of cards) {
    const fine = { all: true, unheard: card.dataset.heard === "no", unfit: card.dataset.fits === "no",
                   good: card.dataset.heard === "yes" && card.dataset.fits === "yes" }[only];
    card.hidden = !(wanted.has(card.dataset.emotion) && fine);
    count += !card.hidden;
  }
  for (const pair of all(".pair")) pair.hidden = all(".answer", pair).every(card => card.hidden);
  for (const list of all(".sorted")) {
    const blocks = [...list.children].map(block => [keyOf(block, by), keyOf(block, "order"), block]);
    blocks.sort((a, b) => (a[0] > b[0]) - (a[0] < b[0]) || a[1] - b[1]);
    for (const [, , block] of blocks) list.append(block);
    const none = [...list.children].every(block => block.hidden);
    list.closest("section").hidden = none;
  }
  document.querySelector(".nothing").hidden = count > 0;
  document.querySelector("#count").textContent = `${count} of ${cards.length} answers`;
}
if (bar) {
  bar.hidden = false;
  bar.addEventListener("change", update);
  update();
}
"""
