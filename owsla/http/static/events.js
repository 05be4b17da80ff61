// Events as they happen, with filters.

import { ask, reason, Stream } from "./api.js";
import { el, fill, setText, show, visible } from "./dom.js";
import { number, plural } from "./format.js";
import { eventRow, missingNote, note, section } from "./parts.js";

/** Events that are shown, and that are kept while the list stands still. */
const SHOWN = 500;
/** Milliseconds between two changes of the list. */
const PACE = 250;

/** The view of events. Its state is in the route: kind (several, with commas), warnings, q. */
export function createEvents({ navigate }) {
  const text = el("input", { type: "search", placeholder: "Text in the event", "aria-label": "Text in the event", autocomplete: "off", spellcheck: "false", maxlength: "256", oninput: () => later() });
  const warnings = el("input", { type: "checkbox", onchange: () => change({ warnings: warnings.checked ? "1" : "" }) });
  const kindSelect = el("select", { "aria-label": "Kind of event", onchange: () => chooseKind() });
  const kindChips = el("span", { class: "chips" });
  const pauseButton = el("button", { type: "button", "aria-pressed": "false", onclick: () => pause(!paused) }, "Pause");
  const status = el("span", { class: "quiet", role: "status" });
  const trouble = el("div");
  const list = el("ol", { class: "events", role: "log", "aria-live": "off", "aria-label": "Events, the newest first" });
  const empty = el("p", { class: "empty" });
  const filters = el("div", { class: "filters" }, text, kindSelect, kindChips, el("label", null, warnings, " warnings"), pauseButton, status);
  const element = el("div", null, section("Events", null, filters, trouble, empty, list));
  const kinds = new Set();
  let parameters = {};
  let stream = null;
  let waiting = [];
  let paused = false;
  let timer = null;
  let typing = null;
  let number_ = 0;
  let lost = 0;

  const chosen = () => (parameters.kind ?? "").split(",").filter(Boolean);

  function change(changes) {
    navigate("events", { ...parameters, ...changes }, true);
  }

  function later() {
    clearTimeout(typing);
    typing = setTimeout(() => change({ q: text.value.trim() }), 300);
  }

  function chooseKind() {
    const kind = kindSelect.value;
    if (kind) change({ kind: [...new Set([...chosen(), kind])].join(",") });
  }

  function drawKinds() {
    const selected = chosen();
    const free = [...kinds].filter((kind) => !selected.includes(kind)).sort();
    if (document.activeElement !== kindSelect) {
      fill(kindSelect, el("option", { value: "" }, selected.length ? "Another kind…" : "All kinds"), free.map((kind) => el("option", { value: kind }, visible(kind))));
    }
    fill(
      kindChips,
      selected.map((kind) =>
        el("button", { type: "button", class: "chip", "aria-label": `Remove the filter ${kind}`, onclick: () => change({ kind: selected.filter((one) => one !== kind).join(",") }) }, `${visible(kind)} ×`),
      ),
    );
  }

  function pause(on) {
    paused = on;
    pauseButton.setAttribute("aria-pressed", String(on));
    setText(pauseButton, on ? "Go on" : "Pause");
    draw();
  }

  function draw() {
    if (!paused && waiting.length > 0) {
      list.prepend(...waiting.reverse().map(eventRow));
      waiting = [];
      while (list.childElementCount > SHOWN) list.lastChild.remove();
    }
    show(empty, list.childElementCount === 0);
    const notes = [];
    if (paused) notes.push(waiting.length >= SHOWN ? `paused, more than ${number(SHOWN)} new` : `paused, ${number(waiting.length)} new`);
    if (lost > 0) notes.push(`${plural(lost, "event")} lost`);
    setText(status, notes.join(", "));
  }

  function take(event) {
    if (!kinds.has(event.event)) {
      kinds.add(event.event);
      drawKinds();
    }
    waiting.push(event);
    if (waiting.length > SHOWN) waiting.shift();
  }

  async function load() {
    const mine = (number_ += 1);
    stream?.close();
    stream = null;
    const filter = { kind: chosen(), query: parameters.q, warnings: parameters.warnings === "1" };
    setText(empty, "Loading…");
    let answer;
    try {
      answer = await ask("/events", { ...filter, limit: SHOWN });
    } catch (error) {
      if (mine === number_) fill(trouble, note("bad", reason(error), " ", el("button", { type: "button", onclick: () => load() }, "Try again")));
      return;
    }
    if (mine !== number_) return;
    fill(trouble, missingNote(answer.missing));
    fill(list);
    waiting = [];
    lost = 0;
    const before = paused;
    paused = false;
    answer.events.forEach(take);
    draw();
    paused = before;
    setText(empty, "No event that is remembered matches. New ones appear here.");
    draw();
    stream = new Stream(
      "/events",
      { ...filter, after: answer.next },
      {
        message: (name, value) => {
          if (name === "event") take(value);
          else if (name === "lost") lost += value.lost;
        },
        state: (state, error) => fill(trouble, state === "broken" || state === "ended" ? note("warn", `New events do not arrive: ${error ? reason(error) : "the gateway ended the stream."}`) : missingNote(answer.missing)),
      },
    );
  }

  return {
    element,
    title: "Events",
    show(route, _, first) {
      const same = !first && ["kind", "q", "warnings"].every((name) => (route[name] ?? "") === (parameters[name] ?? ""));
      parameters = route;
      if (document.activeElement !== text) text.value = route.q ?? "";
      warnings.checked = route.warnings === "1";
      chosen().forEach((kind) => kinds.add(kind));
      drawKinds();
      timer ??= setInterval(draw, PACE);
      if (!same || stream === null) load();
    },
    hide() {
      number_ += 1;
      stream?.close();
      stream = null;
      clearInterval(timer);
      clearTimeout(typing);
      timer = null;
    },
    togglePause: () => pause(!paused),
  };
}
