// Curves, the chosen point and measured points as SVG.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 300;
const EDGE = { left: 58, right: 14, top: 12, bottom: 46 };

function node(name, attributes, text) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Values for marks of an axis: powers of ten (or of two) between the ends, at most about `most`.
export function ticks(from, to, base, most) {
  const found = [];
  for (let power = Math.ceil(Math.log(from) / Math.log(base) - 1e-9); base ** power <= to * (1 + 1e-9); power += 1) {
    found.push(base ** power);
  }
  const every = Math.ceil(found.length / most);
  return found.filter((_, index) => index % every === 0);
}

export function linearTicks(to, most) {
  const rough = to / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * unit >= rough) * unit;
  return Array.from({ length: Math.floor(to / step + 1e-9) + 1 }, (_, i) => i * step);
}

// The range of the y axis: all that is drawn, with some air.
function rangeOf(chart, measured) {
  const values = [...chart.lines.flatMap((line) => line.points), ...chart.chosen, ...measured.map((p) => [p.x, p.y])]
    .map(([, y]) => y)
    .filter((y) => y > 0);
  if (chart.y.linear) return [0, Math.max(...values) * 1.12];
  return [Math.min(...values) / 1.4, Math.max(...values) * 1.6];
}

export function draw(chart, measured, width, label) {
  const svg = node("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": label });
  const [low, high] = rangeOf(chart, measured);
  const span = { x: width - EDGE.left - EDGE.right, y: HEIGHT - EDGE.top - EDGE.bottom };
  const x = (value) => EDGE.left + (span.x * Math.log(value / chart.x.from)) / Math.log(chart.x.to / chart.x.from);
  const y = (value) => {
    const part = chart.y.linear ? value / high : Math.log(value / low) / Math.log(high / low);
    return EDGE.top + span.y * (1 - part);
  };
  const bottom = EDGE.top + span.y;
  const marks = chart.y.linear ? linearTicks(high, 5) : ticks(low, high, 10, 6);
  for (const value of marks) {
    svg.append(
      node("line", { class: "calc-grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
      node("text", { class: "calc-mark", x: EDGE.left - 7, y: y(value) + 4, "text-anchor": "end" }, chart.y.shown(value)),
    );
  }
  for (const value of ticks(chart.x.from, chart.x.to, 2, Math.max(3, Math.floor(span.x / 90)))) {
    const near = x(value) > width - 60 ? "end" : "middle";
    svg.append(
      node("line", { class: "calc-grid", x1: x(value), x2: x(value), y1: EDGE.top, y2: bottom }),
      node("text", { class: "calc-mark", x: x(value), y: bottom + 17, "text-anchor": near }, chart.x.shown(value)),
    );
  }
  svg.append(
    node("text", { class: "calc-axis", x: EDGE.left, y: HEIGHT - 6 }, chart.x.label),
    node("text", { class: "calc-axis", x: EDGE.left + 6, y: EDGE.top + 12 }, chart.y.label),
  );
  chart.lines.forEach((line, index) => {
    const path = line.points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    if (path) svg.append(node("path", { class: `calc-line calc-line-${index}`, d: path }));
  });
  for (const point of measured) {
    const mark = node("rect", { class: "calc-measured", x: x(point.x) - 4, y: y(point.y) - 4, width: 8, height: 8 });
    mark.append(node("title", {}, point.label));
    svg.append(mark);
  }
  for (const [a, b] of chart.chosen) {
    if (a >= chart.x.from && a <= chart.x.to) svg.append(node("circle", { class: "calc-chosen", cx: x(a), cy: y(b), r: 6 }));
  }
  return svg;
}

// What the lines and marks mean, below the drawing.
export function legend(chart, measured) {
  const keys = document.createElement("div");
  keys.className = "calc-legend";
  const add = (className, ...content) => {
    const key = document.createElement("span");
    const swatch = document.createElement("span");
    swatch.className = `calc-swatch ${className}`;
    key.append(swatch, ...content);
    keys.append(key);
  };
  chart.lines.forEach((line, index) => {
    if (line.points.length) add(`calc-swatch-${index}`, line.label);
  });
  add("calc-swatch-chosen", "your choice");
  for (const source of new Set(measured.map((point) => point.source))) {
    const link = document.createElement("a");
    link.href = measured.find((point) => point.source === source).href;
    link.textContent = source;
    add("calc-swatch-measured", "measured: ", link);
  }
  return keys;
}
