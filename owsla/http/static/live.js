// The samples of the gateway: one stream for the whole page, and the history before it.

import { ask, Stream } from "./api.js";
import { followClock } from "./format.js";

const STEP = 1000;
const FINE = 300;
const COARSE_STEP = 10000;
const COARSE = 360;

/** Milliseconds without a sample after which the page says that its data is old. */
export const STALE = 3500;

const LARGEST = ["p99", "lateness"];

/** The samples of the last five minutes and of the last hour. Listeners are called after each change. */
export class Live {
  constructor() {
    this.fine = [];
    this.coarse = null;
    this.pending = [];
    this.listeners = new Set();
    this.status = "connecting";
    /** Time by `performance.now()` of the newest sample. */
    this.received = null;
  }

  start() {
    this.stream = new Stream(
      "/live",
      {},
      {
        silence: 10000,
        state: (state) => this.changed(state),
        message: (name, sample) => name === "sample" && this.add(sample),
      },
    );
  }

  stop() {
    this.stream?.close();
  }

  get newest() {
    return this.fine.at(-1) ?? null;
  }

  /** Milliseconds since the newest sample arrived; null before the first one. */
  get age() {
    return this.received === null ? null : performance.now() - this.received;
  }

  changed(state) {
    this.status = state;
    if (state === "open") {
      // What was missed while the stream was closed.
      this.load("5m");
      if (this.coarse !== null) this.load("1h");
    }
    this.tell();
  }

  add(sample) {
    followClock(sample.time);
    this.received = performance.now();
    this.fine.push(sample);
    if (this.fine.length > FINE) this.fine.shift();
    if (this.coarse !== null) {
      this.pending.push(sample);
      if (this.pending.length * STEP >= COARSE_STEP) {
        this.coarse.push(combined(this.pending));
        this.pending = [];
        if (this.coarse.length > COARSE) this.coarse.shift();
      }
    }
    this.tell();
  }

  /** Fetch the history of a span: "5m" or "1h". */
  async load(span) {
    let samples;
    try {
      ({ samples } = await ask("/history", { span }));
    } catch {
      return; // The stream says that the gateway is away, and calls this again.
    }
    if (span === "1h") {
      this.coarse = samples;
      this.pending = [];
    } else {
      const last = samples.at(-1)?.time ?? 0;
      this.fine = [...samples, ...this.fine.filter((sample) => sample.time > last)].slice(-FINE);
    }
    this.tell();
  }

  /** Return the samples of a span, the oldest first, and their step in milliseconds. */
  samples(span) {
    if (span === "1h") {
      if (this.coarse === null) {
        this.coarse = [];
        this.load("1h");
      }
      return { samples: this.coarse, step: COARSE_STEP, span: COARSE * COARSE_STEP };
    }
    return { samples: this.fine, step: STEP, span: FINE * STEP };
  }

  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  tell() {
    for (const listener of this.listeners) listener(this);
  }
}

/** Combine samples of a second into one of ten: worst latencies, and the means of everything else. */
function combined(samples) {
  const result = { ...values(samples), time: samples.at(-1).time, workers: null };
  const names = new Set(samples.flatMap((sample) => Object.keys(sample.workers ?? {})));
  if (names.size > 0) {
    result.workers = {};
    for (const name of names) {
      const known = samples.map((sample) => sample.workers?.[name]).filter((one) => one);
      result.workers[name] = known.length > 0 ? values(known) : null;
    }
  }
  return result;
}

function values(samples) {
  const result = {};
  for (const name of Object.keys(samples[0])) {
    const known = samples.map((sample) => sample[name]).filter((value) => typeof value === "number");
    if (known.length === 0) result[name] = null;
    else if (LARGEST.includes(name)) result[name] = Math.max(...known);
    else result[name] = known.reduce((sum, value) => sum + value, 0) / known.length;
  }
  return result;
}
