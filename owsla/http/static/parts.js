// Parts that several views share: tables, rows of connections and of events, notes.

import { el, deviceRoute, identifier, routeTo, visible } from "./dom.js";
import { ago, bytes, clock, duration, now, number, plural, utc } from "./format.js";

/** Return a time of day; its title is the complete time in UTC. */
export function time(at, fraction = false) {
  return el("time", { title: utc(at), datetime: at === null || at === undefined ? null : new Date(at).toISOString() }, clock(at, fraction));
}

/** Return the distance of a time from the present, which `tick` renews. */
export function since(at, format = ago) {
  const node = el("time", { class: "since", title: utc(at) }, format(at));
  if (at !== null && at !== undefined) {
    node.tickAt = at;
    node.tickFormat = format;
  }
  return node;
}

/** Renew all distances from the present below an element. */
export function tick(element) {
  for (const node of element.querySelectorAll("time.since")) {
    if (node.tickFormat !== undefined) {
      const text = node.tickFormat(node.tickAt);
      if (node.textContent !== text) node.textContent = text;
    }
  }
}

export function lasting(at) {
  return at === null || at === undefined ? "–" : duration(now() - at);
}

const PAUSED = {
  broker: "Lines cannot be published now: the broker is away, short of memory or disk, or refuses them.",
  share: "Its share of the window is unconfirmed: the broker confirms more slowly than the device sends.",
  rate: "It sends more than --max-rate allows.",
  draining: "The gateway stops, and reads no more lines.",
};

/** Describe what keeps a connection from going on: {text, title, warning}. An empty list: nothing. */
function conditions(connection) {
  const found = [];
  for (const why of connection.paused ?? []) {
    found.push({ text: `paused: ${why}`, title: PAUSED[why] ?? `Paused: ${why}`, warning: why !== "rate" });
  }
  if (connection.slow_since !== null && connection.slow_since !== undefined) {
    found.push({ text: `slow ${lasting(connection.slow_since)}`, title: "The device does not read: its socket takes no more.", warning: true });
  }
  if (connection.waiting) {
    found.push({ text: `${number(connection.waiting)} waiting`, title: `${plural(connection.waiting, "message")}, ${bytes(connection.waiting_bytes)}, to be written to the device`, warning: false });
  }
  if (connection.held) {
    found.push({ text: `${number(connection.held)} held`, title: "Messages that wait for a missing to_device_seq.", warning: true });
  }
  if (connection.closing) found.push({ text: "closing", title: `Closing: ${visible(connection.closing)}`, warning: true });
  return found;
}

export function chips(connection) {
  const found = conditions(connection);
  if (found.length === 0) return el("span", { class: "quiet" }, "ok");
  return found.map(({ text, title, warning }) => el("span", { class: warning ? "chip warn" : "chip", title }, text));
}

/** Return a note. Kinds: info, warn, bad. */
export function note(kind, ...content) {
  return el("p", { class: `note ${kind}`, role: kind === "bad" ? "alert" : null }, content);
}

/** Return a note on workers that did not answer, or null. */
export function missingNote(missing) {
  if (!missing?.length) return null;
  const names = missing.map((name) => visible(name)).join(", ");
  return note("warn", `${names} did not answer: what ${missing.length === 1 ? "it knows" : "they know"} is not shown.`);
}

/**
 * Return a table. `columns` are {head, cell(row), number, sort, priority, title}: with `priority` 2 or 3 a column is left out on
 * narrow screens. `sort` and `onSort` make the head a button.
 */
export function table({ columns, rows, caption, sort, onSort, empty = "None.", rowClass }) {
  if (rows.length === 0 && !onSort) return el("p", { class: "empty" }, empty);
  const head = (column) => {
    const descending = sort === `-${column.sort}`;
    const sorted = column.sort !== undefined && (descending || sort === column.sort);
    const label =
      column.sort === undefined || !onSort
        ? column.head
        : el("button", { type: "button", class: "sort", onclick: () => onSort(sorted && !descending ? `-${column.sort}` : sorted ? column.sort : column.first ?? column.sort) }, column.head, sorted ? el("span", { "aria-hidden": "true" }, descending ? " ↓" : " ↑") : null);
    return el("th", { scope: "col", class: classes(column), title: column.title, "aria-sort": sorted ? (descending ? "descending" : "ascending") : null }, label);
  };
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: "grid" },
      caption === undefined ? null : el("caption", { class: "unseen" }, caption),
      el("thead", null, el("tr", null, columns.map(head))),
      el(
        "tbody",
        null,
        rows.map((row) => el("tr", { class: rowClass?.(row) }, columns.map((column) => el("td", { class: classes(column) }, column.cell(row))))),
        rows.length === 0 ? el("tr", null, el("td", { colspan: columns.length, class: "empty" }, empty)) : null,
      ),
    ),
  );
}

