// What is served: the bundles of all arms, what is known of their indexes, and the service's limits.

import { at, element, facts, number, shown, table } from "./elements.js";

/** Fill the view. */
export function show(about) {
  at("bundle-facts").replaceChildren(
    ...about.bundles.flatMap((one) => ofBundle(one)),
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
    Object.keys(about.attributes).length
      ? table("Attributes to show and filter by", ["attribute", "type"], Object.entries(about.attributes))
      : element("p", { class: "quiet" }, "The bundle has no attributes of items to show or filter by."),
    element("p", {}, element("a", { href: "openapi.json" }, "What can be asked, as OpenAPI")),
  );
}

function ofBundle(one) {
  const metrics = Object.entries(one.metrics ?? {}).map(([name, value]) => [name, shown(value)]);
  return [
    element("h2", {}, one.arm === null ? one.name : `${one.arm}: ${one.name}`),
    facts([
      ["fingerprint", one.bundle],
      ...Object.entries(one.counts),
      ["score", one.score],
      ["index", one.index],
      ["licence", one.licence],
    ]),
    metrics.length
      ? table("Metrics of the model", ["metric", "value"], metrics)
      : element("p", { class: "quiet" }, "The bundle says nothing of the model's metrics."),
    ...report(one.index_report),
  ];
}

function report(found) {
  if (!Array.isArray(found?.lines)) {
    return [element("p", { class: "quiet" }, "The bundle has no index report. twotower index report MODEL makes one.")];
  }
  const rows = found.lines.map((line) => [
    line.settings.kind,
    line.met ? "met" : "missed",
    number(line.recall),
    number(line.low),
    number(line.latency.p50_ms),
    number(line.latency.p99_ms),
    number(line.build_s),
    number(line.memory_bytes / 2 ** 20),
  ]);
  const header = [
    "kind", `target ${found.target_recall}`, `recall@${found.k}`, "95% above", "p50 ms", "p99 ms", "build s", "MiB",
  ];
  return [table(`Index report: ${number(found.n_items)} items, ${number(found.n_queries)} queries`, header, rows)];
}
