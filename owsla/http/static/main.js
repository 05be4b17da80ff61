// The page: finds out whether there is an API, routes, the search box, the keyboard, and the state in the header.

import { ApiError, ask, hasToken, keepToken, reason, whenUnauthorized } from "./api.js";
import { createDevice } from "./device.js";
import { createDevices } from "./devices.js";
import { announce, announcements, deviceRoute, el, fill, routeTo, setText, show, visible } from "./dom.js";
import { createEvents } from "./events.js";
import { duration, plural } from "./format.js";
import { Live, STALE } from "./live.js";
import { createOverview } from "./overview.js";
import { GatewayState } from "./state.js";
import { createSystem } from "./system.js";
import { createTop } from "./top.js";

const RETRY = 3000;
const TYPING = 200;

const summary = document.getElementById("summary");
const page = document.getElementById("page");

/** Parse a route: `#/search?q=4711` is {view: "search", parameters: {q: "4711"}}, and `#/device/ID` has the parameter id. */
function parseRoute(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...rest] = path.split("/");
  const parameters = Object.fromEntries(new URLSearchParams(query));
  if (rest.length > 0) {
    const id = rest.join("/");
    try {
      parameters.id = decodeURIComponent(id);
    } catch {
      parameters.id = id;
    }
  }
  return { view, parameters };
}

/** Return the hash of a route. Empty parameters are left out. */
function routeHash(view, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  const text = query.toString();
  return `#/${view}${text ? `?${text}` : ""}`;
}

/**
 * Take the token of a link such as `#token=…`, which `owsla demo` prints. A browser sends no fragment to a server. It is replaced
 * at once in the address and in the history of the tab, so that it is neither seen nor in a copied link.
 */
function takeToken() {
  const token = /^#token=([\x21-\x7e]+)$/.exec(location.hash)?.[1];
  if (token === undefined) return false;
  keepToken(token);
  history.replaceState(null, "", "#/");
  return true;
}

async function start() {
  try {
    const about = await ask("");
    run({
      version: about.version,
      who: about.workers ? plural(about.workers.length ?? about.workers, "worker") : `node ${visible(about.node ?? "?")}`,
      readOnly: about.read_only === true,
    });
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) withoutApi();
    else if (!(error instanceof ApiError && error.status === 401)) {
      fill(page, el("p", { class: "note bad", role: "alert" }, reason(error), " Trying again…"));
      setTimeout(start, RETRY);
    }
  }
}

function withoutApi() {
  show(summary, true);
  summary.classList.add("shown");
  show(document.getElementById("enable"), true);
}

/** Ask for a token, and start again with it. */
function askForToken() {
  if (page.querySelector("form.token")) return;
  const again = hasToken();
  keepToken(null);
  const input = el("input", { type: "password", id: "token", autocomplete: "off", required: true, spellcheck: "false" });
  const form = el(
    "form",
    { class: "token" },
    el("h1", null, "Owsla"),
    el("label", { for: "token" }, "Token"),
    input,
    el("p", { class: "quiet" }, "The content of the gateway's --http-token-file, or of its --http-read-token-file to look only. It is kept until this tab is closed."),
    again ? el("p", { class: "note bad", role: "alert" }, "The gateway does not accept this token.") : null,
    el("div", { class: "buttons" }, el("button", { class: "primary" }, "Open")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    keepToken(input.value.trim().replace(/[^\x21-\x7e]/g, ""));
    location.reload();
  });
  fill(page, form);
  input.focus();
}

