// The devices that talk most, and those that are slowest.

import { ask, Poll, reason } from "./api.js";
import { el, fill, identifier } from "./dom.js";
import { bytes, duration, number, rate } from "./format.js";
import { chips, connectionLink, lasting, missingNote, note, section, since, table } from "./parts.js";

export function createTop() {
  const talkers = el("div");
  const slowest = el("div");
  const trouble = el("div");
  const about = el("span", { class: "quiet" });
  const element = el("div", null, trouble, section("Top talkers", about, talkers), section("Slowest", null, slowest));

  const perSecond = (value) => (value === null || value === undefined ? "–" : `${bytes(value)}/s`);

  const poll = new Poll(2000, async (current) => {
    let answer;
    try {
      answer = await ask("/top", { limit: 20 });
    } catch (error) {
      if (current()) fill(trouble, note("bad", reason(error)));
      return;
    }
    if (!current()) return;
    fill(trouble, missingNote(answer.missing));
    about.textContent = answer.interval ? `rates over the last ${duration(answer.interval)}` : "rates are measured while this page is open";
    const focused = element.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    fill(
      talkers,
      table({
        caption: "Top talkers",
        rows: answer.talkers,
        empty: answer.interval ? "No device sends or receives lines." : "Measuring…",
        rowClass: () => "go",
        columns: [
          { head: "Device", cell: connectionLink, class: "wide" },
          { head: "Lines in /s", cell: (row) => rate(row.lines_in_rate), number: true },
          { head: "Lines out /s", cell: (row) => rate(row.lines_out_rate), number: true },
          { head: "Bytes in", cell: (row) => perSecond(row.bytes_in_rate), number: true, priority: 1 },
          { head: "Bytes out", cell: (row) => perSecond(row.bytes_out_rate), number: true, priority: 2 },
          { head: "Address", cell: (row) => el("span", { class: "mono" }, identifier(row.peer)), priority: 2 },
          { head: "State", cell: chips, priority: 1 },
        ],
      }),
    );
    fill(
      slowest,
      table({
        caption: "Slowest devices",
        rows: answer.slowest,
        empty: "Every device reads what it is sent.",
        rowClass: () => "go",
        columns: [
          { head: "Device", cell: connectionLink, class: "wide" },
          { head: "Slow for", cell: (row) => since(row.slow_since, lasting), number: true },
          { head: "Waiting", cell: (row) => number(row.waiting), number: true },
          { head: "Size", cell: (row) => bytes(row.waiting_bytes), number: true, priority: 1 },
          { head: "Last line out", cell: (row) => since(row.last_out), number: true, priority: 2 },
          { head: "Address", cell: (row) => el("span", { class: "mono" }, identifier(row.peer)), priority: 2 },
          { head: "State", cell: chips, priority: 1 },
        ],
      }),
    );
    if (focused) [...element.querySelectorAll("a.device")].find((link) => link.getAttribute("href") === focused)?.focus();
  });

  element.addEventListener("click", (event) => {
    const row = event.target.closest("tr.go");
    if (row && !event.target.closest("a") && String(getSelection()) === "") row.querySelector("a.device")?.click();
  });

  return { element, title: "Top", show: () => poll.start(), hide: () => poll.stop() };
}
