// Completion of a text field, as a combobox with a list (WAI-ARIA 1.2): arrows choose, Enter takes, Escape closes.

import { element } from "./elements.js";

const PAUSE_MS = 120;

/** Texts that complete an input, found by `find(text, signal)`; `taken` is called once one was picked. */
export function completed(input, find, taken) {
  const list = element("ul", { role: "listbox", id: `${input.id}-list`, "aria-label": "Known values", hidden: true });
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-expanded": "false", "aria-controls": list.id, "aria-autocomplete": "list",
  })) input.setAttribute(name, value);
  let chosen = -1, waiting = 0, asked = new AbortController();

  function close() {
    clearTimeout(waiting);
    asked.abort();
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    choose(-1);
  }

  function choose(place) {
    list.children[chosen]?.setAttribute("aria-selected", "false");
    chosen = place;
    const option = list.children[chosen];
    if (option === undefined) return input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    option.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", option.id);
  }

  function take(text) {
    input.value = text;
    close();
    taken(text);
  }

  async function look() {
    asked.abort();
    asked = new AbortController();
    const { signal } = asked, text = input.value.trim();
    if (text === "") return close();
    let found;
    try {
      found = await find(text, signal);
    } catch {
      return close(); // a completion that fails is no completion; asking tells why
    }
    if (signal.aborted) return;
    choose(-1);
    list.replaceChildren(...found.map((one, place) => {
      const option = element("li", { role: "option", id: `${list.id}-${place}`, "aria-selected": "false" }, one);
      option.addEventListener("mousedown", (event) => {
        event.preventDefault(); // the focus stays in the field
        take(one);
      });
      return option;
    }));
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(found.length > 0));
  }

  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(look, PAUSE_MS);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      if (chosen >= 0) {
        event.preventDefault();
        take(list.children[chosen].textContent);
      } else close();
    } else if (event.key === "Escape") {
      if (!list.hidden) event.preventDefault();
      close();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) return void look();
      const n = list.children.length, step = event.key === "ArrowDown" ? 1 : -1;
      choose(chosen < 0 && step < 0 ? n - 1 : (chosen + step + n) % n);
    }
  });
  return list;
}
