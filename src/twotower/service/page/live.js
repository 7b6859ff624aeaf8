// Live numbers: the service's counters, read again and again, and what changed in between.

import { at, duration, element, number, table, tell } from "./elements.js";
import { getText } from "./service.js";

const EVERY_MS = 2000;
const KEPT = 60;
const STAGES = { found: "found by the index", filtered: "left by filters", returned: "shown" };
const SVG = "http://www.w3.org/2000/svg";

/** Samples of Prometheus' text format, as [{name, labels, value}]. */
export function parsed(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (found === null) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(/([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, one) => (one === "n" ? "\n" : one));
    }
    samples.push({ name: found[1], labels, value: found[3] === "+Inf" ? Infinity : Number(found[3]) });
  }
  return samples;
}

/**
 * The q-quantile of a histogram, linear within its bucket; NaN of nothing. Buckets are [{le, count}], cumulative and
 * ascending, the last without an end: what lies in that one is told as its lower end.
 */
export function quantile(q, buckets) {
  const wanted = q * (buckets.at(-1)?.count ?? 0);
  if (!(wanted > 0)) return NaN;
  const place = buckets.findIndex((bucket) => bucket.count >= wanted);
  const low = place === 0 ? { le: 0, count: 0 } : buckets[place - 1], high = buckets[place];
  if (high.le === Infinity) return low.le;
  return low.le + ((high.le - low.le) * (wanted - low.count)) / (high.count - low.count);
}

/** Buckets of one histogram, less what they held before. */
export function buckets(samples, name, labels, before = []) {
  const ours = (sample) =>
    sample.name === `${name}_bucket` && Object.entries(labels).every(([key, value]) => sample.labels[key] === value);
  const old = new Map(before.filter(ours).map((sample) => [sample.labels.le, sample.value]));
  return samples.filter(ours).map(({ labels: { le }, value }) => ({
    le: le === "+Inf" ? Infinity : Number(le),
    count: value - (old.get(le) ?? 0),
  }));
}

const total = (samples, name, labels = {}) =>
  samples
    .filter((one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value))
    .reduce((sum, one) => sum + one.value, 0);

const namesOf = (samples, name, label) => [
  ...new Set(samples.filter((one) => one.name === name).map((one) => one.labels[label])),
];

let read = [], timer = 0;

/** Begin to read, or go on. */
export function start() {
  if (timer === 0) again();
}

/** Read no more. */
export function stop() {
  clearTimeout(timer);
  timer = 0;
}

async function again() {
  timer = setTimeout(again, EVERY_MS);
  if (document.hidden) return;
  try {
    const samples = parsed(await getText("metrics"));
    const last = read.at(-1);
    if (last && total(samples, "twotower_requests_total") < total(last.samples, "twotower_requests_total")) read = [];
    read = [...read, { seconds: performance.now() / 1000, samples }].slice(-KEPT);
    tell("live-error", "");
    show();
  } catch (error) {
    tell("live-error", error.message);
    at("live-told").textContent = "Trying again every two seconds.";
  }
}

function show() {
  const now = read.at(-1), first = read[0], window = now.seconds - first.seconds;
  const recent = window > 0;
  at("live-told").textContent = recent
    ? `Rates of the last ${Math.round(window)} s. Latencies are of the same time where anything was asked in it, ` +
      "else since the start. This page asks for these numbers every two seconds, under “other”."
    : "One more moment for the rates…";
  const rate = (labels) =>
    (total(now.samples, "twotower_requests_total", labels) - total(first.samples, "twotower_requests_total", labels)) /
    window;
  const both = (name, labels) => {
    const lately = buckets(now.samples, name, labels, first.samples);
    const used = lately.at(-1)?.count > 0 ? lately : buckets(now.samples, name, labels);
    return [0.5, 0.99].map((q) => duration(quantile(q, used)));
  };
  const routes = namesOf(now.samples, "twotower_requests_total", "route")
    .filter((route) => total(now.samples, "twotower_requests_total", { route }) > 0)
    .map((route) => [
      route,
      recent ? number(rate({ route })) : "–",
      ...both("twotower_request_seconds", { route }),
      number(total(now.samples, "twotower_requests_total", { route })),
      number(total(now.samples, "twotower_requests_total", { route, status: "4xx" })),
      number(total(now.samples, "twotower_requests_total", { route, status: "5xx" })),
    ]);
  const stages = namesOf(now.samples, "twotower_stage_seconds_count", "stage").map((stage) => [
    stage, ...both("twotower_stage_seconds", { stage }),
    number(total(now.samples, "twotower_stage_seconds_count", { stage })),
  ]);
  const counts = namesOf(now.samples, "twotower_items_total", "stage");
  const found = total(now.samples, "twotower_items_total", { stage: counts[0] });
  const items = counts.map((stage) => {
    const n = total(now.samples, "twotower_items_total", { stage });
    return [STAGES[stage] ?? stage, number(n), found > 0 ? `${number((100 * n) / found)} %` : "–"];
  });
  const others = now.samples
    .filter(({ name, labels }) => /^twotower_\w+$/.test(name) && Object.keys(labels).length === 0)
    .map(({ name, value }) => [name.replace(/^twotower_|_total$/g, "").replaceAll("_", " "), number(value)]);
  const kept = document.activeElement?.getAttribute("aria-label");
  const scrolled = new Map(regions().map((one) => [one.getAttribute("aria-label"), one.scrollLeft]));
  at("live-numbers").replaceChildren(
    ...(recent ? [trend()] : []),
    table("Requests", ["route", "a second", "p50", "p99", "all", "4xx", "5xx"], routes),
    element(
      "div", { class: "stack" },
      table("Stages of an answer to recommend", ["stage", "p50", "p99", "all"], stages),
      table("Items at each stage of an answer", ["stage", "items", "of found"], items),
    ),
    table("Since the start", ["what", "count"], others),
  );
  for (const region of regions()) {
    region.scrollLeft = scrolled.get(region.getAttribute("aria-label")) ?? 0;
    if (region.getAttribute("aria-label") === kept) region.focus({ preventScroll: true });
  }
}

const regions = () => [...document.querySelectorAll("#live-numbers [role=region]")];

/** Requests a second over time, without those of this page. */
function trend() {
  const asked = ({ samples }) =>
    total(samples, "twotower_requests_total") - total(samples, "twotower_requests_total", { route: "other" });
  const rates = read.slice(1).map((one, place) => {
    const before = read[place];
    return Math.max(0, (asked(one) - asked(before)) / (one.seconds - before.seconds));
  });
  const most = Math.max(...rates), step = 300 / Math.max(rates.length - 1, 1);
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 300 60");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  const points = rates.length > 1 ? rates : [...rates, ...rates];
  line.setAttribute("points", points.map((r, i) => `${rates.length > 1 ? i * step : i * 300},${58 - (56 * r) / (most || 1)}`).join(" "));
  picture.append(line);
  const last = rates.at(-1);
  return element(
    "figure", {},
    element("figcaption", {}, element("strong", {}, number(last)), ` requests a second, without this page’s; at most ${number(most)} in the last minutes`),
    picture,
  );
}
