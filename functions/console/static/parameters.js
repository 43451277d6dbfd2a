// The parameters: seen as they are in force, changed one at a time. The server validates; the page only says early what it would say.

import * as api from "./api.js";
import { $, el, fixed } from "./dom.js";

const plain = (value) => (typeof value === "boolean" ? String(value) : String(value));

function bounds(p) {
  if (p.kind === "boolean") return "true or false";
  return `${p.kind === "integer" ? "whole, " : ""}${plain(p.lowest)} to ${plain(p.highest)}`;
}

function complaint(p, text) {
  if (p.kind === "boolean") return "";
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value)) return `${p.name}: not a number`;
  if (p.kind === "integer" && !Number.isInteger(value)) return `${p.name}: not a whole number`;
  if (value < p.lowest || value > p.highest) return `${p.name}: outside ${plain(p.lowest)} to ${plain(p.highest)}`;
  return "";
}

function told(text, good) {
  const node = $("parameter-said");
  node.textContent = text;
  node.className = `said ${good ? "good-text" : "bad-text"}`;
}

function row(p, scope, reload) {
  const id = `p-${p.name}`;
  const field = p.kind === "boolean"
    ? el("select", { id, "aria-describedby": `${id}-doc` }, ["true", "false"].map((v) => el("option", { value: v, selected: v === plain(p.value) }, v)))
    : el("input", { id, type: "text", inputmode: p.kind === "integer" ? "numeric" : "decimal", value: plain(p.value), "aria-describedby": `${id}-doc`, autocomplete: "off" });
  const button = el("button", { type: "submit", disabled: true, "aria-label": `Set ${p.name}` }, "Set");
  const form = el("form", { novalidate: true }, field, button);
  field.addEventListener("input", () => {
    const wrong = complaint(p, field.value);
    field.setAttribute("aria-invalid", wrong ? "true" : "false");
    field.title = wrong;
    button.disabled = field.value.trim() === plain(p.value);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    try {
      const changed = await api.setParameter(p.name, { value: field.value, model: scope || null, expected: p.value });
      told(`${p.name} was ${plain(changed.old)}, is ${plain(changed.new)}; set by ${changed.by}.`, true);
      await reload();
      $(id)?.focus();
    } catch (error) {
      told(`Not set: ${error.message}`, false);
      button.disabled = false;
      field.focus();
    }
  });
  return el("tr", {},
    el("th", { scope: "row", "data-label": "Parameter" }, el("label", { for: id }, p.name)),
    el("td", { "data-label": "Value" }, form),
    el("td", { "data-label": "Allowed", class: "nowrap" }, el("span", {}, bounds(p))),
    el("td", { "data-label": "Default" }, el("span", {}, plain(p.default), p.overridden ? " (this model's own value)" : "")),
    el("td", { "data-label": "Meaning", class: "why", id: `${id}-doc` }, el("span", {}, p.doc)));
}

export async function showParameters() {
  const scope = $("scope").value;
  try {
    const answer = await api.parameters(scope);
    $("in-force").textContent = fixed(answer.in_force_within_s, 2);
    const head = el("tr", {}, ["Parameter", "Value", "Allowed", "Default", "Meaning"].map((title) => el("th", { scope: "col" }, title)));
    $("parameters").replaceChildren(
      el("table", { class: "cards", "aria-label": "Operator parameters" }, el("thead", {}, head), el("tbody", {}, answer.parameters.map((p) => row(p, scope, showParameters)))));
  } catch (error) {
    told(`Parameters cannot be read: ${error.message}`, false);
  }
}
