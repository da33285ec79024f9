// The page: joins search, history and slate, and says what goes wrong.

import { ApiError, get, post } from "./api.js";
import { $, drawn, element, say } from "./dom.js";
import { History } from "./history.js";
import { startSearch } from "./search.js";
import { SlateView } from "./slate.js";

let running = null;
let timer = 0;
let again = () => {};
let most = 100; // titles of a history

const view = new SlateView(async () => {
  const body = { ...request(), explain: true };
  return (await post("/v1/recommend", body, running?.signal)).slates[0];
});
const history = new History(() => soon(120));

function own() {
  return $("candidates").value.split("\n").map((line) => line.trim()).filter(Boolean);
}

function request() {
  const titles = history.items.map((item) => item.title);
  const body = { histories: [titles], k: Number($("k").value) };
  if (own().length) Object.assign(body, { candidates: [own()], new_titles: true });
  return body;
}

function soon(wait) {
  clearTimeout(timer);
  $("results").setAttribute("aria-busy", "true"); // what is shown is no longer the answer
  timer = setTimeout(recommend, wait);
}

async function recommend() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  fieldError(null);
  if (!history.items.length && !own().length) {
    view.ready();
    return view.empty("The titles that fit your history best appear here.");
  }
  view.waiting(Number($("k").value));
  const start = performance.now();
  try {
    const answer = await post("/v1/recommend", { ...request(), details: true }, signal);
    const seconds = (performance.now() - start) / 1000;
    view.show(answer.slates[0], seconds, answer.seconds);
    view.ready();
    banner(null);
    const best = answer.slates[0].items[0];
    if (best) say(`${answer.slates[0].items.length} titles; the first is ${best.title}`);
  } catch (error) {
    if (error.name === "AbortError") return;
    view.ready();
    if (!view.slate) view.empty("No answer yet.");
    failed(error, recommend);
  }
}

function failed(error, retry) {
  if (!(error instanceof ApiError)) throw error;
  again = retry;
  if (error.status === 401) return $("key-dialog").showModal();
  if (error.status === 0 || error.status >= 500) return banner(error.message);
  fieldError(error);
}

function banner(text, waits = false) {
  $("banner").hidden = text === null;
  $("banner").classList.toggle("waits", waits);
  $("retry").hidden = waits;
  $("banner-text").textContent = text ?? "";
}

function fieldError(error) {
  const box = $("field-error");
  box.hidden = error === null;
  box.replaceChildren();
  if (error === null) return;
  box.append(error.message);
  const line = /^candidates\[0\]\[(\d+)\]$/.exec(error.field ?? "");
  if (!line) return;
  const lines = own();
  box.append(element("br"), ...error.nearest.map((title) =>
    element("button", {
      type: "button",
      onclick: () => {
        lines[Number(line[1])] = title;
        $("candidates").value = lines.join("\n");
        soon(0);
      },
    }, title)));
}

async function loadUser(event) {
  event.preventDefault();
  const id = $("user").value.trim();
  if (!id) return $("user").focus();
  try {
    const user = await get(`/v1/users/${encodeURIComponent(id)}`);
    banner(null);
    const newest = user.items.slice(-most);
    history.set(newest);
    say(`${newest.length} titles of user ${id}`);
  } catch (error) {
    failed(error, () => loadUser(event));
  }
}

async function start() {
  try {
    await get("/readyz");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 503) {
      banner(`The server is not ready yet (${error.message}). This page retries by itself.`, true);
      setTimeout(start, 1000);
    } else failed(error, start);
    return;
  }
  try {
    const [info, items, users] = await Promise.all([
      get("/v1/info"), get("/v1/items?count=8"), get("/v1/users?count=50"),
    ]);
    banner(null);
    describe(info);
    $("popular").replaceChildren(...items.items.map((item) =>
      element("button", { type: "button", onclick: () => history.add(item) }, item.title)));
    $("users").replaceChildren(...users.users.map((id) => element("option", { value: id })));
    $("user").placeholder = users.users[0] ?? "id";
  } catch (error) {
    return failed(error, start);
  }
  for (const id of ["query", "user", "candidates", "k"]) $(id).disabled = false;
}

function describe(info) {
  most = info.limits.history;
  const number = new Intl.NumberFormat("en");
  $("run").textContent =
    `${info.model}: ${number.format(info.items)} items of ${info.dataset}, ` +
    `${info.retriever} proposes ${info.candidates}`;
  for (const option of [...$("k").options]) {
    if (Number(option.value) > info.candidates) option.remove();
  }
}

function theme() {
  const dark = () => {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const show = () => {
    const sun = "M9 5.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M9 1v1.5M9 15.5V17M1 9h1.5M15.5 9H17M3.3 3.3l1.1 1.1M13.6 13.6l1.1 1.1M3.3 14.7l1.1-1.1M13.6 4.4l1.1-1.1";
    $("theme").replaceChildren(drawn("", dark() ? sun : "M15 10.8A6.5 6.5 0 1 1 7.2 3a5 5 0 0 0 7.8 7.8Z"));
  };
  $("theme").addEventListener("click", () => {
    const name = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = name;
    localStorage.setItem("theme", name);
    show();
  });
  show();
}

theme();
startSearch((item) => history.add(item), failed);
$("user-form").addEventListener("submit", loadUser);
$("clear").addEventListener("click", () => {
  history.set([]);
  $("query").focus();
});
$("candidates").addEventListener("input", () => soon(500));
$("k").addEventListener("change", () => soon(0));
$("retry").addEventListener("click", () => again());
$("key-dialog").addEventListener("close", () => {
  sessionStorage.setItem("key", $("key").value);
  again();
});
start();
