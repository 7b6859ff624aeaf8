// The form of a query: fields by the schema's types, and what is asked for by what they hold.

import { completed } from "./completion.js";
import { at, element } from "./elements.js";
import { get } from "./service.js";

const COMPLETIONS = 12;
const FEW = 6;

/** Fields for a query's columns and for what items must be. `asked` is called once a known query was picked. */
export function makeFields(about, columns, asked) {
  const known = async (text, signal) =>
    (await get(`queries/search?k=${COMPLETIONS}&text=${encodeURIComponent(text)}`, signal)).queries;
  const keys = about.query_keys.slice(0, 1);
  at("keys").replaceChildren(...keys.map((name) => columnField(name, columns[name], "known id, or a new one", (input) =>
    completed(input, known, asked))));
  const others = Object.keys(columns).filter((name) => !about.query_keys.includes(name));
  at("columns").replaceChildren(...others.map((name) => columnField(name, columns[name], hint(columns[name]))));
  at("more-columns").hidden = others.length === 0;
  at("more-columns").open = others.length <= FEW && !matchMedia("(max-width: 860px)").matches;
  const filters = Object.entries(about.attributes).map(([name, type]) => filterField(name, type)).filter(Boolean);
  at("filters").replaceChildren(...filters);
  at("more-filters").hidden = filters.length === 0;
}

function columnField(name, schema, placeholder, complete) {
  const input = element("input", {
    id: `column-${name}`, "data-column": name, placeholder, spellcheck: "false", autocapitalize: "off",
    inputmode: isOnly(schema, "number") ? "decimal" : null,
  });
  return element("div", { class: "field" }, element("label", { for: input.id }, name), input, complete?.(input));
}

function filterField(name, type) {
  if (/^(list|large_list|struct|map|dictionary|fixed_size_list)/.test(type)) return null;
  if (!/^(u?int|float|double|halffloat|decimal)/.test(type)) {
    const input = element("input", { id: `filter-${name}`, "data-filter": name, "data-type": type, placeholder: "any" });
    return element("div", { class: "field" }, element("label", { for: input.id }, name), input);
  }
  const ends = ["from", "to"].map((end) =>
    element("input", {
      type: "number", step: "any", "data-filter": name, "data-end": end, "aria-label": `${name} ${end}`, placeholder: end,
    }));
  return element(
    "fieldset", { class: "field" }, element("legend", {}, name), element("span", { class: "row tight" }, ...ends),
  );
}

const types = (schema) => (schema.anyOf ?? [schema]).filter((one) => one.type !== "null");
const isOnly = (schema, type) => types(schema).every((one) => one.type === type);

function hint(schema) {
  if (isOnly(schema, "array")) {
    const [{ minItems, items }] = types(schema);
    if (minItems) return `${minItems} numbers, separated by commas`;
    return isOnly(items, "number") ? "numbers, separated by commas" : "separated by commas";
  }
  if (isOnly(schema, "number")) return "number";
  return types(schema).some((one) => one.format === "date-time") ? "time, such as 2024-05-01T12:00:00" : "";
}

/** The value a column's text stands for; what is no number where one is wanted is sent as it is, to be refused. */
export function valueOf(text, schema) {
  const asNumber = (one) => (one.trim() !== "" && Number.isFinite(Number(one)) ? Number(one) : one.trim());
  if (isOnly(schema, "array")) {
    const parts = text.split(",").map((one) => one.trim()).filter((one) => one !== "");
    return isOnly(types(schema)[0].items, "number") ? parts.map(asNumber) : parts;
  }
  const isTime = types(schema).some((one) => one.format === "date-time");
  return isOnly(schema, "number") || isTime ? asNumber(text) : text.trim();
}

/** What the form asks for: the query's columns, k, filters. */
export function asked(columns) {
  const query = {}, where = {};
  for (const { value, dataset } of document.querySelectorAll("[data-column]")) {
    if (value.trim() !== "") query[dataset.column] = valueOf(value, columns[dataset.column]);
  }
  for (const { value, dataset } of document.querySelectorAll("[data-filter]")) {
    if (value.trim() === "") continue;
    if (dataset.end) where[dataset.filter] = { ...where[dataset.filter], [dataset.end]: Number(value) };
    else {
      const parts = value.split(",").map((one) => one.trim()).filter((one) => one !== "");
      where[dataset.filter] = dataset.type === "bool" ? parts.map((one) => one === "true") : parts;
    }
  }
  const wish = { k: Number(at("k").value), filter_seen: at("filter-seen").checked };
  return { query, ...wish, ...(Object.keys(where).length ? { where } : {}) };
}

/** Put what was asked for into the form; the other way round of `asked`. */
export function fill({ query = {}, where = {}, k = 10, filter_seen: filterSeen = true }) {
  for (const input of document.querySelectorAll("[data-column]")) input.value = query[input.dataset.column] ?? "";
  for (const input of document.querySelectorAll("[data-filter]")) {
    const wanted = where[input.dataset.filter];
    input.value = (input.dataset.end ? wanted?.[input.dataset.end] : wanted) ?? "";
  }
  const filled = (selector) => [...document.querySelectorAll(selector)].some((input) => input.value !== "");
  if (filled("#columns [data-column]")) at("more-columns").open = true;
  if (filled("#filters [data-filter]")) at("more-filters").open = true;
  at("k").value = k;
  at("filter-seen").checked = filterSeen;
}