function classes(column) {
  return [column.number ? "n" : "", column.priority ? `p${column.priority}` : "", column.class ?? ""].filter(Boolean).join(" ") || null;
}

/** Return the link to the view of a connection: its device id, or its connection id. */
export function connectionLink(connection) {
  const named = connection.device_id !== null && connection.device_id !== undefined && connection.device_id !== "";
  return el("a", { href: deviceRoute(connection), class: "device" }, identifier(named ? connection.device_id : connection.connection_id, { class: named ? "id" : "id mono" }));
}

/** Return the link to a connection id. */
export function connectionIdLink(id) {
  return id ? el("a", { href: routeTo(id), class: "mono" }, identifier(id)) : identifier(null);
}

export const CONNECTION_COLUMNS = [
  { head: "Device", sort: "device_id", cell: (row) => [connectionLink(row), el("small", { class: "narrow" }, el("bdi", { class: "mono" }, visible(row.peer ?? "")), " ", since(row.last_in))], class: "wide" },
  { head: "Address", sort: "peer", cell: (row) => el("span", { class: "mono" }, identifier(row.peer)), priority: 1 },
  { head: "Connection", sort: "connection_id", cell: (row) => connectionIdLink(row.connection_id), priority: 3 },
  { head: "Door", cell: (row) => visible(row.door ?? "–"), priority: 3 },
  { head: "Connected", sort: "since", first: "-since", cell: (row) => since(row.since, lasting), number: true, priority: 2 },
  { head: "Last line in", sort: "last_in", first: "-last_in", cell: (row) => since(row.last_in), number: true, priority: 1 },
  { head: "Lines in", sort: "lines_in", first: "-lines_in", cell: (row) => number(row.lines_in), number: true, priority: 2 },
  { head: "Lines out", sort: "lines_out", first: "-lines_out", cell: (row) => number(row.lines_out), number: true, priority: 2 },
  { head: "State", cell: chips },
];

const ID_FIELDS = ["device_id", "claimed_id", "connection_id", "target"];

/** Return the link to the device of an event, or null. */
function eventLink(event) {
  const fields = event.fields ?? {};
  const name = ID_FIELDS.find((one) => typeof fields[one] === "string" && fields[one] !== "");
  const id = name === undefined ? hostOf(fields.peer ?? "") : fields[name];
  if (id === "") return null;
  const href = name === "device_id" || name === "claimed_id" ? deviceRoute({ device_id: id, connection_id: fields.connection_id ?? id }) : routeTo(id);
  return el("a", { href, class: "device" }, identifier(id));
}

/** Return the address of a peer without its port. */
export function hostOf(peer) {
  const [, bracketed, plain] = /^\[([^\]]+)\]:\d+$|^([^:]+):\d+$/.exec(peer) ?? [];
  return bracketed ?? plain ?? peer;
}

const LONGEST_EVENT = 600;

/** Return the row of an event in a list. */
export function eventRow(event) {
  const where = [event.worker, event.node].filter(Boolean).map((text) => visible(text)).join(", ");
  return el(
    "li",
    { class: event.warning ? "event warning" : "event" },
    time(event.time),
    el("span", { class: "kind", title: where || null }, event.warning ? el("span", { class: "mark", role: "img", "aria-label": "warning" }, "⚠ ") : null, visible(event.event)),
    el("bdi", { class: "text" }, visible(event.text, LONGEST_EVENT), event.count > 1 ? el("span", { class: "quiet" }, ` (${plural(event.count, "time")} since ${clock(event.first)})`) : null),
    el("span", { class: "who" }, eventLink(event)),
  );
}

/** Return a list of events. */
export function eventList(events, empty, label) {
  if (events.length === 0) return el("p", { class: "empty" }, empty);
  return el("ol", { class: "events", "aria-label": label }, events.map(eventRow));
}

/** Return a section with a heading. */
export function section(title, aside, ...content) {
  return el("section", null, el("div", { class: "head" }, el("h2", null, title), aside), content);
}

/** Convert a mapping by name to a list of objects with a name. */
export function named(things) {
  return Object.entries(things ?? {}).map(([name, thing]) => ({ ...thing, name }));
}

/** Return a definition list. `pairs` are lists of a name, a value and perhaps properties. */
export function facts(pairs) {
  return el(
    "dl",
    { class: "facts" },
    pairs.map(([name, value, properties]) => el("div", properties, el("dt", null, name), el("dd", null, value))),
  );
}
