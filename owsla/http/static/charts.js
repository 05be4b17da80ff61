// Line charts in SVG, with the values under the pointer or under the cursor of the keyboard.

import { el, fill, setText, show, svg } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 132;
const LEFT = 46;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;
const COLOURS = 8;

/** Return a round number that is at least `value`. With `whole`, its half is a whole number, too: both are on the axis. */
function ceiling(value, whole) {
  if (!(value > 0)) return whole ? 2 : 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999 && !(whole && step % 2));
}

/**
 * A chart. `series` are {key, label}: names of values in a sample. `format` makes a text of a value, `tick` that of an axis.
 * `whole`: values are whole numbers.
 *
 * It is a slider for the keyboard: the arrows move through the samples, and a screen reader reads their values out.
 */
export class Chart {
  constructor({ title, series, format, tick = format, whole = false }) {
    this.title = title;
    this.series = series;
    this.format = format;
    this.tick = tick;
    this.whole = whole;
    this.index = null;
    this.lines = [];
    this.samples = [];
    this.legend = el("div", { class: "legend" });
    this.chooser = el("select", { "aria-label": `${title}: value`, hidden: true, onchange: () => this.update(...this.last) }, series.map(({ key, label }) => el("option", { value: key }, label)));
    this.svg = svg("svg", { "aria-hidden": "true", height: HEIGHT });
    this.tip = el("div", { class: "tip", hidden: true });
    this.plot = el(
      "div",
      {
        class: "plot",
        tabindex: "0",
        role: "slider",
        "aria-label": title,
        "aria-valuemin": "0",
        "aria-valuemax": "0",
        "aria-valuenow": "0",
        onpointermove: (event) => this.point(event),
        onpointerdown: (event) => this.point(event),
        onpointerleave: () => this.select(null),
        onblur: () => this.select(null),
        onkeydown: (event) => this.key(event),
      },
      this.svg,
      this.tip,
    );
    this.element = el("figure", { class: "chart" }, el("figcaption", null, el("h3", null, title), this.chooser, this.legend), this.plot);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  /** Show samples. `workers` are the names of those to be shown one by one; null shows the totals. */
  update(history, workers, end) {
    const { samples, step, span } = history;
    this.last = [history, workers, end];
    this.samples = samples;
    this.step = step;
    this.span = span;
    this.end = end;
    // A line for each worker, or one for each value of all together: both at once would be too many.
    show(this.chooser, workers !== null && this.series.length > 1);
    const chosen = this.chooser.value;
    this.lines =
      workers === null
        ? this.series.map(({ key, label }, which) => ({ label, style: `c${which}`, value: (sample) => sample[key] ?? null }))
        : workers.map((worker, which) => ({ label: worker, style: `c${which % COLOURS}`, value: (sample) => sample.workers?.[worker]?.[chosen] ?? null }));
    this.draw();
  }

  x(time) {
    return LEFT + ((time - (this.end - this.span)) / this.span) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return TOP + (1 - value / this.top) * (HEIGHT - TOP - BOTTOM);
  }

  draw() {
    const width = this.plot.clientWidth;
    if (width === 0 || this.end === undefined) return;
    this.width = width;
    const values = this.samples.flatMap((sample) => this.lines.map((line) => line.value(sample) ?? 0));
    this.top = ceiling(values.reduce((most, value) => Math.max(most, value), 0), this.whole);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.dots = this.lines.map((line) => svg("circle", { class: `dot ${line.style}`, r: 3 }));
    const paths = this.lines.map((line) => svg("path", { class: `line ${line.style}`, d: this.path(line) }));
    fill(this.svg, this.grid(width), paths.reverse(), this.cursor, this.dots);
    this.drawLegend();
    this.place();
  }

  grid(width) {
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(this.y(this.top * share)) + 0.5;
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      parts.push(svg("text", { class: "tick", x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, this.tick(this.top * share)));
    }
    const minutes = this.span / 60000;
    const every = (width < 420 ? 2 : 1) * (minutes > 10 ? 15 : 1);
    for (let back = 0; back <= minutes; back += every) {
      const x = Math.round(this.x(this.end - back * 60000)) + 0.5;
      if (back > 0) parts.push(svg("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
      const anchor = back === 0 ? "end" : back === minutes ? "start" : "middle";
      const text = back === 0 ? "now" : `−${back} min`;
      parts.push(svg("text", { class: "tick", x, y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    return parts;
  }

  /** Return the path of a line. It has gaps where samples are missing or a value is unknown. */
  path(line) {
    let path = "";
    let last = null;
    for (const sample of this.samples) {
      const value = line.value(sample);
      if (value === null || sample.time < this.end - this.span) {
        last = null;
        continue;
      }
      const joined = last !== null && sample.time - last < this.step * 2.5;
      path += `${joined ? "L" : "M"}${this.x(sample.time).toFixed(1)} ${this.y(value).toFixed(1)}${joined ? "" : "h.01"}`;
      last = sample.time;
    }
    return path;
  }

  drawLegend() {
    const sample = this.samples[this.index ?? this.samples.length - 1];
    const texts = this.lines.map((line) => this.format(sample === undefined ? null : line.value(sample)));
    if (this.legend.childElementCount !== this.lines.length || this.shown !== this.lines.map((line) => line.label).join()) {
      this.shown = this.lines.map((line) => line.label).join();
      fill(
        this.legend,
        this.lines.map((line) => el("span", { class: "key" }, el("i", { class: line.style }), el("span", null, line.label), el("b"))),
      );
    }
    [...this.legend.querySelectorAll("b")].forEach((node, number) => setText(node, texts[number]));
  }

  point(event) {
    const at = this.end - this.span + ((event.offsetX - LEFT) / (this.width - LEFT - RIGHT)) * this.span;
    let nearest = null;
    this.samples.forEach((sample, number) => {
      if (nearest === null || Math.abs(sample.time - at) < Math.abs(this.samples[nearest].time - at)) nearest = number;
    });
    this.select(nearest);
  }

  key(event) {
    const last = this.samples.length - 1;
    const from = this.index ?? last;
    const moves = { ArrowLeft: from - 1, ArrowRight: from + 1, PageUp: from - 10, PageDown: from + 10, Home: 0, End: last };
    if (event.key === "Escape" && this.index !== null) this.select(null);
    else if (event.key in moves) this.select(Math.max(0, Math.min(last, moves[event.key])));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  select(index) {
    this.index = index === null || this.samples.length === 0 ? null : index;
    // The chart moves on under the pointer; the chosen time stays.
    this.chosen = this.index === null ? null : this.samples[this.index].time;
    this.drawLegend();
    this.place();
  }

  /** Show the cursor and its values at the chosen time. */
  place() {
    if (this.chosen !== null && this.chosen !== undefined) {
      this.index = this.samples.findIndex((sample) => sample.time === this.chosen);
      if (this.index < 0) this.index = this.chosen = null;
    }
    const sample = this.index === null ? null : this.samples[this.index];
    this.cursor?.classList.toggle("off", sample === null);
    show(this.tip, sample !== null);
    this.plot.setAttribute("aria-valuemax", Math.max(0, this.samples.length - 1));
    this.plot.setAttribute("aria-valuenow", this.index ?? Math.max(0, this.samples.length - 1));
    const read = sample ?? this.samples.at(-1);
    this.plot.setAttribute("aria-valuetext", read === undefined ? "no data yet" : `${sample ? clock(read.time) : "now"}: ${this.texts(read).join(", ")}`);
    this.dots?.forEach((dot, number) => {
      const value = sample === null ? null : this.lines[number].value(sample);
      dot.classList.toggle("off", value === null);
      if (value === null) return;
      dot.setAttribute("cx", this.x(sample.time));
      dot.setAttribute("cy", this.y(value));
    });
    if (sample === null || this.cursor === undefined) return;
    const x = this.x(sample.time);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    fill(
      this.tip,
      el("div", { class: "when" }, clock(sample.time)),
      this.lines.map((line) =>
        el("div", { class: "key" }, el("i", { class: line.style }), el("span", null, line.label), el("b", null, this.format(line.value(sample)))),
      ),
    );
    const right = x < this.width / 2;
    this.tip.style.setProperty("left", right ? `${x + 10}px` : "auto");
    this.tip.style.setProperty("right", right ? "auto" : `${this.width - x + 10}px`);
  }

  texts(sample) {
    return this.lines.map((line) => `${line.label} ${this.format(line.value(sample))}`);
  }
}
