"""Draw a chart for the report: plain SVG that a reader can point at, or walk through with the keyboard.

    chart (artefacts/chart.py) -> one SVG per panel, a legend of buttons, and a line that reads out one mark

The page needs no library and no network. Points of the paper are hollow, on dashed lines. Without JavaScript all
panels stand one below the other, and each mark still has its numbers as a tooltip of the browser.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from html import escape

import pandas as pd
from matplotlib.colors import to_hex
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from seerbench.artefacts import colors
from seerbench.artefacts.chart import LINEAR, LOG2, SYMLOG, Axis, Chart
from seerbench.artefacts.style import LINEAR_BELOW

WIDTH, HEIGHT = 640, 400  # of a panel in the units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 86, 14, 12, 62  # margins of the panel, in the same units
RADIUS = 5  # of a mark
HINT = "Point at a mark to read it. With the keyboard: left and right along a line, up and down between lines."
CSS = """
.chart { margin: 0 0 1rem; max-width: 52rem } .chart svg { display: block; width: 100%; background: #fff;
  border: 1px solid var(--line); border-radius: 6px } .chart text { font: 13px system-ui, sans-serif; fill: #333 }
.chart svg:focus-visible, .legend button:focus-visible { outline: 3px solid var(--link) }
.chart output { display: block; min-height: 3rem; padding: .4rem 0; font-size: .9rem }
.chart label { font-size: .9rem } .chart select { font: inherit; max-width: 100% }
.legend { list-style: none; padding: 0; margin: .4rem 0; display: flex; flex-wrap: wrap; gap: .2rem .4rem }
.legend button { font: inherit; font-size: .8rem; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: 4px; padding: .1rem .4rem; cursor: pointer; text-align: left }
.legend button[aria-pressed=false] { opacity: .45; text-decoration: line-through }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em }
.chart .dim { opacity: .15 } .chart .on .mark { stroke: #000; stroke-width: 2 }
@media (max-width: 600px) { .chart text { font-size: 21px } }
"""
SCRIPT = """
for (const chart of document.querySelectorAll('.chart')) {
  const svgs = [...chart.querySelectorAll('svg')], said = chart.querySelector('output'), hint = said.textContent;
  const choice = chart.querySelector('select'), hidden = new Set();
  let panel, point;
  const shown = () => [...panel.querySelectorAll('.line')].filter(line => !hidden.has(line.dataset.name));
  function read(next) {
    if (point) point.classList.remove('on');
    point = next;
    for (const line of panel.querySelectorAll('.line'))
      line.classList.toggle('dim', Boolean(point) && line !== point.parentNode);
    if (point) point.classList.add('on');
    said.textContent = point ? point.getAttribute('aria-label') : hint;
  }
  function show(place) {
    if (panel) read(null);
    svgs.forEach((svg, other) => svg.parentNode.hidden = other !== place);
    panel = svgs[place];
  }
  function nearest(event) {
    let best = null, least = 30;
    for (const line of shown()) for (const each of line.querySelectorAll('.point')) {
      const box = each.querySelector('.mark').getBoundingClientRect();
      const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (away < least) [best, least] = [each, away];
    }
    return best;
  }
  function walk(key) {
    const lines = shown();
    if (!lines.length) return;
    if (!point) return read(lines[0].querySelector('.point'));
    const marks = [...point.parentNode.querySelectorAll('.point')];
    const step = key === 'ArrowLeft' || key === 'ArrowUp' ? -1 : 1;
    if (key === 'ArrowLeft' || key === 'ArrowRight') {
      read(marks[(marks.indexOf(point) + step + marks.length) % marks.length]);
    } else {
      const line = lines[(lines.indexOf(point.parentNode) + step + lines.length) % lines.length];
      const others = [...line.querySelectorAll('.point')];
      read(others[Math.min(marks.indexOf(point), others.length - 1)]);
    }
  }
  for (const svg of svgs) {
    svg.addEventListener('pointermove', event => { const near = nearest(event); if (near) read(near); });
    svg.addEventListener('pointerdown', event => read(nearest(event)));
    svg.addEventListener('blur', () => read(null));
    svg.addEventListener('keydown', event => {
      if (event.key === 'Escape') read(null);
      if (!event.key.startsWith('Arrow')) return;
      event.preventDefault();
      walk(event.key);
    });
  }
  for (const button of chart.querySelectorAll('.legend button')) button.addEventListener('click', () => {
    const name = button.dataset.name, off = !hidden.delete(name);
    if (off) hidden.add(name);
    button.setAttribute('aria-pressed', String(!off));
    read(null);
    for (const line of chart.querySelectorAll('.line'))
      line.style.display = hidden.has(line.dataset.name) ? 'none' : '';
  });
  choice.closest('p').hidden = svgs.length < 2;
  for (const svg of svgs) svg.previousElementSibling.hidden = svgs.length > 1;
  choice.addEventListener('change', () => show(choice.selectedIndex));
  show(choice.selectedIndex);
}
"""


def html(chart: Chart, title: str) -> str:
    """Return a chart as an HTML figure, whose first panel is shown first. title: what it shows, for its labels."""
    panels = list(dict.fromkeys(chart.points.panel))
    inks = _inks(chart.points)
    options = "".join(f"<option>{escape(panel)}</option>" for panel in panels)
    buttons = "".join(
        f'<li><button type="button" aria-pressed="true" data-name="{escape(name)}">'
        f'<i style="background:{ink}"></i>{escape(name)}</button></li>'
        for name, ink in inks.items()
    )
    return (
        f'<figure class="chart" aria-label="{escape(title)}"><p hidden><label>Shown: <select>{options}</select>'
        f"</label></p>{''.join(_panel(chart, panel, title, inks) for panel in panels)}"
        f'<output aria-live="polite">{escape(HINT)}</output>'
        f'<ul class="legend">{buttons}</ul><figcaption class="label">{escape(chart.how)} A name in the legend '
        "hides its line.</figcaption></figure>"
    )


def _inks(points: pd.DataFrame) -> dict[str, str]:
    """Return name of a line -> its color, in the order of every legend.

    Lines of one method differ in shade; those of the paper, which are dashed, do not count among this run's.
    """
    lines = points.drop_duplicates("name").sort_values("name")
    lines = lines.assign(rank=lines.method.map(colors.rank), paper=lines.source == "paper")
    inks: dict[str, str] = {}
    for (_, method, _), group in lines.groupby(["rank", "method", "paper"]):
        base = colors.color(method)
        tints = [base] if len(group) == 1 else map(to_hex, colors.shades(base, len(group)))
        inks |= dict(zip(group["name"], tints))
    return inks


def _panel(chart: Chart, panel: str, title: str, inks: dict[str, str]) -> str:
    """Return one panel as SVG: axes, then one group per line with its marks."""
    points = chart.points[chart.points.panel == panel]
    # Over all panels, so that two panels can be compared.
    x = _Scale(chart.x, chart.points[["x", "x_low", "x_high"]], LEFT, WIDTH - RIGHT)
    y = _Scale(chart.y, chart.points[["y", "low", "high"]], HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y)]
    for name, line in points.groupby("name", sort=False):
        line = line.sort_values("x", kind="stable")
        color, dash = inks[str(name)], ' stroke-dasharray="5 4"' if line.source.iloc[0] == "paper" else ""
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in zip(line.x, line.y))
        marks = "".join(_point(chart, point, x, y, color) for _, point in line.iterrows())
        parts.append(
            f'<g class="line" data-name="{escape(str(name))}"><polyline points="{path}" fill="none" '
            f'stroke="{color}" stroke-width="1.5"{dash}/>{marks}</g>'
        )
    label = f"{title}, {panel}. {len(points)} marks. {HINT}"
    return (
        f'<div><p class="label">{escape(panel)}</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="group" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></div>'
    )


def _point(chart: Chart, point: pd.Series, x: _Scale, y: _Scale, color: str) -> str:
    """Return one mark with its two intervals and its numbers in words."""
    numbers = (
        point.note,
        chart.x.text(point.x, point.x_low, point.x_high),
        chart.y.text(point.y, point.low, point.high),
    )
    fill = "#fff" if point.source == "paper" else color
    text = escape(f"{point['name']}: {'; '.join(part for part in numbers if part)}")
    px, py = x(point.x), y(point.y)
    bars = ""
    if not math.isnan(point.x_low):
        bars += f'<path d="M{x(point.x_low):.1f} {py:.1f}H{x(point.x_high):.1f}" stroke="{color}"/>'
    if not math.isnan(point.low):
        bars += f'<path d="M{px:.1f} {y(point.low):.1f}V{y(point.high):.1f}" stroke="{color}"/>'
    return (
        f'<g class="point" role="img" aria-label="{text}"><title>{text}</title>{bars}'
        f'<path class="mark" d="{_mark(colors.marker(point.method))}" fill="{fill}" stroke="{color}" '
        f'transform="translate({px:.1f} {py:.1f})"/></g>'
    )


@functools.cache
def _mark(marker: str) -> str:
    """Return matplotlib's marker as an SVG path around the origin."""
    style = MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    size = RADIUS / max(abs(path.vertices).max(), 1e-9)
    outlines = path.to_polygons(closed_only=False)
    return "".join(
        "M" + "L".join(f"{size * px:.1f} {-size * py:.1f}" for px, py in outline) + "Z" for outline in outlines
    )


class _Scale:
    """Turn numbers of an axis into places on the page; values outside of the axis are drawn at its end."""

    def __init__(self, axis: Axis, values: pd.DataFrame, start: float, end: float) -> None:
        self.axis, self.start, self.end = axis, start, end
        numbers = values.to_numpy(float).ravel()
        numbers = [number for number in numbers if not math.isnan(number)]
        if axis.scale not in (LINEAR, SYMLOG):
            numbers = [number for number in numbers if number > 0]
        low, high = (self._transform(number) for number in (min(numbers), max(numbers)))
        room = 0.04 * (high - low) or 0.5
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        share = (self._transform(value) - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0), 1) * (self.end - self.start)

    def _transform(self, value: float) -> float:
        if self.axis.scale == LINEAR:
            return value
        if self.axis.scale == SYMLOG:
            size = abs(value) / LINEAR_BELOW
            return math.copysign(0.5 * size if size <= 1 else 0.5 + math.log10(size), value)
        return math.log10(value) if value > 0 else -math.inf

    def ticks(self) -> list[float]:
        """Return the numbers that the axis is marked at."""
        if self.axis.scale == LINEAR:
            found: Sequence[float] = MaxNLocator(6).tick_values(self.low, self.high)
        elif self.axis.scale == LOG2:
            found = [2.0**power for power in range(-20, 30)]
        else:
            found = [sign * 10.0**power for power in range(-2, 6) for sign in (-1, 0, 1)]
        return sorted({tick for tick in found if self.low <= self._transform(tick) <= self.high})


def _axes(x: _Scale, y: _Scale) -> list[str]:
    """Return grid lines, ticks and titles. The lines of a speed-up of 1 and of a loss of 0 are dark."""
    parts = []
    for tick in x.ticks():
        place, ink = x(tick), "#555" if x.axis.scale == LOG2 and tick == 1 else "#e5e5e5"
        parts.append(f'<path d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{ink}"/>')
        parts.append(_text(place, HEIGHT - BOTTOM + 22, x.axis.tick(tick), "middle"))
    for tick in y.ticks():
        level = 1 if y.axis.scale == LOG2 else 0
        place, ink = y(tick), "#555" if tick == level else "#e5e5e5"
        parts.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke="{ink}"/>')
        parts.append(_text(LEFT - 6, place + 5, y.axis.tick(tick), "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x.axis.title, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(16, middle, y.axis.title, "middle", f' transform="rotate(-90 16 {middle})"'))
    return parts


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
