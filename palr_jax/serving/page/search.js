// The search field: a combobox whose list comes from the server.

import { get } from "./api.js";
import { $, element } from "./dom.js";

export function startSearch(pick, fail) {
  const input = $("query");
  const list = $("found");
  let items = [];
  let active = -1;
  let running = null;
  let timer = 0;

  function show() {
    list.replaceChildren(
      ...items.map((item, number) =>
        element("li", {
          role: "option",
          id: `found-${number}`,
          "aria-selected": String(number === active),
          onpointerdown: (event) => event.preventDefault(),
          onclick: () => choose(number),
        }, item.title, element("small", {}, item.categories.join(" · ")))),
    );
    if (!items.length) {
      list.append(element("li", { class: "none", role: "option", "aria-disabled": "true" }, "No title is like this."));
    }
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    if (active >= 0) {
      input.setAttribute("aria-activedescendant", `found-${active}`);
      list.children[active].scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function hide() {
    list.hidden = true;
    list.replaceChildren();
    items = [];
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function choose(number) {
    const item = items[number];
    input.value = "";
    hide();
    pick(item);
    input.focus();
  }

  // Who presses Enter before the list is there gets the first of it.
  async function ask(first = false) {
    clearTimeout(timer);
    running?.abort();
    running = new AbortController();
    const query = input.value.trim();
    if (!query) return hide();
    try {
      const found = await get(`/v1/items?count=12&query=${encodeURIComponent(query)}`, running.signal);
      items = found.items;
      active = items.length ? 0 : -1;
      if (first && items.length) choose(0);
      else show();
    } catch (error) {
      if (error.name !== "AbortError") fail(error, ask);
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    items = [];
    timer = setTimeout(ask, 90);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (event.key === "Enter" && !items.length) return ask(true);
    if (list.hidden || !items.length) return;
    if (event.key === "ArrowDown") active = (active + 1) % items.length;
    else if (event.key === "ArrowUp") active = (active + items.length - 1) % items.length;
    else if (event.key === "Enter") {
      event.preventDefault();
      return choose(Math.max(active, 0));
    } else return;
    event.preventDefault();
    show();
  });
  input.addEventListener("blur", hide);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    input.focus();
  });
}
