"""Tables, charts, style and script that the report of a construction has beside those of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

KINDS = {"kept": "kept", "lost": "left out for this figure", "other": "left out for something else"}
"""What becomes of a dialogue, as a class and in words."""
MAX_BINS = 24
WIDTH, HEIGHT = 240, 60


def funnel(steps: Mapping[str, str], lost: Mapping[str, int], asked: int) -> str:
    """A table of what came into each step, what it left out, and what remains.

    Args:
        steps: name -> what it does, in the order in which they ran.
        lost: name -> dialogues that it left out.
        asked: dialogues that there were at first.
    """
    rows, left = "", asked
    for name, about in steps.items():
        came, left = left, left - lost.get(name, 0)
        numbers = (str(came), f"<span class='bad'>{came - left}</span>" if came > left else "0", str(left))
        rows += _row(f"<code>{escape(name)}</code>", numbers, about, _meter(left, came - left, asked))
    return _table(("step", "came in", "left out", "remain"), rows)


def shares(heading: str, counts: Mapping[str, tuple[int, int]], classes: Mapping[str, str]) -> str:
    """A table of name -> (dialogues asked for, kept); some names have a class that colours them."""
    most = max((asked for asked, _ in counts.values()), default=1)
    rows = "".join(
        _row(
            f"<span class='named {classes.get(name, '')}'>{escape(name)}</span>",
            (str(asked), str(kept), f"{100 * kept / max(1, asked):.0f}\N{NO-BREAK SPACE}%"),
            "",
            _meter(kept, asked - kept, most),
        )
        for name, (asked, kept) in counts.items()
    )
    table = _table((heading, "asked for", "kept", ""), rows)
    return f"<section class='panel'><h3>By {heading} <span class='small'>{len(counts)}</span></h3>{table}</section>"


def _table(columns: Sequence[str], rows: str) -> str:
    head = "".join(f"<th scope='col'>{column}</th>" if column else "<td></td>" for column in columns)
    return (
        f"<div class='tall' tabindex='0' role='region' aria-label='By {columns[0]}'><table class='counts'>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(name: str, numbers: Sequence[str], about: str, meter: str) -> str:
    """Name and numbers; below them, across the whole width, what there is to say, and a bar."""
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    about = f"<span class='small'>{escape(about)}</span>" if about else ""
    return (
        f"<tr><th scope='row'>{name}</th>{cells}</tr><tr><td class='below' colspan='{len(numbers) + 1}'>{about}{meter}"
        "</td></tr>"
    )


def _meter(kept: int, lost: int, whole: int) -> str:
    parts = (("kept", kept), ("lost", lost))
    spans = "".join(f"<span class='{kind}' style='width:{100 * n / max(1, whole):.2f}%'></span>" for kind, n in parts)
    return f"<span class='meter' aria-hidden='true'>{spans}</span>"


def legend() -> str:
    """What the colours and patterns of the histograms mean; the pattern itself, which they share."""
    keys = "".join(f"<li><span class='swatch {kind}'></span>{words}</li>" for kind, words in KINDS.items())
    return (
        f"<ul class='legend small'>{keys}<li><span class='limit'></span>limit</li></ul>"
        "<svg class='defs' width='0' height='0' aria-hidden='true'><defs><pattern id='hatch' width='5' height='5' "
        "patternUnits='userSpaceOnUse' patternTransform='rotate(45)'><rect class='under' width='5' height='5'/>"
        "<rect class='over' width='2.4' height='5'/></pattern></defs></svg>"
    )


def histogram(name: str, values: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> str:
    """How often a figure had which value, by what became of the dialogue.

    Args:
        name: of the figure.
        values: one of KINDS -> the values.
        limits: `above` or `below` -> the value from which on a dialogue is left out.
    """
    everything = [value for group in values.values() for value in group]
    whole = all(value == int(value) for value in everything)
    # Bars of whole numbers are centred on them, so that a limit lies between two of them.
    shift = {"above": 0.5, "below": -0.5} if whole else {}
    lines = [limit + shift.get(side, 0.0) for side, limit in limits.items()]
    edges = _edges([*everything, *limits.values()], whole)
    counts = {kind: np.histogram(group, edges)[0] for kind, group in values.items()}
    scale = (HEIGHT - 2) / max(1, sum(counts.values()).max())
    width = WIDTH / (len(edges) - 1)
    bars = ""
    for number in range(len(edges) - 1):
        base = float(HEIGHT)
        for kind in KINDS:
            count = int(counts[kind][number])
            if not count:
                continue
            height = max(1.5, count * scale)  # one among thousands must still be seen
            base = max(0.0, base - height)
            bars += (
                f"<rect class='{kind}' x='{number * width:.2f}' y='{base:.2f}' width='{max(1.0, width - 1):.2f}' "
                f"height='{height:.2f}'><title>{edges[number]:.3g} to {edges[number + 1]:.3g}: {count} {KINDS[kind]}"
                "</title></rect>"
            )
    for line in lines:
        x = WIDTH * (line - edges[0]) / (edges[-1] - edges[0])
        bars += f"<line class='limit' x1='{x:.2f}' x2='{x:.2f}' y1='0' y2='{HEIGHT}'/>"
    facts = [f"{len(values[kind])} {words}" for kind, words in KINDS.items() if len(values[kind])]
    facts += [f"limit: {side} {limit:g}" for side, limit in limits.items()]
    facts += [f"median of those kept {np.median(values['kept']):.3g}"] if len(values["kept"]) else []
    ends = (edges[0] + 0.5, edges[-1] - 0.5) if whole else (edges[0], edges[-1])
    low, high = min(everything), max(everything)
    return (
        f"<figure class='chart panel'><figcaption><code>{escape(name)}</code></figcaption><svg viewBox='0 0 {WIDTH} "
        f"{HEIGHT}' preserveAspectRatio='none' role='img' aria-label='{escape(name)}: {low:.3g} to {high:.3g}; "
        f"{'; '.join(facts)}'>{bars}</svg><div class='axis small'><span>{ends[0]:.3g}</span>"
        f"<span>{ends[1]:.3g}</span></div><p class='small'>{' · '.join(facts)}</p></figure>"
    )


def _edges(values: Sequence[float], whole: bool) -> np.ndarray:
    """Where bins begin and end: from 0 where it isn't far, of whole numbers where the values are such."""
    low, high = min(values), max(values)
    if 0 <= low <= high / 2:
        low = 0.0
    if whole:
        step = math.ceil((high - low + 1) / MAX_BINS)
        return np.arange(math.floor(low) - 0.5, math.ceil(high) + 0.5 + step, step)
    return np.linspace(low, high if high > low else low + 1, MAX_BINS + 1)


