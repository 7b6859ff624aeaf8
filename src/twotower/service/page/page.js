// The page: which view is shown, and what all of them need to know.

import { begin as beginAnswers } from "./answers.js";
import { show as showBundle } from "./bundle.js";
import { at, number, tell } from "./elements.js";
import { start as startLive, stop as stopLive } from "./live.js";
import { get, hasToken, useToken } from "./service.js";

const VIEWS = ["answers", "live", "bundle"];

function showView() {
  const asked = new URLSearchParams(location.search).get("view");
  const view = VIEWS.includes(asked) ? asked : "answers";
  for (const name of VIEWS) at(name).hidden = name !== view;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = view === "answers" ? "twotower" : `${at(`${view}-title`).textContent} – twotower`;
  if (view === "live") startLive();
  else stopLive();
}

function tellServed(about) {
  const names = about.bundles.map((one) => (one.arm === null ? one.name : `${one.arm} (${one.name})`));
  at("served").textContent = `${names.join(" and ")}, ${number(about.items)} items`;
}

let before = "";

async function begin() {
  tell("start", "Looking at what is served…");
  at("start").classList.remove("error");
  let about, document_;
  try {
    [about, document_] = await Promise.all([get("about"), get("openapi.json")]);
  } catch (error) {
    at("start").classList.add("error");
    tell("start", error.message);
    return;
  }
  tell("start", "");
  at("token").hidden = true;
  tellServed(about);
  showBundle(about);
  showView();
  beginAnswers(about, document_.components.schemas.Query.properties);
}

for (const link of document.querySelectorAll("[data-view]")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const view = link.dataset.view;
    if (view !== "answers" && !location.search.includes("view=")) before = location.search;
    history.pushState(null, "", view === "answers" ? before || location.pathname : `?view=${view}`);
    showView();
  });
}
addEventListener("popstate", showView);

addEventListener("token wanted", (event) => {
  at("token").hidden = false;
  tell("token-refused", hasToken() ? event.detail : "");
  at("token-text").select();
});
at("token").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(at("token-text").value.trim());
  begin();
});

begin();
