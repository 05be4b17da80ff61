// Connected devices, and ends and refusals that match a search.

import { ask, Poll, reason } from "./api.js";
import { el, fill, show } from "./dom.js";
import { number, plural } from "./format.js";
import { CONNECTION_COLUMNS, eventList, missingNote, note, section, table, tick } from "./parts.js";

const PAGE = 50;
const MOST = 1000;
const NEWEST = "-since";
const STATES = ["paused", "slow", "held", "closing"];

/** Return 0 if the text that is searched for is an id of a connection, 1 if it is in its device id, and 2 otherwise. */
function rank(row, text) {
  if (row.device_id === text || row.connection_id === text) return 0;
  return row.device_id?.toLowerCase().includes(text.toLowerCase()) ? 1 : 2;
}

/** Put the best matches first. `exact` are connections with exactly this id, which may be on another page. */
function ranked(answer, exact, text) {
  const ids = new Set(exact.map((row) => row.connection_id));
  const rows = [...exact, ...answer.devices.filter((row) => !ids.has(row.connection_id))];
  return { ...answer, devices: rows.sort((one, other) => rank(one, text) - rank(other, text)) };
}

/** The view of a search. Its state is in the route: q, door, state, sort. */
export function createDevices({ navigate, state }) {
  const connected = el("div");
  const ended = el("div");
  const doorSelect = el("select", { "aria-label": "Door", onchange: () => change({ door: doorSelect.value }) });
  const stateSelect = el("select", { "aria-label": "State", onchange: () => change({ state: stateSelect.value }) }, el("option", { value: "" }, "Any state"), STATES.map((one) => el("option", { value: one }, one)));
  const count = el("span", { class: "quiet", role: "status" });
  const filters = el("div", { class: "filters" }, doorSelect, stateSelect, count);
  const more = el("button", { type: "button", onclick: () => loadMore() }, "Show more");
  const element = el("div", { onkeydown: (event) => keys(event) }, section("Connected devices", filters, connected, el("div", { class: "more" }, more)), ended);
  let parameters = {};
  let limit = PAGE;
  let only = null;

  function change(changes) {
    navigate("search", { ...parameters, ...changes });
  }

  function drawDoors() {
    const names = Object.keys(state.latest?.doors ?? {});
    const shown = [...new Set([...names, ...(parameters.door ? [parameters.door] : [])])];
    if ([...doorSelect.options].slice(1).map((option) => option.value).join("\n") !== shown.join("\n")) {
      fill(doorSelect, el("option", { value: "" }, "Any door"), shown.map((name) => el("option", { value: name }, name)));
    }
    doorSelect.value = parameters.door ?? "";
    show(doorSelect, shown.length > 1);
  }

  function loadMore() {
    limit = Math.min(limit + 4 * PAGE, MOST);
    poll.now();
  }

  const poll = new Poll(10000, async (current) => {
    const { q, door, state: wanted, sort } = parameters;
    const withEnds = !door && !wanted;
    try {
      const [devices, ends] = await Promise.all([
        ask("/devices", { query: q, door, state: wanted, sort: sort ?? NEWEST, limit }),
        withEnds ? ask("/ends", { query: q, limit: 20 }).catch((error) => ({ ends: [], error })) : { ends: [] },
      ]);
      const exact = q && devices.next ? await ask(`/devices/${encodeURIComponent(q)}`).catch(() => null) : null;
      if (!current()) return;
      draw(q && !sort ? ranked(devices, exact?.connections ?? [], q) : devices, ends);
    } catch (error) {
      if (current()) fill(connected, note("bad", reason(error)));
    }
  });

  function draw({ devices, total, next, missing }, ends) {
    const { q, sort } = parameters;
    const focused = element.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const best = q ? devices.filter((row) => rank(row, q) === 0) : [];
    only = best.length === 1 ? best[0] : devices.length === 1 ? devices[0] : null;
    count.textContent = devices.length < total ? `${number(devices.length)} of ${number(total)}` : plural(total, "connection");
    const empty = q ? "No connected device has this in its id, connection id or address." : "No device is connected.";
    fill(connected, missingNote(missing), table({ columns: CONNECTION_COLUMNS, rows: devices, caption: "Connected devices", sort: sort ?? NEWEST, onSort: (value) => change({ sort: value }), empty, rowClass: () => "go" }));
    show(more, next !== null && next !== undefined && limit < MOST);
    const list = ends.error ? note("warn", reason(ends.error)) : eventList(ends.ends, q ? "No end or refusal that is remembered matches." : "None is remembered.", "Recent ends and refusals");
    fill(ended, section("Recent ends and refusals", null, missingNote(ends.missing), list));
    show(ended, !parameters.door && !parameters.state);
    if (focused !== null) links().find((link) => link.getAttribute("href") === focused)?.focus();
  }

  function links() {
    return [...element.querySelectorAll("tbody a.device, .events a.device")];
  }

  function keys(event) {
    if (!["ArrowDown", "ArrowUp"].includes(event.key) || event.target.tagName === "SELECT") return;
    const all = links();
    const at = all.indexOf(document.activeElement);
    const to = at + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    if (to < 0) document.getElementById("search").focus();
    else all[Math.min(to, all.length - 1)]?.focus();
  }

  element.addEventListener("click", (event) => {
    const row = event.target.closest("tr.go");
    if (row && !event.target.closest("a") && String(getSelection()) === "") row.querySelector("a.device")?.click();
  });

  const ticking = () => tick(element);
  let timer = null;
  let stop = null;

  return {
    element,
    title: "Devices",
    async show(route) {
      if (route.q !== parameters.q) limit = PAGE;
      parameters = route;
      stateSelect.value = parameters.state ?? "";
      drawDoors();
      stop ??= state.listen(drawDoors);
      timer ??= setInterval(ticking, 1000);
      await poll.start();
    },
    hide() {
      poll.stop();
      clearInterval(timer);
      stop?.();
      timer = stop = null;
    },
    /** Return the only connection that matches, or null. */
    onlyMatch: () => only,
    focusFirst: () => links()[0]?.focus(),
  };
}
