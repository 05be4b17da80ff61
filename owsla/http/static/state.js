// The state of the gateway: readiness, numbers, doors, workers, tree, broker connections, certificates.

import { ask, Poll } from "./api.js";

/** Milliseconds between two requests: in views that show much of the state, and in those that show only whether it is ready. */
const OFTEN = 5000;
const SELDOM = 20000;

export class GatewayState {
  constructor() {
    this.latest = null;
    this.error = null;
    this.listeners = new Set();
    this.poll = new Poll(SELDOM, async (current) => {
      try {
        const latest = await ask("/state");
        if (!current()) return;
        [this.latest, this.error] = [latest, null];
      } catch (error) {
        if (!current()) return;
        this.error = error;
      }
      this.listeners.forEach((listener) => listener(this.latest, this.error));
    });
  }

  start() {
    return this.poll.start();
  }

  stop() {
    this.poll.stop();
  }

  /** Ask more often while a view shows much of the state. */
  often(on) {
    const interval = on ? OFTEN : SELDOM;
    if (interval === this.poll.interval) return;
    this.poll.interval = interval;
    if (on && this.poll.running) this.poll.now();
  }

  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}