function run(session) {
  summary.remove();
  const live = new Live();
  const state = new GatewayState();
  const context = { session, live, state, navigate };
  const views = {
    "": createOverview(context),
    search: createDevices(context),
    device: createDevice(context),
    top: createTop(context),
    events: createEvents(context),
    system: createSystem(context),
  };
  const links = { "": "Overview", search: "Devices", top: "Top", events: "Events", system: "System" };
  const pill = el("a", { class: "pill", href: "#/system" });
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "Find a device: id, address or connection id",
    "aria-label": "Find a device by id, address or connection id",
    "aria-keyshortcuts": "/",
    autocomplete: "off",
    autocapitalize: "off",
    maxlength: "256",
    spellcheck: "false",
  });
  const nav = el("nav", { "aria-label": "Views" }, Object.entries(links).map(([view, text]) => el("a", { href: routeHash(view), "data-view": view }, text)));
  const content = el("main", { id: "content", tabindex: "-1" });
  const help = el("dialog", { class: "help", "aria-labelledby": "help-title" }, helpText(), el("form", { method: "dialog" }, el("div", { class: "buttons" }, el("button", null, "Close"))));
  fill(
    page,
    el("a", { class: "skip", href: "#content", onclick: (event) => (event.preventDefault(), content.focus()) }, "Skip to the content"),
    el("header", { class: "bar" }, el("a", { class: "brand", href: "#/" }, "Owsla"), el("span", { class: "node" }, session.who), pill, el("form", { role: "search", class: "find", onsubmit: (event) => find(event) }, search, el("kbd", { "aria-hidden": "true" }, "/")), nav),
    content,
    help,
    announcements(),
  );
  let shown = null;
  let typing = null;

  /** Go to a view. `replace`: without an entry of its own in the history of the browser. */
  function navigate(view, parameters, replace = false) {
    const hash = routeHash(view, parameters);
    if (replace) {
      history.replaceState(null, "", hash);
      return route();
    }
    location.hash = hash;
    return Promise.resolve();
  }

  function route(first = false) {
    const { view, parameters } = parseRoute(location.hash);
    const known = view in views && (view !== "device" || parameters.id);
    const next = known ? views[view] : views[""];
    const changed = next !== shown;
    if (changed) {
      shown?.hide();
      shown = next;
      fill(content, next.element);
      scrollTo(0, 0);
    }
    for (const link of nav.children) {
      const current = link.dataset.view === view || (view === "device" && link.dataset.view === "search");
      if (current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (document.activeElement !== search) search.value = view === "search" ? (parameters.q ?? "") : "";
    state.often(view === "" || view === "system");
    const done = next.show(parameters, changed && !first, changed);
    document.title = `${next.title} – Owsla ${session.who}`;
    if (changed && !first && document.activeElement === document.body) content.focus({ preventScroll: true });
    return done;
  }

  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      const already = parseRoute(location.hash).view === "search";
      navigate("search", { q: search.value.trim() }, already);
    }, TYPING);
  });

  /** Enter in the search box: open the only match, or go to the results. */
  async function find(event) {
    event.preventDefault();
    clearTimeout(typing);
    const q = search.value.trim();
    await navigate("search", { q }, true);
    const only = views.search.onlyMatch();
    if (q !== "" && only !== null && search.value.trim() === q) {
      location.hash = q === only.connection_id ? routeTo(q) : deviceRoute(only);
      search.blur();
    } else views.search.focusFirst();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typingNow = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (event.target === search) {
      if (event.key === "Escape") {
        if (search.value === "") search.blur();
        search.value = "";
        clearTimeout(typing);
        event.preventDefault();
      } else if (event.key === "ArrowDown") {
        views.search.focusFirst();
        event.preventDefault();
      }
      return;
    }
    if (typingNow) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") search.focus(), search.select();
    else if (event.key === "?") help.showModal();
    else if (event.key === "p" && shown === views.events) views.events.togglePause();
    else if (event.key === "Escape" && shown === views.device) history.length > 1 ? history.back() : navigate("search", {});
    else if (/^[1-5]$/.test(event.key)) location.hash = routeHash(Object.keys(links)[event.key - 1]);
    else return;
    event.preventDefault();
  });

  let said = "";
  function drawPill() {
    const { text, kind } = health(live, state);
    setText(pill, text);
    pill.className = `pill ${kind}`;
    document.body.classList.toggle("stale", kind === "stale");
    if (kind !== said) {
      if (said !== "") announce(kind === "stale" ? "The data is old: the gateway does not answer." : text);
      said = kind;
    }
  }

  live.listen(drawPill);
  state.listen(drawPill);
  setInterval(drawPill, 1000);
  addEventListener("hashchange", () => location.hash.startsWith("#token=") || route());
  live.start();
  live.load("5m");
  state.start();
  route(true);
  drawPill();
}

/** Return the text and the kind of the state in the header. */
function health(live, state) {
  if (live.status === "hidden") return { text: "Paused", kind: "wait" };
  if (live.age === null) return live.status === "broken" ? { text: "Not reachable", kind: "stale" } : { text: "Connecting…", kind: "wait" };
  if (live.age > STALE) return { text: `Stale: ${duration(live.age)} old`, kind: "stale" };
  const latest = state.latest;
  if (latest === null) return { text: "Connected", kind: "wait" };
  if (latest.checks?.not_draining === false) return { text: "Stopping", kind: "bad" };
  if (latest.ready === false) return { text: `Not ready: ${latest.missing_checks.map((text) => visible(text)).join(", ")}`, kind: "bad" };
  return { text: "Ready", kind: "good" };
}

function helpText() {
  const keys = {
    "/": "search",
    "Enter": "open the only match, or go to the results",
    "↓ ↑": "move through the results",
    "Esc": "leave a field, close a question, go back from a device",
    "← →": "in a chart: the values of another time",
    "p": "in the events: pause, and go on",
    "1 … 5": "the views",
    "?": "this help",
  };
  return [el("h2", { id: "help-title" }, "Keys"), el("dl", { class: "keys" }, Object.entries(keys).map(([key, text]) => el("div", null, el("dt", null, el("kbd", null, key)), el("dd", null, text))))];
}

whenUnauthorized(askForToken);
takeToken();
addEventListener("hashchange", () => takeToken() && location.reload());
start();
