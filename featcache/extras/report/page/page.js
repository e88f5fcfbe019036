"use strict";

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = text === "" ? NaN : Number(text);
  return Number.isNaN(number) ? text : number;
}

function compare(a, b, up) {
  const numbers = [a, b].map((one) => typeof one === "number");
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1; // what has no number stands last either way
  return (up ? 1 : -1) * (numbers[0] ? a - b : a.localeCompare(b));
}

function sortBy(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const rows = Array.from(table.tBodies[0].rows);
  const first = valueOf(rows[0], column);
  const before = header.getAttribute("aria-sort");
  const up = before ? before === "descending" : typeof first !== "number";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), up));
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("table.sortable th button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));

const filter = document.getElementById("filter");
if (filter) {
  const rows = Array.from(document.querySelectorAll("#leaderboard tbody tr"));
  const shown = document.getElementById("shown");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      count += row.hidden ? 0 : 1;
    }
    shown.textContent = `${count} of ${rows.length} trials`;
  };
  filter.addEventListener("input", apply);
  apply();
}

function drawMap(data) {
  const svg = document.getElementById("points"), tip = document.getElementById("tip");
  const legend = document.getElementById("legend"), sheet = document.getElementById("sheet");
  const select = document.getElementById("colour");
  const circles = data.points.map((point, at) => {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("cx", 20 + 960 * point.x);
    circle.setAttribute("cy", 680 - 660 * point.y);
    circle.setAttribute("r", data.points.length > 600 ? 5 : 7);
    circle.addEventListener("pointerenter", () => show(at));
    circle.addEventListener("click", () => show(at));
    svg.append(circle);
    return circle;
  });
  const across = data.points.map((_, at) => at).sort((a, b) => data.points[a].x - data.points[b].x);
  let current = -1;

  function lines(point) {
    const said = point.predicted ? `predicted ${point.predicted}` : "";
    return [point.class, said, point.split, point.path].filter(Boolean);
  }

  function show(at) {
    if (current >= 0) circles[current].classList.remove("at");
    current = at;
    circles[at].classList.add("at");
    tip.replaceChildren();
    if (sheet) {
      const thumb = document.createElement("div");
      const columns = Number(sheet.dataset.columns), side = 96;
      thumb.className = "thumb";
      thumb.style.backgroundImage = `url(${sheet.src})`;
      thumb.style.backgroundSize = `${columns * side}px auto`;
      thumb.style.backgroundPosition = `${-side * (at % columns)}px ${-side * Math.floor(at / columns)}px`;
      tip.append(thumb);
    }
    for (const text of lines(data.points[at])) {
      const line = document.createElement("div");
      line.textContent = text;
      tip.append(line);
    }
    tip.hidden = false;
    const frame = svg.getBoundingClientRect(), point = data.points[at];
    const x = frame.width * (0.02 + 0.96 * point.x), y = frame.height * (0.97 - 0.94 * point.y);
    const left = x + tip.offsetWidth + 14 > frame.width ? x - tip.offsetWidth - 14 : x + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.max(0, Math.min(y, frame.height - tip.offsetHeight))}px`;
  }

  function hide() {
    tip.hidden = true;
    if (current >= 0) circles[current].classList.remove("at");
  }

  function step(by) {
    const at = current < 0 ? (by > 0 ? -1 : 0) : across.indexOf(current);
    show(across[(at + by + across.length) % across.length]);
  }

  function colour() {
    const key = select.value, colours = data.colours[key];
    data.points.forEach((point, at) => {
      circles[at].setAttribute("fill", colours[point[key]]);
      circles[at].classList.remove("faded");
    });
    const there = new Set(data.points.map((point) => point[key]));
    legend.replaceChildren(...Object.keys(colours).filter((name) => there.has(name)).map((name) => entry(key, name, colours[name])));
  }

  function entry(key, name, colour) {
    const button = document.createElement("button"), dot = document.createElement("i");
    dot.style.background = colour;
    button.append(dot, name);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "false";
      for (const other of legend.children) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      data.points.forEach((point, at) => circles[at].classList.toggle("faded", on && point[key] !== name));
    });
    return button;
  }

  select.addEventListener("change", colour);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  colour();
}

// On a narrow screen sections begin folded, but for the first; a link opens the one that it leads to.
const sections = Array.from(document.querySelectorAll("main > section > details"));
if (window.matchMedia("(max-width: 480px)").matches)
  for (const section of sections.slice(1)) section.open = false;

function openTarget() {
  const section = location.hash ? document.getElementById(location.hash.slice(1)) : null;
  if (section?.firstElementChild?.tagName === "DETAILS") section.firstElementChild.open = true;
  section?.scrollIntoView();
}

window.addEventListener("hashchange", openTarget);
openTarget();
for (const link of document.querySelectorAll("nav a")) // also where the address names the section already
  link.addEventListener("click", () => link.hash === location.hash && openTarget());

let folded = [];
window.addEventListener("beforeprint", () => {
  folded = sections.filter((section) => !section.open);
  for (const section of folded) section.open = true;
});
window.addEventListener("afterprint", () => {
  for (const section of folded) section.open = false;
});

// What is saved is read on white paper, so its text is dark whatever the page is.
function saveSvg(svg, title) {
  const copy = svg.cloneNode(true), box = svg.viewBox.baseVal;
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", box.width);
  copy.setAttribute("height", box.height);
  copy.setAttribute("style", "color: #1c2430");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
  const words = `${document.title.split(":")[0]} ${title}`.match(/[\p{L}\p{N}.=]+/gu) ?? ["figure"];
  link.download = `${words.join("-").slice(0, 80).replace(/[.-]+$/, "")}.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function addSaving(svg, place, title) {
  const button = document.createElement("button");
  button.className = "save";
  button.textContent = "Save as SVG";
  button.addEventListener("click", () => saveSvg(svg, title));
  place.append(" ", button);
}

for (const figure of document.querySelectorAll("figure")) {
  const caption = figure.querySelector("figcaption");
  addSaving(figure.querySelector("svg"), caption, caption.textContent);
}
const mapSvg = document.getElementById("points");
if (mapSvg) addSaving(mapSvg, document.querySelector("#map .tools"), "map of the features");

const mapData = document.getElementById("map-data");
if (mapData) drawMap(JSON.parse(mapData.textContent));
