// A click on a column's head sorts its table by it. Each trial or setting is one tbody, so its details move with it.
for (const table of document.querySelectorAll("table")) table.tHead?.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head) return;
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (body) => body.rows[0].cells[head.cellIndex].dataset.value;
  const order = (a, b) => {
    if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === ""); // unmeasured trials last
    const difference = isNaN(value(a)) || isNaN(value(b)) ? value(a).localeCompare(value(b)) : value(a) - value(b);
    return rising ? difference : -difference;
  };
  table.append(...[...table.tBodies].sort(order));
});

// Pictures. A <figure data-x data-y> holds JSON, [[name, points], …]; data-x and data-y are the keys of a point's coordinates.
// With data-dots all series but the first are dots; with data-all no point is cut off. A time is a text such as 2026-07-01T03:00:00.
const HEIGHT = 240, LEFT = 64, BOTTOM = 40, TOP = 8, RIGHT = 8;
const COLOURS = { baseline: "var(--faint)", recipe: "var(--ink)", candidate: "var(--cand)", keep: "var(--keep)",
                  reject: "var(--reject)", undecided: "var(--undecided)" };

function element(parent, name, attributes, text) {
  const child = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  if (text !== undefined) child.textContent = text;
  return parent.appendChild(child);
}

// Round numbers between two limits, about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  return found;
}

function timeTicks(low, high, count) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440].map((minutes) => 60000 * minutes);
  const step = steps.find((size) => size >= (high - low) / count) ?? 86400000 * Math.ceil((high - low) / count / 86400000);
  const zone = new Date(low).getTimezoneOffset() * 60000;
  const found = [];
  for (let t = Math.ceil((low - zone) / step) * step + zone; t <= high; t += step) found.push(t);
  return found;
}

function draw(figure, svg, series) {
  const { x, y, xlabel, ylabel } = figure.dataset;
  const isTime = typeof series[0][1][0][x] === "string";
  const lines = series.map(([name, points]) => [name, points.map((point) =>
    [isTime ? Date.parse(point[x].slice(0, 19)) : point[x], point[y]])]);
  const all = lines.flatMap(([, points]) => points);
  const values = all.map((point) => point[1]).sort((a, b) => a - b);
  const places = all.map((point) => point[0]);
  const width = Math.max(svg.clientWidth, 240);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  // The first fall and a few hopeless trials must not flatten the rest.
  const shown = "all" in figure.dataset ? 1 : 0.9;
  const spread = values[Math.floor(shown * (values.length - 1))] - values[0] || 0.02;
  const hasDots = "dots" in figure.dataset;
  const low = values[0] - 0.1 * spread, high = values[0] + (hasDots ? 2 : 1.2) * spread;
  const edge = isTime ? 0.05 : 0, span = Math.max(...places) - Math.min(...places) || (isTime ? 600000 : 1);
  const from = Math.min(...places) - edge * span, to = Math.max(...places) + edge * span || 1;
  const toX = (value) => LEFT + (value - from) / (to - from) * (width - LEFT - RIGHT);
  const toY = (value) => TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);
  for (const value of ticks(low, high, 5)) {
    element(svg, "path", { class: "grid", d: `M${LEFT} ${toY(value)}H${width - RIGHT}` });
    const digits = Math.max(0, 1 - Math.floor(Math.log10(high - low)));
    element(svg, "text", { x: LEFT - 6, y: toY(value) + 4, "text-anchor": "end" }, value.toFixed(digits));
  }
  const count = Math.max(2, Math.floor(width / 110));
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const clock = new Intl.DateTimeFormat("en-GB", to - from > 172800000 ? { dateStyle: "medium" } : { timeStyle: "short" });
  for (const value of isTime ? timeTicks(from, to, count) : ticks(from, to, count)) {
    element(svg, "path", { class: "grid", d: `M${toX(value)} ${TOP}V${HEIGHT - BOTTOM}` });
    const text = isTime ? clock.format(value) : value >= 1e15 ? value.toExponential(0) : short.format(value);
    element(svg, "text", { x: toX(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, text);
  }
  const label = isTime ? `time, from ${new Date(from).toLocaleString("en-GB")}` : xlabel ?? x;
  element(svg, "text", { x: (LEFT + width) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, label);
  element(svg, "text", { x: 12, y: HEIGHT / 2 - 16, "text-anchor": "middle", transform: `rotate(-90 12 ${HEIGHT / 2 - 16})` }, ylabel ?? y);
  const inside = element(svg, "svg", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM,
                                       viewBox: `${LEFT} ${TOP} ${width - LEFT - RIGHT} ${HEIGHT - TOP - BOTTOM}` });
  lines.forEach(([name, points], index) => {
    const colour = COLOURS[name.split(" ")[0]] ?? `hsl(${(210 + 137 * index) % 360} 65% 50%)`;
    const isLine = !hasDots || index === 0;
    const path = points.map((point) => `${toX(point[0]).toFixed(1)},${toY(point[1]).toFixed(1)}`);
    if (isLine) element(inside, "polyline", { points: path.join(" "), stroke: colour });
    if (!isLine || points.length < 30) for (const [px, py] of points)
      element(inside, "circle", { cx: toX(px), cy: toY(Math.min(py, high)), r: isLine ? 2 : 4, fill: colour });
    series[index].colour = colour;
  });
}

for (const figure of document.querySelectorAll("figure[data-x]")) {
  let series;
  // The log of a candidate may hold anything: what is no JSON has no picture.
  try { series = JSON.parse(figure.querySelector("script").textContent); } catch { continue; }
  if (!series.some(([, points]) => points.length)) continue;
  const svg = element(figure, "svg", { role: "img", "aria-label": `${figure.dataset.ylabel ?? figure.dataset.y}` });
  draw(figure, svg, series);
  const legend = figure.appendChild(document.createElement("figcaption"));
  const counts = (points) => "dots" in figure.dataset ? ` (${points.length})` : "";
  const names = new Map(series.map((item) => [item[0] + counts(item[1]), item.colour]));
  for (const [name, colour] of names) {
    const entry = legend.appendChild(document.createElement("span"));
    entry.textContent = `● ${name}  `;
    entry.style.color = colour;
  }
  new ResizeObserver(() => draw(figure, svg, series)).observe(svg);
}
