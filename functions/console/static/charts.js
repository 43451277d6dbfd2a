// Small charts in SVG, drawn at the width they are shown with so that text keeps its size.

import { $, clock, duration, fixed, svg, el } from "./dom.js";

const MARGIN = { top: 14, right: 14, bottom: 24, left: 54 };

function frame(id, label, height) {
  const node = $(id);
  const width = Math.max(240, Math.floor(node.clientWidth));
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  node.replaceChildren(root);
  return { root, width, height, right: width - MARGIN.right, bottom: height - MARGIN.bottom };
}

export function nothing(id, text) {
  $(id).replaceChildren(el("div", { class: "empty-chart" }, text));
}

// Round steps that divide [0, most] into three to six parts.
export function ticks(most) {
  const raw = most / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, i) => i * step);
}

function verticalAxis(f, y, values, text) {
  for (const value of values) {
    f.root.append(
      svg("line", { class: "grid", x1: MARGIN.left, x2: f.right, y1: y(value), y2: y(value) }),
      svg("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)),
    );
  }
}

function timeAxis(f, x, since, until) {
  f.root.append(svg("line", { class: "axis", x1: MARGIN.left, x2: f.right, y1: f.bottom, y2: f.bottom }));
  const step = [30, 60, 120, 300, 600, 900, 1800].find((s) => ((until - since) / s) * 76 < f.right - MARGIN.left) ?? 3600;
  for (let at = Math.ceil(since / step) * step; at <= until; at += step) {
    const anchor = x(at) > f.right - 22 ? "end" : "middle";
    f.root.append(svg("text", { x: x(at), y: f.bottom + 17, "text-anchor": anchor }, clock(at).slice(0, step < 60 ? 8 : 5)));
  }
}

const scale = (from, to, start, end) => (value) => start + ((value - from) / (to - from || 1)) * (end - start);
const path = (points) => points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");

export function loadChart(id, label, load, since, until) {
  const end = Math.max(until, ...load.band.map((b) => b.until_s));
  const highest = Math.max(1e-9, ...load.arrivals.map((p) => p.rate_rps ?? 0), ...load.band.map((b) => b.high_rps), ...load.plans.map((p) => p.demand_rps));
  const capacity = Math.max(0, ...load.capacity.map((p) => p.capacity_rps));
  // Far more capacity than load would press the load flat: it is then cut off, and named.
  const most = 1.08 * Math.min(Math.max(highest, capacity), Math.max(4 * highest, 1));
  const f = frame(id, label, 270);
  const x = scale(since, end, MARGIN.left, f.right);
  const y = scale(0, most, f.bottom, MARGIN.top);
  const clamped = (value) => y(Math.min(value, most));
  verticalAxis(f, y, ticks(most), (v) => String(Number(fixed(v))));
  for (const b of load.band) {
    const [left, right] = [x(Math.max(since, b.at_s)), x(b.until_s)];
    const edge = Math.max(1, y(b.low_rps) - y(b.high_rps));
    f.root.append(svg("rect", { class: "band", x: left, width: Math.max(0, right - left + 0.4), y: y(b.high_rps), height: edge }));
  }
  const middle = load.band.flatMap((b) => [[x(Math.max(since, b.at_s)), y(b.middle_rps)], [x(b.until_s), y(b.middle_rps)]]);
  f.root.append(svg("path", { class: "middle", d: path(middle) }));
  const steps = load.capacity.flatMap((p, i) => (i ? [[x(p.at_s), clamped(load.capacity[i - 1].capacity_rps)], [x(p.at_s), clamped(p.capacity_rps)]] : [[x(p.at_s), clamped(p.capacity_rps)]]));
  f.root.append(svg("path", { class: "capacity", d: path(steps) }));
  if (capacity > most) f.root.append(svg("text", { class: "mark", x: f.right, y: MARGIN.top + 16, "text-anchor": "end" }, `capacity up to ${fixed(capacity)}/s, beyond the chart`));
  let run = [];
  const runs = [run];
  for (const p of load.arrivals) {
    if (p.rate_rps === null) runs.push((run = []));
    else run.push([x(p.at_s + load.window_s / 2), y(p.rate_rps)]);
  }
  for (const part of runs) if (part.length) f.root.append(svg("path", { class: "arrivals", d: path(part) }));
  const every = Math.ceil(load.plans.length / 40);
  load.plans.filter((_, i) => i % every === 0).forEach((p) => f.root.append(svg("circle", { class: "demand", r: 3, cx: x(p.at_s), cy: clamped(p.demand_rps) })));
  f.root.append(
    svg("line", { class: "now", x1: x(until), x2: x(until), y1: MARGIN.top, y2: f.bottom }),
    svg("text", { x: MARGIN.left, y: 10 }, "requests/s"),
  );
  if (end > until) f.root.append(svg("text", { x: x(until) - 4, y: 10, "text-anchor": "end" }, "now"));
  timeAxis(f, x, since, end);
}

// Columns of counts over time, parts from below; with a line, one stroke per step at its height. parts: [{name(point), value(point)}]
export function columns(id, label, points, since, until, width_s, { parts, most, text, line }) {
  const f = frame(id, label, 190);
  const x = scale(since, until, MARGIN.left, f.right);
  const y = scale(line?.from ?? 0, most, f.bottom, MARGIN.top + (line ? 4 : 0));
  verticalAxis(f, y, line?.ticks ?? ticks(most), text);
  for (const point of points) {
    let base = 0;
    const left = Math.max(MARGIN.left, x(point.at_s));
    const width = Math.max(1, Math.min(f.right, x(point.at_s + width_s)) - left - 1);
    for (const part of parts) {
      const value = part.value(point);
      const [top, height] = line ? [y(value) - 3, 6] : [y(base + value), Math.max(0.5, y(base) - y(base + value))];
      if (value > 0 || line) f.root.append(svg("rect", { class: part.name(point), x: left, width, y: top, height }));
      base += value;
    }
  }
  if (line) {
    f.root.append(svg("line", { class: "objective", x1: MARGIN.left, x2: f.right, y1: y(line.at), y2: y(line.at) }));
    f.root.append(svg("text", { class: "mark", x: f.right, y: y(line.at) + 17, "text-anchor": "end" }, line.label));
  }
  timeAxis(f, x, since, until);
}

export function latencyChart(id, label, bars, rtMax) {
  const f = frame(id, label, 190);
  const ratio = bars.length > 1 ? bars[1].upper_s / bars[0].upper_s : 1.16;
  const log = Math.log;
  const low = Math.min(bars[0].upper_s / ratio, rtMax / 1.5);
  const high = Math.max(bars.at(-1).upper_s, rtMax * 1.3);
  const x = (s) => scale(log(low), log(high), MARGIN.left, f.right)(log(s));
  const most = Math.max(...bars.map((b) => b.count)) * 1.1;
  const y = scale(0, most, f.bottom, MARGIN.top);
  verticalAxis(f, y, ticks(most).filter(Number.isInteger), (v) => String(v));
  for (const bar of bars) {
    if (!bar.count) continue;
    const [left, right] = [x(bar.upper_s / ratio), x(bar.upper_s)];
    // The bar that straddles RT_max is drawn as within: attainment itself is counted exactly.
    const late = bar.upper_s / ratio >= rtMax;
    f.root.append(svg("rect", { class: late ? "over" : "worker", x: left, width: Math.max(1, right - left - 1), y: y(bar.count), height: f.bottom - y(bar.count) }));
  }
  f.root.append(svg("line", { class: "axis", x1: MARGIN.left, x2: f.right, y1: f.bottom, y2: f.bottom }));
  f.root.append(svg("line", { class: "objective", x1: x(rtMax), x2: x(rtMax), y1: MARGIN.top, y2: f.bottom }));
  const anchor = x(rtMax) > f.width / 2 ? "end" : "start";
  f.root.append(svg("text", { class: "mark", x: x(rtMax) + (anchor === "end" ? -5 : 5), y: MARGIN.top + 9, "text-anchor": anchor }, `RT_max ${duration(rtMax)}`));
  let last = -99;
  for (let power = -4; power < 3; power += 1) {
    for (const m of [1, 2, 5]) {
      const at = m * 10 ** power;
      if (at < low || at > high || x(at) - last < 52 || x(at) > f.right - 14) continue;
      f.root.append(svg("text", { x: x(at), y: f.bottom + 17, "text-anchor": "middle" }, duration(at).replace(/\.0+ /, " ")));
      last = x(at);
    }
  }
}

// ways: [{title, parts: [{name, value}], least, text}]
export function costChart(id, label, ways) {
  const f = frame(id, label, 20 + 46 * ways.length);
  const most = Math.max(1e-12, ...ways.map((w) => w.parts.reduce((sum, p) => sum + p.value, 0)));
  const x = scale(0, most, 4, f.width - 100);
  ways.forEach((way, i) => {
    const top = 6 + 46 * i;
    let base = 0;
    f.root.append(svg("text", { x: 4, y: top + 10 }, way.title));
    for (const part of way.parts) {
      if (part.value > 0) f.root.append(svg("rect", { class: part.name, x: x(base), width: Math.max(1, x(base + part.value) - x(base)), y: top + 15, height: 18 }));
      base += part.value;
    }
    if (way.least !== null && way.least < base) f.root.append(svg("line", { class: "least", x1: x(way.least), x2: x(way.least), y1: top + 12, y2: top + 36 }));
    f.root.append(svg("text", { class: "mark", x: x(base) + 6, y: top + 29 }, way.text));
  });
}
