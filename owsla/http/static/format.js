// Numbers, sizes and times as text. Times are milliseconds since the epoch, by the clock of the gateway.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ONE = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const TWO = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

const UNKNOWN = "–";

let ahead = 0;

/** Follow the clock of the gateway: the one of the browser may be wrong. */
export function followClock(time) {
  const seen = time - Date.now();
  // Within two seconds the difference is that of the network.
  if (Math.abs(seen - ahead) > 2000) ahead = seen;
}

/** Return the present by the clock of the gateway. */
export function now() {
  return Date.now() + ahead;
}

const known = (value) => value !== null && value !== undefined;

export function number(value) {
  return known(value) ? WHOLE.format(value) : UNKNOWN;
}

/** Format a value per second. */
export function rate(value) {
  return known(value) ? (value < 10 ? ONE : WHOLE).format(value) : UNKNOWN;
}

/** Format a time in milliseconds with its unit. */
export function milliseconds(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 1000) return `${(value < 10000 ? TWO : ONE).format(value / 1000)} s`;
  return `${(value < 10 ? TWO : value < 100 ? ONE : WHOLE).format(value)} ms`;
}

export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 1000) return `${WHOLE.format(value)} B`;
  for (const unit of ["kB", "MB", "GB", "TB"]) {
    value /= 1000;
    if (value < 999.5 || unit === "TB") return `${(value < 10 ? TWO : ONE).format(value)} ${unit}`;
  }
  return UNKNOWN;
}

export function percent(share) {
  return known(share) ? `${WHOLE.format(share * 100)} %` : UNKNOWN;
}

/** Format a duration in milliseconds in its two greatest units. */
export function duration(value) {
  if (!known(value)) return UNKNOWN;
  const seconds = Math.max(0, Math.floor(value / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${WHOLE.format(Math.floor(hours / 24))} d ${hours % 24} h`;
}

/** Format the distance of a time from the present in its greatest unit. */
export function ago(time) {
  if (!known(time)) return UNKNOWN;
  const seconds = Math.max(0, Math.floor((now() - time) / 1000));
  if (seconds < 1) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${WHOLE.format(Math.floor(seconds / 86400))} d ago`;
}

const two = (value) => String(value).padStart(2, "0");

/** Format the time of day, in the time zone of the browser; with the date, if it is another day. */
export function clock(time, fraction = false) {
  if (!known(time)) return UNKNOWN;
  const at = new Date(time);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} `;
  const seconds = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const rest = fraction ? `.${String(at.getMilliseconds()).padStart(3, "0")}` : "";
  return `${at.toDateString() === new Date(now()).toDateString() ? "" : day}${seconds}${rest}`;
}

/** Format a date. */
export function date(time) {
  if (!known(time)) return UNKNOWN;
  const at = new Date(time);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

/** Format a time completely, in UTC. */
export function utc(time) {
  return known(time) ? `${new Date(time).toISOString().replace("T", " ").replace("Z", "")} UTC` : "";
}

export function plural(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}
