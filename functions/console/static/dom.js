// Elements and numbers as text. Data becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const $ = (id) => document.getElementById(id);
export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// Replaces a text only when it differs, so that a screen reader is not told the same again.
export function say(id, text) {
  const node = $(id);
  if (node.textContent !== text) node.textContent = text;
}

// columns: [{title, number?, why?, head?}], rows: arrays of text or nodes. As cards on a narrow screen.
export function table(id, caption, columns, rows, nothing) {
  const node = $(id);
  if (!rows.length) {
    node.replaceChildren(el("p", { class: "quiet" }, nothing));
    return;
  }
  const { scrollTop, scrollLeft } = node;
  const kind = (column) => (column.number ? "number" : column.why ? "why" : column.nowrap ? "nowrap" : null);
  const head = el("tr", {}, columns.map((c) => el("th", { scope: "col", class: kind(c) }, c.title)));
  const body = rows.map((row) =>
    el("tr", {}, row.map((cell, i) => {
      const attributes = { class: kind(columns[i]), "data-label": columns[i].title };
      return columns[i].head ? el("th", { ...attributes, scope: "row" }, cell) : el("td", attributes, el("span", {}, cell ?? "-"));
    })));
  node.replaceChildren(el("table", { class: "cards", "aria-label": caption }, el("thead", {}, head), el("tbody", {}, body)));
  node.scrollTop = scrollTop;
  node.scrollLeft = scrollLeft;
}

export function fixed(value, digits = 3) {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "0";
  const magnitude = Math.floor(Math.log10(Math.abs(value)));
  return value.toFixed(Math.min(8, Math.max(0, digits - 1 - magnitude)));
}

export const usd = (value) => (value === null || value === undefined ? "-" : `$${fixed(value)}`);
export const percent = (share, digits = 1) => (share === null || share === undefined ? "-" : `${(100 * share).toFixed(digits)} %`);
// An attainment is never shown better than it is.
export const attained = (share) => (share === null || share === undefined ? "-" : `${(Math.floor(share * 10000) / 100).toFixed(2)} %`);
export const duration = (s) =>
  s === null || s === undefined ? "-" : s < 1 ? `${fixed(1000 * s)} ms` : s < 120 ? `${fixed(s)} s` : s < 7200 ? `${Math.round(s / 60)} min` : `${fixed(s / 3600)} h`;
export const clock = (at_s) => new Date(1000 * at_s).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
