// What is served: the bundles of all arms, what is known of their indexes, and the service's limits.

import { at, element, facts, number, shown, table } from "./elements.js";

/** Fill the view. */
export function show(about) {
  at("bundle-facts").replaceChildren(
    beside(about.bundles, "What is served", (one) => ({
      folder: one.name, fingerprint: one.bundle, ...one.counts, score: one.score, index: one.index, licence: one.licence,
    })),
    about.bundles.some((one) => Object.keys(one.metrics ?? {}).length > 0)
      ? beside(about.bundles, "Metrics of the model", (one) => one.metrics ?? {})
      : element("p", { class: "quiet" }, "The bundles say nothing of the metrics of their models."),
    ...reports(about.bundles),
    Object.keys(about.attributes).length
      ? table("Attributes to show and filter by", ["attribute", "type"], Object.entries(about.attributes))
      : element("p", { class: "quiet" }, "The bundle has no attributes of items to show or filter by."),
    element("h2", {}, "Service"),
    facts([
      ["version", about.version],
      ["experiment", about.experiment],
      ["items now", about.items],
      ["changed since the bundle", about.items_changed],
      ["columns of a query", about.query_columns.join(", ")],
      ["reads histories", about.reads_histories ? "yes" : "no"],
      ["columns of an item", about.item_columns.join(", ")],
      ["most items of an answer", about.limits.k],
    ]),
    element("p", {}, element("a", { href: "openapi.json" }, "What can be asked, as OpenAPI")),
  );
}

/** A table with a column for each bundle. */
function beside(bundles, caption, told) {
  const columns = bundles.map(told), names = [...new Set(columns.flatMap((column) => Object.keys(column)))];
  const header = ["", ...bundles.map((one) => one.arm ?? one.name)];
  return table(caption, header, names.map((name) => [name, ...columns.map((column) => shown(column[name]))]));
}

function reports(bundles) {
  const there = bundles.filter((one) => Array.isArray(one.index_report?.lines));
  if (there.length) return there.map((one) => report(one.index_report, one.arm ?? one.name));
  return [element("p", { class: "quiet" }, "No bundle has an index report; twotower export MODEL --report measures one.")];
}

function report(found, name) {
  const filters = Object.keys(found.lines[0]?.filtered ?? {});
  const rows = found.lines.map((line) => [
    line.settings.kind,
    line.met ? "met" : "missed",
    number(line.recall),
    number(line.low),
    ...filters.map((name) => number(line.filtered[name]?.recall)),
    number(line.latency.p50_ms),
    number(line.latency.p99_ms),
    number(line.build_s),
    number(line.memory_bytes / 2 ** 20),
  ]);
  const header = [
    "kind", `target ${found.target_recall}`, `recall@${found.k}`, "95% above",
    ...filters.map((name) => `${name} filter`), "p50 ms", "p99 ms", "build s", "MiB",
  ];
  const of = `${number(found.n_items)} items, ${number(found.n_queries)} queries`;
  return table(`Index report of ${name}: ${of}`, header, rows);
}
