// The trace of a device: lines both ways as they happen, for some minutes.

import { reason, Stream } from "./api.js";
import { announce, el, fill, show, visible, wellFormed } from "./dom.js";
import { bytes, clock, number } from "./format.js";
import { note, section, time } from "./parts.js";

/** Records that are shown; the oldest are left out. */
const SHOWN = 500;
/** Records that are kept for the file. */
const KEPT = 20000;

const KINDS = {
  in: { mark: "→", label: "from the device" },
  out: { mark: "←", label: "to the device" },
  ack: { mark: "⇠", label: "acknowledgement to the device" },
  event: { mark: "•", label: "event" },
};

/** A panel that starts, shows and stops the trace of an id. It goes on while the tab is hidden, so that nothing is missed. */
export class TracePanel {
  constructor(id) {
    this.id = id;
    this.stream = null;
    this.records = [];
    this.counts = { in: 0, out: 0 };
    this.minutes = el("select", { "aria-label": "Minutes" }, [1, 5, 15, 60].map((value) => el("option", { value, selected: value === 5 }, `${value} min`)));
    this.bodies = el("input", { type: "checkbox" });
    this.startButton = el("button", { type: "button", class: "primary", onclick: () => this.start() }, "Start trace");
    this.stopButton = el("button", { type: "button", hidden: true, onclick: () => this.stop("Stopped.") }, "Stop trace");
    this.saveButton = el("button", { type: "button", hidden: true, onclick: () => this.save() }, "Save");
    this.status = el("span", { class: "quiet", role: "status" });
    this.list = el("ol", { class: "trace", "aria-label": "Trace", tabindex: "0", hidden: true });
    this.element = section(
      "Trace",
      el("div", { class: "filters" }, this.status, this.minutes, el("label", null, this.bodies, " bodies"), this.startButton, this.stopButton, this.saveButton),
      this.list,
    );
  }

  start() {
    this.close();
    this.records = [];
    this.counts = { in: 0, out: 0 };
    fill(this.list);
    show(this.list, true);
    this.running(true);
    this.ending = null;
    this.say("Waiting for lines…");
    this.stream = new Stream(
      `/trace/${encodeURIComponent(wellFormed(this.id))}`,
      { minutes: this.minutes.value, bodies: this.bodies.checked ? "1" : "0" },
      {
        once: true,
        whenHidden: true,
        message: (name, value) => this.message(name, value),
        state: (state, error) => this.changed(state, error),
      },
    );
  }

  stop(why) {
    this.close();
    this.running(false);
    this.say(`${why} ${this.total()}`);
  }

  /** End the stream: the gateway ends the trace. */
  close() {
    this.stream?.close();
    this.stream = null;
  }

  running(running) {
    show(this.startButton, !running);
    show(this.stopButton, running);
    show(this.saveButton, this.records.length > 0);
    this.minutes.disabled = this.bodies.disabled = running;
  }

  changed(state, error) {
    if (state === "broken") this.say(`${reason(error)} Trying again…`);
    else if (state === "ended") {
      this.stream = null;
      this.running(false);
      if (error) fill(this.list, el("li", null, note("bad", reason(error))));
      this.say(error ? "Not traced." : `Over: ${visible(this.ending ?? "the gateway ended it")}. ${this.total()}`);
      announce(this.status.textContent);
    } else if (state === "open" && this.records.length === 0) this.say("Waiting for lines…");
  }

  message(name, value) {
    const records = name === "record" ? [value] : [];
    if (name === "end") this.ending = value.text;
    const atEnd = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 20;
    for (const record of records) this.add(record);
    if (name === "dropped") this.list.append(el("li", { class: "lost" }, `${number(value.dropped)} records were dropped: the device was faster than this page.`));
    while (this.list.childElementCount > SHOWN) this.list.firstChild.remove();
    if (records.length > 0) {
      show(this.saveButton, true);
      this.say(this.total());
    }
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }

  add(record) {
    this.records.push(record);
    if (this.records.length > KEPT) this.records.shift();
    if (record.kind in this.counts) this.counts[record.kind] += 1;
    const kind = KINDS[record.kind] ?? KINDS.event;
    this.list.append(
      el(
        "li",
        { class: `record is-${record.kind in KINDS ? record.kind : "event"}` },
        time(record.time, true),
        el("span", { class: "mark", role: "img", "aria-label": kind.label, title: kind.label }, kind.mark),
        el("span", { class: "size" }, record.size === null || record.size === undefined ? "" : bytes(record.size)),
        el("span", { class: "seq" }, record.seq === null || record.seq === undefined ? "" : `#${number(record.seq)}`),
        body(record),
      ),
    );
  }

  total() {
    return `${number(this.counts.in)} in, ${number(this.counts.out)} out.`;
  }

  say(text) {
    this.status.textContent = text;
  }

  /** Save the records as a file: a JSON object a line. */
  save() {
    const text = this.records.map((record) => `${JSON.stringify(record)}\n`).join("");
    const url = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
    const name = String(this.id).replace(/[^\w.-]/g, "_").slice(0, 60);
    el("a", { href: url, download: `trace-${name}-${clock(Date.now()).replaceAll(":", "")}.ndjson` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}

const LONGEST_BODY = 2000;

function body(record) {
  if (record.kind === "event" || record.kind === "ack") return el("bdi", { class: "text" }, visible(record.text ?? record.body ?? "acknowledged", LONGEST_BODY));
  const cut = record.cut ? el("span", { class: "quiet" }, " (cut)") : null;
  if (typeof record.body === "string") return el("bdi", { class: "text mono" }, visible(record.body, LONGEST_BODY), cut);
  if (typeof record.body_base64 === "string") return el("span", { class: "text mono", title: "Not printable: in hexadecimal" }, hexadecimal(record.body_base64), cut);
  if (typeof record.text === "string") return el("bdi", { class: "text quiet" }, visible(record.text, LONGEST_BODY));
  return el("span", { class: "text quiet" }, record.kind === "in" ? "line" : "message");
}

function hexadecimal(base64) {
  const data = atob(base64);
  const shown = [...data.slice(0, 200)].map((character) => character.charCodeAt(0).toString(16).padStart(2, "0")).join(" ");
  return data.length > 200 ? `${shown} …` : shown;
}
