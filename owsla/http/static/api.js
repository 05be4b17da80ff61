// The API of the gateway: requests and streams. Streams are read by fetch, since EventSource cannot send a token.

const BASE = "api/v1";
const TOKEN = "owsla-token";

/** An answer with an error status. */
export class ApiError extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

let onUnauthorized = () => {};

/** Have a function called when the gateway asks for a token. */
export function whenUnauthorized(callback) {
  onUnauthorized = callback;
}

/** Keep a token until the tab is closed; null forgets it. */
export function keepToken(token) {
  if (token === null) sessionStorage.removeItem(TOKEN);
  else sessionStorage.setItem(TOKEN, token);
}

export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

/** Return the path of a request, relative to the page, with its parameters. Lists are repeated parameters. */
function address(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "" && one !== false) query.append(name, one === true ? "1" : one);
    }
  }
  const text = query.toString();
  return `${BASE}${path}${text ? `?${text}` : ""}`;
}

function request(path, parameters, options) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  return fetch(address(path, parameters), { ...options, headers, cache: "no-store", credentials: "same-origin", redirect: "error" });
}

async function failure(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Not an answer of the API: its status has to do.
  }
  if (response.status === 401) onUnauthorized();
  return new ApiError(response.status, body?.error ?? `The gateway answered with status ${response.status}.`, body);
}

/** Make a request. Resolve to its JSON; reject with ApiError, or TypeError if the gateway cannot be reached. */
export async function ask(path, parameters = {}, options = {}) {
  const response = await request(path, parameters, options);
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** Return a sentence for people about a failed request. */
export function reason(error) {
  return error instanceof ApiError ? error.message : "The gateway cannot be reached.";
}

/** A parser of server-sent events, by the WHATWG standard but for `retry`. */
class EventParser {
  constructor(callback) {
    this.callback = callback;
    this.rest = "";
    this.clear();
  }

  clear() {
    this.name = "message";
    this.data = [];
  }

  feed(text) {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) this.line(line);
  }

  line(line) {
    if (line === "") {
      if (this.data.length > 0) this.callback(this.name, this.data.join("\n"), this.id);
      this.clear();
      return;
    }
    const [, field, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (field === "event") this.name = value ?? "";
    else if (field === "data") this.data.push(value ?? "");
    else if (field === "id") this.id = value ?? "";
  }
}

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 15000;

/**
 * A stream of the API that is opened again when it breaks, after pauses that grow from one to 15 seconds. It is closed while the
 * tab is hidden (unless `whenHidden`).
 *
 * `message(name, value, id)` gets each event, `state(text, error)` the changes: "open", "broken", "ended" or "hidden". `once`: a
 * stream that the gateway ends is over. `silence`: milliseconds without any data after which the connection counts as broken.
 */
export class Stream {
  constructor(path, parameters, { message, state = () => {}, once = false, whenHidden = false, silence = 0 }) {
    this.path = path;
    this.parameters = parameters;
    this.message = message;
    this.state = state;
    this.once = once;
    this.whenHidden = whenHidden;
    this.silence = silence;
    this.pause = FIRST_PAUSE;
    this.lastId = undefined;
    this.controller = null;
    this.timer = null;
    this.closed = false;
    this.visibility = () => this.onVisibility();
    if (!whenHidden) document.addEventListener("visibilitychange", this.visibility);
    if (whenHidden || !document.hidden) this.open();
    else this.state("hidden");
  }

  close() {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.visibility);
    this.disconnect();
  }

  disconnect() {
    clearTimeout(this.timer);
    this.controller?.abort();
    this.controller = null;
  }

  onVisibility() {
    if (document.hidden) {
      this.disconnect();
      this.state("hidden");
    } else if (this.controller === null) {
      this.pause = FIRST_PAUSE;
      clearTimeout(this.timer);
      this.open();
    }
  }

  async open() {
    const controller = new AbortController();
    this.controller = controller;
    let error = null;
    try {
      error = await this.read(controller);
    } catch (caught) {
      error = caught;
    }
    if (this.controller !== controller) return; // closed or hidden meanwhile
    this.controller = null;
    controller.abort();
    const refused = error instanceof ApiError && error.status < 500;
    if ((this.once && error === null) || refused) {
      this.closed = true;
      document.removeEventListener("visibilitychange", this.visibility);
      this.state("ended", error);
      return;
    }
    this.state("broken", error);
    // Random, so that pages that lost the same gateway do not all come back in the same instant.
    this.timer = setTimeout(() => this.open(), this.pause * (0.75 + Math.random() / 2));
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }

  /** Read the stream to its end. Resolve to null at an orderly end. */
  async read(controller) {
    const headers = { Accept: "text/event-stream" };
    if (this.lastId !== undefined) headers["Last-Event-ID"] = this.lastId;
    const response = await request(this.path, this.parameters, { headers, signal: controller.signal });
    if (!response.ok) throw await failure(response);
    const parser = new EventParser((name, data, id) => {
      if (id !== undefined) this.lastId = id;
      this.pause = FIRST_PAUSE;
      if (!this.closed) this.message(name, JSON.parse(data), id);
    });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    this.state("open");
    for (;;) {
      const { value, done } = await this.within(reader.read());
      if (done) return null;
      parser.feed(value);
    }
  }

  /** Fail if a promise takes longer than the time of silence: a network that breaks does not end a connection. */
  within(promise) {
    if (!this.silence) return promise;
    let timer;
    const silent = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new TypeError("no data")), this.silence);
    });
    return Promise.race([promise, silent]).finally(() => clearTimeout(timer));
  }
}

/** A request that is repeated while its view is shown and the tab is visible, never before the last one was answered. */
export class Poll {
  constructor(interval, request) {
    this.interval = interval;
    this.request = request;
    this.timer = null;
    this.running = false;
    this.number = 0;
    document.addEventListener("visibilitychange", () => this.running && !document.hidden && this.now());
  }

  start() {
    this.running = true;
    return this.now();
  }

  stop() {
    this.running = false;
    this.number += 1;
    clearTimeout(this.timer);
  }

  async now() {
    clearTimeout(this.timer);
    const number = (this.number += 1);
    const current = () => this.running && number === this.number;
    if (!document.hidden) await this.request(current);
    if (current() && !document.hidden) this.timer = setTimeout(() => this.now(), this.interval);
  }
}
