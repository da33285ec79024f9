// Tables of class "sortable" get a button in each column title: the first press sorts, the second
// reverses, the third restores the order of the file. Without this script they are plain tables.
"use strict";

const said = document.getElementById("said");

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function compare(one, two, sign) {
  if (one === "" || two === "") return (one === "") - (two === ""); // empty cells stay last
  const isNumber = typeof one === "number" && typeof two === "number";
  return sign * (isNumber ? one - two : String(one).localeCompare(String(two)));
}

function sort(table, rows, head, column) {
  const isText = rows.every((row) => typeof valueOf(row, column) === "string");
  const directions = isText ? ["ascending", "descending"] : ["descending", "ascending"];
  const next = directions[directions.indexOf(head.getAttribute("aria-sort")) + 1];
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  const sorted = [...rows];
  if (next) {
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    sorted.sort((one, two) => compare(valueOf(one, column), valueOf(two, column), sign));
  }
  table.tBodies[0].append(...sorted);
  said.textContent = next ? `sorted by ${head.textContent.trim()}, ${next}` : "original order";
}

for (const table of document.querySelectorAll("table.sortable")) {
  const rows = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, rows, head, column));
    head.append(button);
  });
}