STYLE = """
:root { --hatch: repeating-linear-gradient(45deg, var(--bad) 0 2px, transparent 2px 5px); }
code { font: .92em ui-monospace, "SFMono-Regular", "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.panel.wide { margin-top: .9rem; }
.counts { width: 100%; }
.counts td:not(.below), .counts thead th:not(:first-child) { text-align: right; padding-right: 0; padding-left: .9rem;
  white-space: nowrap; }
.counts tbody th { color: var(--ink); width: 99%; padding-bottom: 0; overflow-wrap: anywhere; }
.counts td.below { text-align: left; white-space: normal; padding: 0 0 .7rem; }
.counts thead th { font-size: .8rem; position: sticky; top: 0; background: var(--card); }
.tall { max-height: 24rem; overflow: auto; }
.wide .tall { max-height: none; }
.named { color: var(--tone, var(--ink)); font-weight: 600; }
.meter { display: flex; height: .55rem; margin-top: .25rem; border-radius: .28rem; overflow: hidden;
  background: var(--wash); }
.meter .kept, .swatch.kept { background: var(--head); }
.meter .lost, .swatch.lost { background: var(--hatch); box-shadow: inset 0 0 0 1px var(--bad); }
.swatch { display: inline-block; width: .85rem; height: .85rem; border-radius: .2rem; margin-right: .45rem;
  vertical-align: -.1rem; }
.swatch.other { box-shadow: inset 0 0 0 1px var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.25rem; list-style: none; margin: .4rem 0 .8rem; padding: 0; }
.legend .limit { display: inline-block; height: 1rem; border-left: 2px dashed var(--ink); margin-right: .5rem;
  vertical-align: -.15rem; }
.defs { position: absolute; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); gap: .9rem; }
.chart { margin: 0; padding: .9rem 1rem 1rem; }
.chart figcaption { font-size: .9rem; margin-bottom: .5rem; }
.chart svg { display: block; width: 100%; height: 4.5rem; border-bottom: 1px solid var(--soft); }
.chart .kept { fill: var(--head); } .chart .lost { fill: url(#hatch); stroke: var(--bad); }
.chart .other { fill: none; stroke: var(--soft); }
.chart rect { vector-effect: non-scaling-stroke; }
.chart .limit { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
#hatch .under { fill: var(--card); } #hatch .over { fill: var(--bad); }
.axis { display: flex; justify-content: space-between; margin: .1rem 0 .3rem; font-variant-numeric: tabular-nums; }

.picks { display: flex; flex-wrap: wrap; gap: .55rem 1.25rem; align-items: center; margin: .8rem 0 0; }
.picks fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; min-width: 0; }
.picks legend { float: left; margin-right: .6rem; padding: .3rem 0; }
.picks label { font-size: .88rem; }
.shown > h3 { font-size: 1.15rem; margin-top: 2rem; }
.shown > p { margin-bottom: 1rem; }
.pair > header h4 { flex: 1 1 16rem; font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
.pair > header p { flex: 1 0 100%; }
.step > h4 { font-size: 1rem; margin: 1.4rem 0 0; }
.step > .singles { margin-top: .6rem; }
.about { overflow-wrap: anywhere; }
.turn { margin-top: .5rem; padding-top: .7rem; border-top: 3px double var(--line); }
.heard { font-size: .84rem; color: var(--soft); }
.answer pre { margin: 0; padding: .6rem .7rem; max-height: 12rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--wash); border-radius: .35rem; font: .8rem/1.45 ui-monospace,
  "SFMono-Regular", "DejaVu Sans Mono", monospace; }
.answer details { margin-top: auto; padding-top: .5rem; font-size: .84rem; }
.answer summary { color: var(--soft); cursor: pointer; }
.answer details .facts { margin-top: .4rem; font-size: .8rem; grid-template-columns: minmax(0, auto) minmax(0, 1fr); }
.answer.single { border-radius: .8rem; }
"""

SCRIPT = """
const picks = document.querySelector(".picks");
function pick() {
  const ticked = name => new Set(all(`input[name=${name}]:checked`, picks).map(box => box.value));
  const emotions = ticked("emotion"), statuses = ticked("status"), cards = all(".answer");
  for (const card of cards) card.hidden = !(emotions.has(card.dataset.emotion) && statuses.has(card.dataset.status));
  for (const group of all(".pair, .step, .shown")) group.hidden = all(".answer", group).every(card => card.hidden);
  const count = cards.filter(card => !card.hidden).length;
  document.querySelector(".nothing").hidden = count > 0;
  document.querySelector("#count").textContent = `${count} of ${cards.length} shown here`;
}
if (picks) {
  picks.hidden = false;
  picks.addEventListener("change", pick);
  pick();
}
"""
