// A device: its connections, how its last ones ended, kick and trace.

import { ask, Poll, reason } from "./api.js";
import { announce, confirmed, el, fill, identifier, routeTo, show, visible, wellFormed } from "./dom.js";
import { bytes, clock, number, plural } from "./format.js";
import { chips, connectionIdLink, eventList, facts, hostOf, lasting, missingNote, note, section, since, tick, time } from "./parts.js";
import { TracePanel } from "./trace.js";

export function createDevice({ session }) {
  const heading = el("h1", { tabindex: "-1" });
  const about = el("div", { class: "about" });
  const result = el("div", { "aria-live": "polite" });
  const connections = el("div");
  const ends = el("div");
  const kickAll = el("button", { type: "button", class: "danger", onclick: () => kick(id, shown, true) }, "Kick all");
  const copy = el("button", { type: "button", onclick: () => copyId() }, "Copy id");
  const traceSlot = el("div");
  const actions = el("div", { class: "buttons" }, copy, kickAll);
  const element = el("div", null, el("div", { class: "head device-head" }, heading, actions), about, result, connections, traceSlot, ends);
  let id = null;
  let shown = [];
  let trace = null;
  let timer = null;

  async function copyId() {
    try {
      await navigator.clipboard.writeText(id);
      announce("Copied");
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy id"), 1500);
    } catch {
      fill(result, note("info", "The browser does not allow pages to copy here: select the id and copy it."));
    }
  }

  async function kick(target, matches, all) {
    const several = matches.length > 1;
    const who = several ? plural(matches.length, "connection") : visible(matches[0].device_id || matches[0].connection_id);
    const text = [
      several ? `Close ${plural(matches.length, "connection")}:` : `Close the connection of ${who} from ${visible(matches[0].peer)}?`,
      ...(several ? [matches.slice(0, 8).map((one) => `${visible(one.peer)}, ${visible(one.connection_id)}`).join("; ")] : []),
      "Lines that the gateway has read are still published. Most devices connect again at once.",
    ];
    if (!(await confirmed(several ? "Kick all connections?" : "Kick this device?", text, several ? "Kick all" : "Kick"))) return;
    try {
      const { closed } = await ask(`/devices/${encodeURIComponent(wellFormed(target))}`, { all }, { method: "DELETE" });
      fill(result, note("info", `Kicked: ${plural(closed.length, "connection")} closed.`));
    } catch (error) {
      fill(result, note("bad", `Not kicked: ${reason(error)}`));
    }
    poll.now();
  }

  const poll = new Poll(2000, async (current) => {
    try {
      const answer = await ask(`/devices/${encodeURIComponent(wellFormed(id))}`);
      if (current()) draw(answer);
    } catch (error) {
      if (!current()) return;
      if (error.status === 404) draw({ connections: [], ends: [], unknown: true });
      else fill(about, note("bad", reason(error)));
    }
  });

  function draw({ connections: found, total, ends: last, findings, missing, unknown }) {
    const before = shown.length;
    shown = found;
    about.className = found.length > 0 || unknown ? "about" : `note ${refused(last) ? "warn" : "info"}`;
    fill(about, found.length > 0 ? summary(found) : absence(last, unknown));
    const holder = focusKey();
    const hidden = total > found.length ? note("info", `${number(found.length)} of ${number(total)} connections are shown. `, el("a", { href: `#/search?q=${encodeURIComponent(wellFormed(id).slice(0, 256))}` }, "List all"), ".") : null;
    fill(connections, missingNote(missing), (findings ?? []).map((finding) => note("warn finding", visible(finding, 400))), hidden, found.map((one) => card(one)));
    if (holder) connections.querySelector(`[data-focus="${holder}"]`)?.focus();
    show(kickAll, found.length > 1 && !session.readOnly);
    fill(ends, unknown ? null : section("Last ends and refusals", null, eventList(last ?? [], "None is remembered.", "Last ends and refusals")));
    if (before > 0 && found.length === 0) announce("The device is not connected any more.");
  }

  function focusKey() {
    const key = connections.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    return key && /^[\w-]+$/.test(key) ? key : null;
  }

  function card(connection) {
    const key = String(connection.connection_id);
    return el(
      "article",
      { class: "card", "aria-label": `Connection ${key}` },
      el(
        "div",
        { class: "head" },
        el("h2", null, el("span", { class: "lamp on", "aria-hidden": "true" }), "Connected ", since(connection.since, lasting)),
        el("div", { class: "states" }, chips(connection)),
        session.readOnly ? null : el("button", { type: "button", class: "danger", "data-focus": key, onclick: () => kick(key, [connection], false) }, "Kick"),
      ),
      (connection.findings ?? []).map((finding) => note("warn finding", visible(finding, 400))),
      facts([
        ["Device id", identifier(connection.device_id)],
        ["Connection id", connectionIdLink(connection.connection_id), { class: "double" }],
        ["Address", el("a", { href: routeTo(hostOf(connection.peer ?? "")), class: "mono" }, identifier(connection.peer))],
        ["Since", time(connection.since)],
        ["Door", visible(connection.door ?? "–")],
        ["TLS", connection.tls || "none"],
        ["Node", [el("span", { class: "mono" }, visible(connection.node ?? "–")), connection.worker ? `, ${visible(connection.worker)}` : ""]],
        ["Lines in", [number(connection.lines_in), el("span", { class: "quiet" }, ` ${bytes(connection.bytes_in)}`)]],
        ["Lines out", [number(connection.lines_out), el("span", { class: "quiet" }, ` ${bytes(connection.bytes_out)}`)]],
        ["Last line in", since(connection.last_in)],
        ["Last line out", since(connection.last_out)],
        ["Waiting to be written", [number(connection.waiting), connection.waiting ? el("span", { class: "quiet" }, ` ${bytes(connection.waiting_bytes)}`) : null], { title: "Messages that wait for the socket of the device" }],
        ["Held", number(connection.held), { title: "Messages that wait for a missing to_device_seq" }],
      ]),
    );
  }

  return {
    element,
    get title() {
      return visible(id ?? "", 40);
    },
    show(route, changed) {
      if (route.id !== id) {
        id = route.id;
        trace?.close();
        shown = [];
        fill(heading, identifier(id));
        about.className = "about";
        fill(about, "Loading…");
        [result, connections, ends].forEach((node) => fill(node));
        trace = session.readOnly ? null : new TracePanel(id);
        fill(traceSlot, trace?.element);
        show(kickAll, false);
      }
      timer ??= setInterval(() => tick(element), 1000);
      poll.start();
      if (changed) heading.focus({ preventScroll: true });
    },
    hide() {
      poll.stop();
      clearInterval(timer);
      timer = null;
      trace?.close();
      id = null;
    },
  };
}

function summary(connections) {
  if (connections.length > 1) return `${number(connections.length)} connections.`;
  const [one] = connections;
  return [
    "Connected since ",
    clock(one.since),
    ` at the door ${visible(one.door ?? "?")} from `,
    identifier(one.peer),
    one.tls ? `, ${one.tls}.` : ", without TLS.",
  ];
}

/** Return whether the newest end is a refusal, or another event that an operator should look into. */
function refused(ends) {
  return ends?.length > 0 && (ends[0].warning || ends[0].event === "handshake-failed");
}

function absence(ends, unknown) {
  if (unknown) return ["Not connected, and no end of a connection with this id or address is remembered. ", el("a", { href: "#/search" }, "Search"), " for a part of it, or trace it from its next connection."];
  const [last] = ends ?? [];
  return last ? ["Not connected. The last end: ", since(last.time), ", ", el("bdi", null, visible(last.text, 300)), "."] : "Not connected.";
}
