// The history: a list that is ordered by dragging or with the arrow keys.

import { $, drawn, element, say } from "./dom.js";

export class History {
  constructor(changed) {
    this.items = [];
    this.changed = changed;
    this.list = $("history");
  }

  set(items) {
    this.items = [...items];
    this.show();
    this.changed();
  }

  add(item) {
    this.set([...this.items, item]);
    this.list.scrollTop = this.list.scrollHeight;
    say(`${item.title} was added`);
  }

  remove(number) {
    const [item] = this.items.splice(number, 1);
    this.set(this.items);
    say(`${item.title} was removed`);
    const left = this.list.querySelectorAll(".off");
    (left[Math.min(number, left.length - 1)] ?? $("query")).focus();
  }

  move(from, to) {
    if (to < 0 || to >= this.items.length) return;
    this.items.splice(to, 0, ...this.items.splice(from, 1));
    this.set(this.items);
    this.list.children[to].querySelector(".grip").focus();
    say(`now at position ${to + 1} of ${this.items.length}`);
  }

  show() {
    this.list.replaceChildren(...this.items.map((item, number) => this.row(item, number)));
    const count = this.items.length;
    $("count").textContent = count ? `${count} ${count === 1 ? "title" : "titles"}, oldest first` : "";
    $("clear").hidden = !count;
    $("start").hidden = count > 0;
  }

  row(item, number) {
    const grip = element("button", {
      type: "button",
      class: "grip",
      "aria-label": `Move ${item.title}: arrow keys, or drag`,
      onkeydown: (event) => {
        const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (!step) return;
        event.preventDefault();
        this.move(number, number + step);
      },
    }, drawn("", "M6 4h.01M12 4h.01M6 9h.01M12 9h.01M6 14h.01M12 14h.01"));
    const off = element("button", {
      type: "button",
      class: "off",
      "aria-label": `Remove ${item.title}`,
      onclick: () => this.remove(number),
    }, drawn("", "M4.5 4.5l9 9M13.5 4.5l-9 9"));
    const row = element("li", {}, grip, element("span", { class: "text" }, item.title), off);
    grip.addEventListener("pointerdown", (event) => this.drag(event, row, number));
    return row;
  }

  drag(event, row, from) {
    if (event.button) return;
    event.preventDefault();
    const grip = event.currentTarget;
    grip.setPointerCapture(event.pointerId);
    row.classList.add("dragged");
    const rows = () => [...this.list.children];
    const moved = ({ clientY }) => {
      const others = rows().filter((other) => other !== row);
      const before = others.find((other) => {
        const box = other.getBoundingClientRect();
        return clientY < box.top + box.height / 2;
      });
      if (before ? row.nextSibling !== before : this.list.lastChild !== row) {
        this.list.insertBefore(row, before ?? null);
        grip.setPointerCapture(event.pointerId);
      }
    };
    const done = () => {
      grip.removeEventListener("pointermove", moved);
      row.classList.remove("dragged");
      const to = rows().indexOf(row);
      if (to !== from) this.move(from, to);
    };
    grip.addEventListener("pointermove", moved);
    grip.addEventListener("pointerup", done, { once: true });
    grip.addEventListener("pointercancel", done, { once: true });
  }
}
