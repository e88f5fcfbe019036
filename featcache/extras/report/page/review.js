"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows;
const KEY = `featcache review ${data.key}`;
const cellOfVerb = { accept: "accept", keep: "keep", drop: "drop" };
const classOfCell = new Map(data.classes.map((one) => [one.cell, one.name]));
const cards = document.getElementById("cards");
const input = document.getElementById("class");
let current = 0; // the row that keys act on
let decisions = {}; // {id of a row: "accept", "keep", "drop", or the cell of a class, encoded}

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    if (kept && typeof kept === "object") decisions = kept;
    localStorage.setItem(KEY, JSON.stringify(decisions)); // so that it shows now if nothing can be kept
  } catch {
    document.getElementById("unkept").hidden = false;
  }
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(decisions));
  } catch {
    document.getElementById("unkept").hidden = false;
  }
}

function decisionOf(row) {
  const decision = decisions[row.id];
  if (decision === "accept" && !row.suggested) return undefined;
  return decision in cellOfVerb || classOfCell.has(decision) ? decision : undefined;
}

function textOf(row) {
  const decision = decisionOf(row);
  if (decision === undefined) return "";
  if (decision === "accept") return `accept: ${row.suggested}`;
  if (decision === "keep") return `keep: ${row.label}`;
  return decision === "drop" ? "drop" : `change: ${classOfCell.get(decision)}`;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function share(value) {
  return value === null ? "" : ` ${value.toFixed(3)}`;
}

function button(text, at, act) {
  const made = element("button", text);
  made.type = "button";
  made.tabIndex = -1; // the card is reached by Tab, and has a key for each
  made.dataset.does = text;
  made.addEventListener("click", () => {
    current = at;
    act();
  });
  return made;
}

function card(row, at) {
  const made = element("li");
  made.dataset.at = at;
  if (row.picture) {
    const image = element("img");
    image.src = row.picture;
    image.alt = "";
    made.append(image);
  } else {
    made.append(element("div", "no picture", "none"));
  }
  const label = element("div", "labelled ");
  label.append(element("b", row.label), share(row.probability));
  made.append(label);
  made.append(element("div", row.suggested ? `rather ${row.suggested}${share(row.ofSuggested)}` : "no suggestion"));
  if (row.same.length) made.append(element("div", `the same photo: ${row.same.join(", ")}`, "note"));
  made.append(element("small", `${row.path}${row.split ? `, ${row.split}` : ""}`));
  made.append(element("div", "", "decision"));
  const buttons = element("div", undefined, "buttons");
  for (const verb of Object.keys(cellOfVerb)) buttons.append(button(verb, at, () => decide(verb)));
  buttons.append(button("change", at, () => input.focus()));
  buttons.firstChild.disabled = !row.suggested;
  made.append(buttons);
  made.addEventListener("focus", () => select(at, false));
  return made;
}

function show(at) {
  const row = rows[at], made = cards.querySelector(`[data-at="${at}"]`), decision = decisionOf(row);
  if (!made) return;
  if (decision === undefined) delete made.dataset.decision;
  else made.dataset.decision = decision in cellOfVerb ? decision : "change";
  const text = textOf(row);
  made.querySelector(".decision").textContent = text;
  made.setAttribute("aria-label", [row.path, `labelled ${row.label}`, text || "no decision"].join(", "));
  for (const one of made.querySelectorAll("button"))
    one.setAttribute("aria-pressed", String(one.dataset.does === made.dataset.decision));
}

function pageOf(at) {
  return Math.floor(at / data.onAPage);
}

function draw() {
  const first = pageOf(current) * data.onAPage, last = Math.min(first + data.onAPage, rows.length);
  cards.replaceChildren(...rows.slice(first, last).map((row, at) => card(row, first + at)));
  for (let at = first; at < last; at++) show(at);
  const pages = Math.max(1, Math.ceil(rows.length / data.onAPage));
  document.getElementById("at").textContent = `page ${pageOf(current) + 1} of ${pages}`;
  document.getElementById("back").disabled = first === 0;
  document.getElementById("on").disabled = last === rows.length;
}

function select(at, focus = true) {
  if (!rows.length) return;
  current = Math.max(0, Math.min(at, rows.length - 1));
  if (!cards.querySelector(`[data-at="${current}"]`)) draw();
  for (const one of cards.children) one.tabIndex = Number(one.dataset.at) === current ? 0 : -1;
  if (focus) cards.querySelector(`[data-at="${current}"]`).focus();
}

function count() {
  const decided = rows.filter((row) => decisionOf(row) !== undefined).length;
  document.getElementById("status").textContent = `${decided} of ${rows.length} decided`;
}

function say(text) {
  document.getElementById("said").textContent = text;
}

function decide(decision) {
  const row = rows[current];
  if (!row) return;
  if (decision === "accept" && !row.suggested) {
    say("There is no suggestion to accept here: keep, change or drop.");
    return;
  }
  if (decision === undefined) delete decisions[row.id];
  else decisions[row.id] = decision;
  keep();
  say("");
  for (const one of cards.children) show(Number(one.dataset.at)); // copies with one label share the decision
  count();
  select(decision === undefined ? current : current + 1);
}

function change(text) {
  const wanted = text.trim().toLowerCase();
  const exact = data.classes.filter((one) => one.name === text.trim());
  const near = data.classes.filter((one) => one.name.toLowerCase().startsWith(wanted));
  const found = exact.length ? exact : near;
  if (!wanted || found.length !== 1) {
    say(wanted && found.length ? `Several classes begin with "${text}".` : `No class is called "${text}".`);
    return;
  }
  input.value = "";
  decide(found[0].cell);
}

function nextUndecided() {
  const order = [...rows.keys()].map((at) => (current + 1 + at) % rows.length);
  const at = order.find((one) => decisionOf(rows[one]) === undefined);
  if (at === undefined) say("All are decided. Save the table.");
  else select(at);
}

function bytesOf(encoded) {
  return Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
}

function save() {
  const parts = [bytesOf(data.header)];
  for (const row of rows) {
    const decision = decisionOf(row);
    parts.push(bytesOf(row.line));
    if (decision !== undefined) parts.push(decision in cellOfVerb ? cellOfVerb[decision] : bytesOf(decision));
    parts.push("\n");
  }
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: "text/csv" }));
  link.download = data.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`Saved as ${data.file}, where your browser puts downloads.`);
}

function columns() {
  return getComputedStyle(cards).gridTemplateColumns.split(" ").length;
}

const acts = {
  a: () => decide("accept"),
  k: () => decide("keep"),
  d: () => decide("drop"),
  u: () => decide(undefined),
  c: () => input.focus(),
  n: nextUndecided,
  s: save,
  ArrowRight: () => select(current + 1),
  ArrowLeft: () => select(current - 1),
  ArrowDown: () => select(current + columns()),
  ArrowUp: () => select(current - columns()),
  PageDown: () => turn(1),
  PageUp: () => turn(-1),
};

function turn(by) {
  const at = (pageOf(current) + by) * data.onAPage;
  if (at >= 0 && at < rows.length) select(at);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === input) {
    if (event.key === "Escape") select(current);
    return;
  }
  const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
document.getElementById("change").addEventListener("submit", (event) => {
  event.preventDefault();
  change(input.value);
});
document.getElementById("save").addEventListener("click", save);
document.getElementById("back").addEventListener("click", () => turn(-1));
document.getElementById("on").addEventListener("click", () => turn(1));

for (const one of data.classes) {
  const option = element("option");
  option.value = one.name;
  document.getElementById("classes").append(option);
}
load();
draw();
count();
select(0, false);
