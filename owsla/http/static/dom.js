// Elements of the page. Data reaches it as text nodes and attributes only, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return a new HTML element. Properties that begin with "on" are listeners; null, undefined and false are left out. */
export function el(tag, properties, ...children) {
  return build(document.createElement(tag), properties, children);
}

/** Return a new SVG element. */
export function svg(tag, properties, ...children) {
  return build(document.createElementNS(SVG, tag), properties, children);
}

function build(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  return add(node, ...children);
}

/** Append children: nodes, texts, numbers and lists of them. */
export function add(node, ...children) {
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Replace the children of an element. */
export function fill(node, ...children) {
  node.replaceChildren();
  return add(node, ...children);
}

/** Set the text of an element, if it is another one. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show or hide an element. */
export function show(node, shown) {
  node.hidden = !shown;
}

// Control characters, and characters that change the direction of a text or are invisible.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

const LONGEST = 120;

/** Return a text that shows its invisible characters by their numbers, and is not longer than some 120 characters. */
export function visible(text, longest = LONGEST) {
  const all = String(text);
  const part = all.length > longest ? `${all.slice(0, longest - 20)}…${all.slice(-12)}` : all;
  return part.replace(HIDDEN, (character) => `⟨${character.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** Return an element with an id that others have chosen. Its direction does not change that of the text around it. */
export function identifier(text, properties) {
  if (text === null || text === undefined || text === "") return el("span", { class: "none" }, "–");
  const shown = visible(text);
  const long = String(text).length > LONGEST;
  return el("bdi", { class: "id", title: long ? `${String(text).length} characters` : null, ...properties }, shown);
}

/** Return the route of a device: that of its connection, if its id is too long for a URL, or is one that URLs read as a folder. */
export function deviceRoute(connection) {
  const { device_id: device, connection_id: id } = connection;
  const given = device !== null && device !== undefined && !["", ".", ".."].includes(device);
  const usable = given && encodeURIComponent(wellFormed(device)).length <= 1000;
  return routeTo(usable ? device : id);
}

/** Return the route of an id: a device id, a connection id or an address. */
export function routeTo(id) {
  return `#/device/${encodeURIComponent(wellFormed(id))}`;
}

/** Return a text that can be encoded in a URL: without unpaired surrogates. */
export function wellFormed(text) {
  return String(text).replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

let announcer = null;

/** Return the element whose text a screen reader reads out. */
export function announcements() {
  announcer ??= el("div", { class: "unseen", role: "status", "aria-live": "polite" });
  return announcer;
}

/** Have a screen reader read out a text. */
export function announce(text) {
  setText(announcements(), text);
}

/** Ask for a confirmation within the page. Resolve to true if it was given. */
export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    const dialog = el(
      "dialog",
      { class: "confirm", "aria-labelledby": "confirm-title", onclose: () => done() },
      el("h2", { id: "confirm-title" }, title),
      text.map((paragraph) => el("p", null, paragraph)),
      el(
        "div",
        { class: "buttons" },
        el("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel"),
        el("button", { type: "button", class: "danger solid", onclick: () => dialog.close("yes") }, action),
      ),
    );
    const before = document.activeElement;
    const done = () => {
      dialog.remove();
      before?.focus?.();
      resolve(dialog.returnValue === "yes");
    };
    document.body.append(dialog);
    dialog.showModal();
  });
}
