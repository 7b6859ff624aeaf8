// Elements made of values. A value becomes text and never markup, wherever it comes from.

/** An element of a tag, with attributes (true stands alone, false and null are left out) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** The element of an id. */
export const at = (id) => document.getElementById(id);

/** Text in an element that is hidden while there is none. */
export function tell(id, text) {
  at(id).textContent = text;
  at(id).hidden = text === "";
}

/** A value as people read it. */
export function shown(value) {
  if (value == null) return "–";
  if (typeof value === "number") return number(value);
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

/** A number with as many digits as tell something. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 100 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : value.toPrecision(3);
}

/** Seconds in the unit that suits them. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1e-3) return `${number(seconds * 1e6)} µs`;
  return seconds < 1 ? `${number(seconds * 1e3)} ms` : `${number(seconds)} s`;
}

/** A table that scrolls by itself where it is too wide: its first column has the names of rows. */
export function table(caption, header, rows) {
  const head = element("tr", {}, ...header.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))),
  );
  const made = element(
    "table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body),
  );
  return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, made);
}

/** A list of names and values. */
export function facts(pairs) {
  return element(
    "dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, shown(value))]),
  );
}
