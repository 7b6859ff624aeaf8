// Lists of items, one for each arm, with what tells their ranks apart.

import { element, number, shown } from "./elements.js";

const SHORT = 24;

/** How many places higher an item stands than in another list; null where that one does not have it. */
export function places(item, rank, other) {
  const there = other.findIndex((one) => one.item === item);
  return there < 0 ? null : there + 1 - rank;
}

/** Lists of answers beside one another. `open(item, button)` is called for an item that is looked at. */
export function lists(answers, about, open, level = "h2") {
  return answers.map((answer, at) => {
    const other = answers.length > 1 ? answers[at === 0 ? 1 : 0] : null;
    const name = answers.length > 1 ? about.bundles.find((one) => one.arm === answer.arm)?.name : null;
    const heading = other === null ? null : element(level, {}, answer.arm ?? "", " ", element("small", {}, name ?? ""));
    if (answer.error) return element("section", { class: "list" }, heading, element("p", { class: "error" }, answer.error));
    const most = Math.max(...answer.items.map((one) => Math.abs(one.score)), 1e-9);
    const long = longOnes(answer.items);
    const rows = answer.items.map((one, place) =>
      element("li", {}, row(one, place + 1, most, long, other?.items && moved(one.item, place + 1, other), about, open)));
    const list = element("ol", { class: "items", "aria-label": other === null ? "Items" : `Items of ${answer.arm}` }, ...rows);
    list.addEventListener("keydown", walk);
    return element("section", { class: "list" }, heading, counts(answer), rows.length ? list : nothing(answer));
  });
}

/** Attributes of which any value is too long to stand beside others: these get lines of their own. */
function longOnes(items) {
  const each = items.flatMap((one) => Object.entries(one.attributes ?? {}));
  return new Set(each.filter(([, value]) => String(value).length > SHORT).map(([name]) => name));
}

function row(one, rank, most, isLong, mark, about, open) {
  const attributes = Object.entries(one.attributes ?? {}).filter(
    ([name, value]) => name !== about.title && value != null && value !== "");
  const title = about.title === null ? null : one.attributes?.[about.title];
  const long = attributes.filter(([name]) => isLong.has(name));
  const short = attributes.filter(([name]) => !isLong.has(name));
  const bar = element("span", { class: one.score < 0 ? "bar negative" : "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", Math.abs(one.score) / most);
  const button = element(
    "button", { class: "item", type: "button", "data-item": one.item, "aria-controls": "neighbours" },
    element("span", { class: "rank", "aria-hidden": "true" }, String(rank)),
    element(
      "span", { class: "what" },
      element("span", { class: "name" }, title ? String(title) : one.item),
      title ? element("span", { class: "id" }, one.item) : null,
      ...long.map(([, value]) => element("span", { class: "long" }, shown(value))),
      short.length
        ? element("span", { class: "short" }, ...short.map(([name, value]) =>
          element("span", {}, element("i", {}, name), " ", shown(value))))
        : null,
    ),
    element("span", { class: "score" }, mark, element("span", {}, one.score.toFixed(4)), bar),
  );
  button.addEventListener("click", () => open(one, button));
  button.addEventListener("pointerenter", () => alike(one.item));
  button.addEventListener("focus", () => alike(one.item));
  return button;
}

/** Mark an item in all lists. */
function alike(item) {
  for (const button of document.querySelectorAll("#lists .item")) {
    button.classList.toggle("alike", button.dataset.item === item);
  }
}

function moved(item, rank, other) {
  const by = places(item, rank, other.items);
  const [kind, sign, words] =
    by === null ? ["only", "only here", `not in ${other.arm}`]
    : by === 0 ? ["same", "=", `same rank in ${other.arm}`]
    : by > 0 ? ["up", `▲ ${by}`, `${by} higher than in ${other.arm}`]
    : ["down", `▼ ${-by}`, `${-by} lower than in ${other.arm}`];
  return element(
    "span", { class: `moved ${kind}`, title: words },
    element("span", { "aria-hidden": "true" }, sign), element("span", { class: "hidden-text" }, words),
  );
}

function counts({ counts: { found, filtered, returned } }) {
  return element(
    "p", { class: "counts quiet" }, `found ${number(found)} → left by filters ${number(filtered)} → shown ${number(returned)}`,
  );
}

function nothing({ counts: { found } }) {
  const why = found > 0
    ? "All that was found had been seen. Ask with seen items, or for more of them."
    : "No item is what items must be. Ask with fewer conditions.";
  return element("p", { class: "empty" }, why);
}

/** How much two lists have in common, in words. */
export function inCommon([one, other]) {
  if (!one.items || !other?.items) return "";
  const both = one.items.filter((first) => other.items.some((second) => second.item === first.item));
  const n = Math.max(one.items.length, other.items.length);
  const inPlace = one.items.filter((first, place) => other.items[place]?.item === first.item).length;
  return `${both.length} of ${n} items in both, ${inPlace} at the same rank`;
}

/** Arrow keys go through a list, and to the one beside it. */
function walk(event) {
  const button = event.target.closest(".item");
  if (button === null || event.altKey || event.ctrlKey || event.metaKey) return;
  const items = [...event.currentTarget.querySelectorAll(".item")], place = items.indexOf(button);
  const all = [...document.querySelectorAll("ol.items")], list = all.indexOf(event.currentTarget);
  const beside = (step) => {
    const its = all[list + step]?.querySelectorAll(".item") ?? [];
    return its[Math.min(place, its.length - 1)];
  };
  const to = {
    ArrowDown: () => items[place + 1], ArrowUp: () => items[place - 1], Home: () => items[0], End: () => items.at(-1),
    ArrowLeft: () => beside(-1), ArrowRight: () => beside(1),
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  to()?.focus();
}
