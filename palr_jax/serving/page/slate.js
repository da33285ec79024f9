// The answer: the retriever's order, the slate beside it, what moved and why.

import { $, bar, element } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";

export class SlateView {
  constructor(explain) {
    this.explain = explain; // () → promise of the same slate with explanations
    this.slate = null;
    this.why = null;
    new ResizeObserver(() => this.link()).observe($("both"));
  }

  empty(text) {
    this.slate = null;
    $("empty-text").textContent = text;
    $("empty").hidden = false;
    for (const id of ["both", "profile", "prompt-box"]) $(id).hidden = true;
    $("time").textContent = "";
  }

  waiting(count) {
    $("results").setAttribute("aria-busy", "true");
    if (this.slate) return;
    $("empty").hidden = true;
    $("both").hidden = false;
    for (const id of ["slate", "proposals"]) {
      $(id).className = "skeleton";
      $(id).replaceChildren(...Array.from({ length: count }, () => element("li")));
    }
    $("links").replaceChildren();
  }

  ready() {
    $("results").setAttribute("aria-busy", "false");
  }

  show(slate, seconds, serverSeconds) {
    this.slate = slate;
    this.why = null;
    const { items, details } = slate;
    if (!items.length) return this.empty("Nothing is left to recommend: every item is in the history.");
    const isOwn = !details.retriever;
    $("empty").hidden = true;
    $("both").hidden = false;
    $("both").classList.toggle("own", isOwn);
    $("slate-head").textContent = isOwn ? "Your candidates, ranked" : "The ranker answers";
    $("profile").hidden = !details.profile;
    $("profile").textContent = details.profile;
    $("prompt-box").hidden = false;
    $("prompt").textContent = details.prompt;
    $("time").textContent = `${ms(seconds)} (server ${ms(serverSeconds)})`;
    const most = Math.max(...items.map((item) => item.score));
    $("slate").className = "";
    $("slate").replaceChildren(...items.map((item) => this.row(item, most)));
    const inSlate = new Set(items.map((item) => item.item_id));
    $("proposals").className = "";
    $("proposals").replaceChildren(
      ...(details.retriever ?? []).slice(0, items.length).map((item, number) =>
        element("li", {
          "data-id": item.item_id,
          class: inSlate.has(item.item_id) ? "" : "left",
          title: inSlate.has(item.item_id) ? null : `not among the ${items.length}`,
        }, element("span", { class: "place" }, String(number + 1)), element("span", { class: "clip" }, item.title))),
    );
    const below = items.filter((item) => item.retriever_rank > items.length);
    if (below.length) {
      const last = Math.max(...below.map((item) => item.retriever_rank));
      $("proposals").append(element("li", { class: "below" },
        element("span", { class: "place" }, "…"),
        element("span", {}, `${below.length} from further down, to number ${last}`)));
    }
    this.link();
  }

  row(item, most) {
    const head = element("button", {
      type: "button",
      class: "head",
      "aria-expanded": "false",
      onclick: () => this.toggle(item, row, head),
    },
      element("span", { class: "place" }, String(item.rank)),
      element("span", { class: "name clip" }, item.title),
      moved(item),
      bar(item.score / most),
      element("span", { class: "percent" }, percent(item.score)));
    const row = element("li", { "data-id": item.item_id }, head);
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]]) {
      row.addEventListener(event, () => this.heat(item.item_id, on));
    }
    return row;
  }

  heat(id, on) {
    for (const list of [$("slate"), $("proposals"), $("links")]) {
      for (const one of list.children) {
        if (one.dataset.id === id) one.classList.toggle("hot", on);
      }
    }
  }

  async toggle(item, row, head) {
    const open = row.querySelector(".why");
    if (open) {
      open.remove();
      head.setAttribute("aria-expanded", "false");
      return;
    }
    head.setAttribute("aria-expanded", "true");
    const box = element("div", { class: "why", role: "region", "aria-label": `Why ${item.title}` },
      element("span", { class: "quiet" }, "Asking the model without each part of the prompt …"));
    row.append(box);
    const slate = this.slate;
    try {
      this.why ??= this.explain();
      const explained = await this.why;
      if (this.slate !== slate) return;
      const found = explained.items.find((one) => one.item_id === item.item_id);
      box.replaceChildren(...reasons(item, found.explanation));
    } catch (error) {
      this.why = null;
      if (error.name === "AbortError") return;
      box.replaceChildren(element("span", { role: "alert" }, error.message));
    }
  }

  link() {
    const svg = $("links");
    svg.replaceChildren();
    if (!this.slate?.details?.retriever || !svg.getClientRects().length) return;
    const top = svg.getBoundingClientRect().top;
    const width = svg.clientWidth;
    const middle = (row) => {
      const box = (row.querySelector(".head") ?? row).getBoundingClientRect();
      return box.top + box.height / 2 - top;
    };
    const left = new Map([...$("proposals").children].map((row) => [row.dataset.id, row]));
    const last = $("proposals").lastElementChild;
    for (const row of $("slate").children) {
      const item = this.slate.items.find((one) => one.item_id === row.dataset.id);
      const from = left.get(item.item_id);
      const y0 = middle(from ?? last);
      const y1 = middle(row);
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M3 ${y0}C${width / 2} ${y0} ${width / 2} ${y1} ${width - 3} ${y1}`);
      path.setAttribute("class", `${direction(item)}${from ? "" : " from-below"}`);
      path.dataset.id = item.item_id;
      svg.append(path);
    }
  }
}

function direction(item) {
  if (item.retriever_rank > item.rank) return "up";
  return item.retriever_rank < item.rank ? "down" : "same";
}

function moved(item) {
  if (item.item_id.startsWith("new-") && item.retriever_rank === null) {
    return element("span", { class: "move new" }, "unseen");
  }
  if (item.retriever_rank === null) return element("span");
  const by = item.retriever_rank - item.rank;
  const sign = by > 0 ? "▲" : by < 0 ? "▼" : "=";
  const told = `the retriever's number ${item.retriever_rank}`;
  return element("span", { class: `move ${direction(item)}`, title: told },
    element("span", { "aria-hidden": "true" }, by ? `${sign} ${Math.abs(by)}` : sign),
    element("span", { class: "visually-hidden" }, told));
}

function reasons(item, why) {
  const parts = why.items.map((one) => ({ text: one.title, lift: one.lift }));
  if (why.profile) parts.push({ text: `“${why.profile}”`, lift: why.profile_lift });
  const most = Math.max(0.05, ...parts.map((part) => Math.abs(part.lift)));
  const from = item.retriever_rank === null ? "" : `The retriever had it at ${item.retriever_rank}. `;
  const intro = why.items.length
    ? "Its log-probability falls by so much without these parts of the prompt:"
    : "No title of the history raises it.";
  return [
    element("span", { class: "quiet" }, from + intro),
    ...parts.map((part) =>
      element("div", { class: part.lift < 0 ? "reason against" : "reason" },
        element("span", {}, part.text),
        bar(Math.abs(part.lift) / most),
        element("span", { class: "lift" }, `${part.lift < 0 ? "−" : "+"}${Math.abs(part.lift).toFixed(2)}`))),
  ];
}

function percent(score) {
  const value = score * 100;
  return `${value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : "< 0.1"} %`;
}

function ms(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}
