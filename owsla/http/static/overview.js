// The first view: numbers of the moment, charts, doors, and the last warnings.

import { ask, Poll, reason } from "./api.js";
import { Chart } from "./charts.js";
import { add, el, fill, setText, show, visible } from "./dom.js";
import { milliseconds, now, number, percent, plural, rate } from "./format.js";
import { eventList, missingNote, named, note, section, table } from "./parts.js";

const CHARTS = [
  { title: "Devices", series: [{ key: "devices", label: "connected" }], format: number, whole: true },
  { title: "Connections a second", series: [{ key: "connects", label: "connects" }, { key: "handshakes", label: "handshakes" }, { key: "failed_handshakes", label: "failed" }], format: rate },
  { title: "Lines a second", series: [{ key: "lines_in", label: "in" }, { key: "lines_out", label: "out" }], format: rate },
  { title: "Publish to confirm", series: [{ key: "p50", label: "p50" }, { key: "p99", label: "p99" }], format: milliseconds },
  { title: "Unconfirmed lines", series: [{ key: "unconfirmed", label: "lines" }], format: number, whole: true },
  { title: "Reactor lateness", series: [{ key: "lateness", label: "worst" }], format: milliseconds },
];

const NUMBERS = {
  handshaking: "Handshaking",
  paused: "Paused",
  undeliverable: "Undeliverable",
};

export function createOverview({ live, state }) {
  const tiles = el("div", { class: "tiles" });
  const charts = CHARTS.map((chart) => new Chart(chart));
  const trouble = el("div");
  const below = el("div", { class: "columns" });
  const doors = el("div");
  const workerTable = el("div");
  const warnings = el("div");
  const options = { span: "5m", workers: false };
  const controls = el("div", { class: "segments" });
  const spans = choice("Span of the charts", [["5m", "5 minutes"], ["1h", "1 hour"]], options.span, (value) => change("span", value));
  const byWorker = choice("Charts of", [["", "Total"], ["1", "By worker"]], "", (value) => change("workers", value === "1"));
  add(controls, spans, byWorker);
  add(below, el("div", null, doors, workerTable), warnings);
  const element = el(
    "div",
    null,
    trouble,
    tiles,
    section("Charts", controls, el("div", { class: "charts" }, charts.map((chart) => chart.element))),
    below,
  );

  let stopListening = null;

  function change(name, value) {
    options[name] = value;
    draw();
  }

  function draw() {
    const series = live.samples(options.span);
    const workers = workerNames(live.newest);
    show(byWorker, workers.length > 0);
    const shown = options.workers && workers.length > 0 ? workers : null;
    const end = live.status === "open" && live.newest !== null ? live.newest.time : now();
    for (const chart of charts) chart.update(series, shown, end);
    drawTiles(tiles, live.newest, state.latest);
    if (state.latest !== null) fill(workerTable, workerSection(state.latest, live.newest));
  }

  function drawState(latest, error) {
    fill(trouble, error === null || latest === null ? null : note("warn", `The state of the gateway is old: ${reason(error)}`), missingNote(latest?.missing));
    if (latest === null) return;
    drawTiles(tiles, live.newest, latest);
    fill(doors, doorSection(latest));
    fill(workerTable, workerSection(latest, live.newest));
  }

  const poll = new Poll(10000, async (current) => {
    try {
      const { events } = await ask("/events", { warnings: true, limit: 8 });
      if (!current()) return;
      fill(warnings, section("Last warnings", el("a", { href: "#/events?warnings=1" }, "All events"), eventList(events.reverse(), "No warnings are remembered.", "Last warnings")));
    } catch (error) {
      if (current()) fill(warnings, section("Last warnings", null, note("warn", reason(error))));
    }
  });

  return {
    element,
    title: "Overview",
    show() {
      stopListening = [live.listen(draw), state.listen(drawState)];
      poll.start();
      draw();
      drawState(state.latest, state.error);
    },
    hide() {
      poll.stop();
      stopListening?.forEach((stop) => stop());
      stopListening = null;
    },
  };
}

function workerNames(sample) {
  return Object.keys(sample?.workers ?? {});
}

/** Return a group of buttons of which one is pressed. */
function choice(label, values, chosen, changed) {
  const group = el("div", { class: "choice", role: "group", "aria-label": label });
  const buttons = values.map(([value, text]) =>
    el(
      "button",
      {
        type: "button",
        "aria-pressed": String(value === chosen),
        onclick: (event) => {
          buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === event.currentTarget)));
          changed(value);
        },
      },
      text,
    ),
  );
  return add(group, buttons);
}

