// The parts of the gateway: broker connections, certificates, doors, workers, traces and the supervision tree.

import { reason } from "./api.js";
import { el, fill, routeTo, identifier, visible } from "./dom.js";
import { date, duration, number, plural, utc } from "./format.js";
import { doorSection, workerSection } from "./overview.js";
import { facts, lasting, missingNote, note, section, since, table, time } from "./parts.js";

/** Days before the end of a certificate at which it is marked. */
const SOON = 30;
const URGENT = 7;

export function createSystem({ live, state, session }) {
  const trouble = el("div");
  const body = el("div", { class: "columns" });
  const tree = el("div");
  const element = el("div", null, trouble, body, tree);
  const workerTable = el("div");
  const closed = new Set();
  let stop = null;

  function draw(latest, error) {
    fill(trouble, error ? note("warn", `This is old: ${reason(error)}`) : null, missingNote(latest?.missing));
    if (latest === null) return;
    fill(
      body,
      el("div", null, brokerSection(latest), certificateSection(latest), nameSection(latest)),
      el("div", null, doorSection(latest), workerTable, traceSection(latest), versionSection(session)),
    );
    fill(tree, treeSection(latest.tree));
    drawWorkers();
  }

  function drawWorkers() {
    if (state.latest !== null) fill(workerTable, workerSection(state.latest, live.newest));
  }

  function treeSection(root) {
    if (!root) return null;
    return section("Supervision tree", el("a", { href: "tree", class: "quiet" }, "as JSON"), el("ul", { class: "tree" }, branch(root, "")));
  }

  function branch(node, path) {
    const here = `${path}/${node.id}`;
    const line = treeLine(node);
    if (!node.children?.length) return el("li", null, el("div", { class: "leaf" }, line));
    const details = el(
      "details",
      { open: !closed.has(here), ontoggle: () => (details.open ? closed.delete(here) : closed.add(here)) },
      el("summary", null, line),
      el("ul", null, node.children.map((child) => branch(child, here))),
    );
    return el("li", null, details);
  }

  return {
    element,
    title: "System",
    show() {
      stop ??= [state.listen(draw), live.listen(drawWorkers)];
      draw(state.latest, state.error);
    },
    hide() {
      stop?.forEach((each) => each());
      stop = null;
    },
  };
}

function treeLine(node) {
  const good = node.state === "running" || node.state === "planned";
  return [
    el("span", { class: good ? "lamp on" : "lamp off", "aria-hidden": "true" }),
    el("b", null, visible(node.id)),
    el("span", { class: good ? "quiet" : "chip warn" }, visible(node.state ?? "")),
    node.count === undefined ? null : el("span", { class: "quiet" }, plural(node.count, "child").replace("childs", "children")),
    node.strategy ? el("span", { class: "quiet p2" }, visible(node.strategy.replaceAll("_", " "))) : null,
    node.uptime === null || node.uptime === undefined ? null : el("span", { class: "quiet p1" }, `for ${duration(node.uptime * 1000)}`),
    node.restarts ? el("span", { class: "chip warn" }, plural(node.restarts, "restart")) : null,
    node.failures ? el("span", { class: "chip warn" }, `${number(node.failures)} failed`) : null,
    node.failure ? el("bdi", { class: "quiet" }, `last: ${visible(node.failure, 200)}`) : null,
  ];
}

function brokerSection(state) {
  const rows = state.broker_connections;
  return section(
    "Broker connections",
    null,
    table({
      caption: "Broker connections",
      rows,
      empty: "None is known.",
      columns: [
        { head: "Role", cell: (row) => [visible(row.role), row.worker ? el("small", null, visible(row.worker)) : null] },
        { head: "Address", cell: (row) => el("span", { class: "mono" }, identifier(row.address)) },
        { head: "State", cell: (row) => el("span", { class: row.state === "up" ? "chip good" : "chip warn" }, visible(row.state)) },
        { head: "For", cell: (row) => since(row.since, lasting), number: true, priority: 1 },
        { head: "Last fault", cell: (row) => fault(row.last_fault), class: "wide", priority: 1 },
      ],
    }),
  );
}

function fault(last) {
  if (!last) return el("span", { class: "quiet" }, "–");
  return [el("bdi", null, visible(last.text, 300)), el("small", null, time(last.time))];
}

const CERTIFICATES = {
  server: "devices",
  "client-ca": "authority of devices",
  crl: "revocation list",
  "ocsp-response": "OCSP response",
  "broker-cert": "broker",
  "broker-ca": "authority of the broker",
};

function certificateSection(state) {
  const kind = (row) => (row.days === null ? "" : row.days < URGENT ? "chip bad" : row.days < SOON ? "chip warn" : "chip good");
  return section(
    "Certificates",
    null,
    table({
      caption: "Certificates",
      rows: state.certificates,
      empty: "None.",
      columns: [
        { head: "For", cell: (row) => [visible(CERTIFICATES[row.kind] ?? row.kind), row.door ? el("small", null, `door ${visible(row.door)}`) : null] },
        {
          head: "Subject",
          cell: (row) => [
            el("bdi", null, visible(row.subject ?? "–")),
            row.file ? el("small", { class: "mono" }, visible(row.file)) : null,
            row.fault ? el("span", { class: "chip warn" }, visible(row.fault, 300)) : null,
          ],
          class: "wide",
        },
        { head: "Expires", cell: (row) => el("time", { title: utc(row.not_after) }, date(row.not_after)), number: true, priority: 1 },
        { head: "Days", cell: (row) => el("span", { class: kind(row) }, number(row.days === null ? null : Math.floor(row.days))), number: true },
      ],
    }),
  );
}

function traceSection(state) {
  const rows = state.traces ?? [];
  if (rows.length === 0) return null;
  return section(
    "Traces",
    null,
    table({
      caption: "Traces",
      rows,
      columns: [
        { head: "Device", cell: (row) => el("a", { href: routeTo(row.target) }, identifier(row.target)), class: "wide" },
        { head: "By", cell: (row) => el("bdi", null, visible(row.by ?? "–")), priority: 1 },
        { head: "Until", cell: (row) => time(row.until), number: true },
        { head: "Bodies", cell: (row) => (row.bodies ? "yes" : "no"), priority: 2 },
      ],
    }),
  );
}

const NAMES = {
  identified: "Device ids connected",
  remembered: "Devices of other nodes remembered",
  answered: "Lookups answered",
  unanswered: "Lookups without an answer",
  waiting: "Messages waiting for a lookup",
  spreading: "Messages being handed over to many",
};

/** Return the numbers about devices that are addressed by name. */
function nameSection({ names }) {
  const states = Object.entries(names.broadcast).map(([state, count]) => `${visible(state)} (${number(count)})`);
  return section("Devices by name", null, el("div", { class: "card" }, facts([...Object.entries(NAMES).map(([name, label]) => [label, number(names[name])]), ["Exchange of all nodes", states.join(", ") || "–"]])));
}

function versionSection(session) {
  return section(
    "Gateway",
    null,
    el("p", { class: "quiet" }, `Owsla ${visible(session.version)}, ${session.who}. `, session.readOnly ? "This token may only read." : "You may kick and trace devices."),
    el("p", { class: "links" }, ["metrics", "healthz", "readyz", "tree"].map((name) => el("a", { href: name }, `/${name}`)), el("a", { href: "api/v1/openapi.json" }, "API")),
  );
}
