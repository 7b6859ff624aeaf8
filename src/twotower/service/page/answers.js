// What the model answers to a query, and which items lie near an item.

import { at, duration, element, shown, tell } from "./elements.js";
import { inCommon, lists } from "./lists.js";
import { asked, fill, makeFields } from "./query_form.js";
import { post } from "./service.js";

const NEIGHBOURS = 10;
const NARROW = matchMedia("(max-width: 860px)");

let about, columns, pending = new AbortController(), looking = new AbortController(), opener = null, trail = [];

/** Make the form and answer what the address asks for. */
export function begin(itsAbout, itsColumns) {
  [about, columns] = [itsAbout, itsColumns];
  makeFields(about, columns, () => at("ask").requestSubmit());
  at("k").max = about.limits.k;
  at("arm-label").hidden = about.bundles.length < 2;
  at("arm").replaceChildren(
    element("option", { value: "" }, "all, beside one another"),
    ...about.bundles.map(({ arm }) => element("option", { value: arm }, `only ${arm}`)),
  );
  at("examples").replaceChildren(...about.examples.map((query) => {
    const [[name, value]] = Object.entries(query);
    const pick = () => {
      fill({ ...asked(columns), query });
      at("ask").requestSubmit();
    };
    return element("button", { type: "button", click: pick, "aria-label": `${name} ${value}` }, value);
  }));
  fromAddress();
}

function fromAddress() {
  const text = new URLSearchParams(location.search).get("ask");
  if (text === null) return void document.querySelector("#keys input")?.focus({ preventScroll: true });
  try {
    fill(JSON.parse(text));
  } catch {
    return tell("ask-error", "The address holds a query that can't be read.");
  }
  ask();
}

at("arm").addEventListener("change", () => {
  if (at("lists").childElementCount > 0) ask();
});

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = JSON.stringify(asked(columns));
  history.pushState(null, "", `?ask=${encodeURIComponent(wanted)}`);
  ask();
});

addEventListener("popstate", () => {
  if (about && !new URLSearchParams(location.search).has("view")) fromAddress();
});

/**
 * Answers of one arm or of all, as a list of answers. In an experiment these are comparisons even for one arm: what is
 * asked for here was shown to no user, and must not be logged as if it were.
 */
async function answersTo(wanted, path, signal) {
  const wish = { ...wanted, show: Object.keys(about.attributes) };
  if (about.bundles.length < 2) return [await post(path, wish, signal)];
  const { answers } = await post("compare", wish, signal), only = at("arm").value;
  return only === "" ? answers : answers.filter((one) => one.arm === only);
}

async function ask() {
  pending.abort();
  pending = new AbortController();
  const { signal } = pending;
  close();
  tell("ask-error", "");
  at("beginning").hidden = true;
  at("lists").setAttribute("aria-busy", "true");
  at("told").textContent = "Asking…";
  const started = performance.now();
  try {
    const answers = await answersTo(asked(columns), "recommend", signal);
    if (signal.aborted) return;
    const took = `answered in ${duration((performance.now() - started) / 1000)}`;
    at("lists").replaceChildren(...lists(answers, about, (one, button) => open(one, button)));
    const arm = answers.length === 1 && answers[0].arm ? `arm ${answers[0].arm}, ` : "";
    at("told").textContent = answers.length > 1 ? `${inCommon(answers)}; ${took}` : `${arm}${took}`;
    at("told").classList.toggle("ahead", answers.length > 1);
    if (NARROW.matches) at("told").scrollIntoView({ block: "start" });
  } catch (error) {
    if (signal.aborted) return;
    at("lists").replaceChildren();
    at("told").textContent = "";
    tell("ask-error", error.message);
    at("beginning").hidden = false;
  } finally {
    if (!signal.aborted) at("lists").removeAttribute("aria-busy");
  }
}

// ------------------------------------------------------------ neighbours

function open(one, button) {
  if (!at("neighbours").contains(button)) [opener, trail] = [button, []];
  trail = [...trail, one];
  look();
  if (NARROW.matches || at("neighbours").contains(button)) at("neighbours-title").focus();
}

function close() {
  looking.abort();
  const hadFocus = at("neighbours").contains(document.activeElement);
  at("neighbours").hidden = true;
  document.body.classList.remove("covered");
  for (const button of document.querySelectorAll("[aria-current=true]")) button.removeAttribute("aria-current");
  if (hadFocus) opener?.focus();
}

at("neighbours-close").addEventListener("click", close);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && !at("neighbours").hidden) close();
});

async function look() {
  looking.abort();
  looking = new AbortController();
  const { signal } = looking, one = trail.at(-1);
  for (const button of document.querySelectorAll("#lists .item")) {
    if (button.dataset.item === trail[0].item) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  at("neighbours").hidden = false;
  document.body.classList.add("covered");
  at("neighbours").scrollTop = 0;
  at("neighbours-title").textContent = `Near ${nameOf(one)}`;
  at("trail").hidden = trail.length < 2;
  at("trail").replaceChildren(...trail.slice(0, -1).map((before, place) => element(
    "button", {
      type: "button",
      click: () => {
        trail = trail.slice(0, place + 1);
        look();
        at("neighbours-title").focus();
      },
    }, nameOf(before))));
  at("facts").replaceChildren(...Object.entries({ item: one.item, ...one.attributes }).flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, shown(value))]));
  tell("neighbours-error", "");
  at("neighbours-told").textContent = "Looking for neighbours…";
  at("neighbour-lists").replaceChildren();
  try {
    const answers = await answersTo({ item: one.item, k: NEIGHBOURS }, "similar", signal);
    if (signal.aborted) return;
    at("neighbours-told").textContent = answers.length > 1 ? inCommon(answers) : "";
    at("neighbour-lists").replaceChildren(...lists(answers, about, open, "h3"));
  } catch (error) {
    if (signal.aborted) return;
    at("neighbours-told").textContent = "";
    tell("neighbours-error", error.message);
  }
}

function nameOf(one) {
  const title = about.title === null ? null : one.attributes?.[about.title];
  return title ? String(title) : one.item;
}