function drawTiles(tiles, sample, state) {
  const numbers = state?.numbers ?? {};
  const values = [
    ["Devices", number(sample?.devices ?? numbers.open), numbers.max_connections ? `of ${number(numbers.max_connections)}` : ""],
    ["Lines in", rate(sample?.lines_in), "a second", numbers.lines_in === undefined ? "" : `${number(numbers.lines_in)} since the start`],
    ["Lines out", rate(sample?.lines_out), "a second", numbers.lines_out === undefined ? "" : `${number(numbers.lines_out)} since the start`],
    ["Unconfirmed", number(sample?.unconfirmed ?? numbers.unconfirmed), numbers.window ? `of ${number(numbers.window)}` : "lines"],
    ["Confirm", milliseconds(sample?.p99), "p99"],
    ["CPU", percent(sample?.cpu), "of a core"],
    ...Object.entries(NUMBERS)
      .filter(([name]) => numbers[name] !== undefined)
      .map(([name, label]) => [label, number(numbers[name]), ""]),
    ["By name", number(state?.names?.identified), "device ids"],
  ];
  if (tiles.childElementCount !== values.length) {
    fill(tiles, values.map(() => el("div", { class: "tile" }, el("span", { class: "label" }), el("span", { class: "value" }), el("span", { class: "unit" }))));
  }
  values.forEach(([label, value, unit, title], index) => {
    const [first, second, third] = tiles.children[index].children;
    setText(first, label);
    setText(second, value);
    setText(third, unit);
    if (title) tiles.children[index].title = title;
  });
}

/** Describe a condition that some of the processes of a door meet. */
function share(count, processes, all, none) {
  if (count > 0 && count < processes) return `${all} in ${count} of ${processes} workers`;
  return count > 0 ? all : none;
}

export function doorSection(state) {
  const doors = named(state.doors);
  return section(
    "Doors",
    null,
    table({
      caption: "Doors",
      rows: doors,
      columns: [
        { head: "Door", cell: (door) => [visible(door.name), door.address ? el("small", null, visible(door.address)) : null] },
        { head: "Devices", cell: (door) => [number(door.connections), el("span", { class: "quiet" }, ` of ${number(door.max_connections)}`)], number: true },
        { head: "Lines in", cell: (door) => number(door.lines_in), number: true, priority: 3 },
        { head: "Unconfirmed", cell: (door) => [number(door.unconfirmed), el("span", { class: "quiet" }, ` of ${number(door.window)}`)], number: true, priority: 1 },
        {
          head: "State",
          class: "wrap",
          cell: (door) => [
            el("span", { class: door.accepting === door.processes ? "chip good" : "chip warn" }, share(door.accepting, door.processes, "accepting", "not accepting")),
            el("span", { class: door.taking === door.processes ? "chip good" : "chip warn" }, share(door.taking, door.processes, "takes lines", "waits")),
          ],
        },
      ],
    }),
  );
}

/** Return the workers as the state has them, with their values in the newest sample. */
export function workerSection(state, sample) {
  if (!state.workers) return null;
  const value = (worker, name) => sample?.workers?.[worker.name]?.[name];
  return section(
    "Workers",
    null,
    table({
      caption: "Workers",
      rows: state.workers,
      columns: [
        { head: "Worker", cell: (worker) => [visible(worker.name), worker.node ? el("small", { class: "mono" }, visible(worker.node)) : null] },
        { head: "Devices", cell: (worker) => number(value(worker, "devices") ?? worker.numbers?.open), number: true },
        { head: "Lines in /s", cell: (worker) => rate(value(worker, "lines_in")), number: true, priority: 1 },
        { head: "Lines out /s", cell: (worker) => rate(value(worker, "lines_out")), number: true, priority: 2 },
        { head: "p99", cell: (worker) => milliseconds(value(worker, "p99")), number: true, priority: 2 },
        { head: "Late", cell: (worker) => milliseconds(value(worker, "lateness")), number: true, priority: 3 },
        { head: "CPU", cell: (worker) => percent(value(worker, "cpu")), number: true, priority: 1 },
        {
          head: "State",
          class: "wrap",
          cell: (worker) => [workerState(worker), worker.restarts ? el("span", { class: "chip warn" }, plural(worker.restarts, "restart")) : null],
        },
      ],
    }),
  );
}

function workerState(worker) {
  if (worker.ready && worker.state === "ready") return el("span", { class: "chip good" }, "ready");
  const state = worker.state === "ready" ? "not ready" : visible(worker.state);
  const why = worker.ready === null ? "no answer" : failedChecks(worker);
  return el("span", { class: "chip warn" }, why ? `${state}: ${why}` : state);
}

const CHECKS = {
  broker_connected: "the broker is not connected",
  listener_accepting: "no devices are accepted",
  not_draining: "shutting down",
  worker_ready: "no worker is ready",
};

/** Describe the failed checks of the gateway or of a worker. */
function failedChecks({ checks }) {
  if (!checks) return "";
  return Object.entries(checks)
    .filter(([, passes]) => !passes)
    .map(([name]) => CHECKS[name] ?? visible(name))
    .join(", ");
}
