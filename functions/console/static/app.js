// Fetches, draws, and says what it cannot: refreshes every few seconds while somebody looks.

import * as api from "./api.js";
import { $, clock, duration, el, say } from "./dom.js";
import { draw, drawDecisions } from "./panels.js";
import { showParameters } from "./parameters.js";

const REFRESH_MS = 5000;
const SILENT_AFTER_MS = 20000;
const THEMES = ["auto", "light", "dark"];

const state = { overview: null, decisions: null, fetchedAt_ms: 0, paused: false, signedOut: false, waitUntil_ms: 0, running: false, timer: 0 };

function banner(id, text) {
  say(id, text);
  $(id).hidden = !text;
}

function drawAll() {
  const o = state.overview;
  if (!o) return;
  say("stack", `stack ${o.stack}`);
  document.title = `${o.stack} - markserve console`;
  options($("model"), o.models.map((m) => [m, m]), o.model ?? "", [["", "none"]]);
  $("model").disabled = !o.models.length;
  options($("scope"), [["", "the whole stack"], ...o.models.map((m) => [m, `model ${m} alone`])], $("scope").value);
  $("empty").hidden = o.model !== null;
  for (const panel of $("panels").children) panel.hidden = o.model === null && !panel.contains($("parameters"));
  if (o.model !== null) draw(o);
  if (state.decisions) drawDecisions(state.decisions, $("log-filter").value);
  $("panels").setAttribute("aria-busy", "false");
}

function options(select, wanted, chosen, otherwise = []) {
  const list = wanted.length ? wanted : otherwise;
  if ([...select.options].map((o) => o.value).join() !== list.map(([value]) => value).join())
    select.replaceChildren(...list.map(([value, text]) => el("option", { value }, text)));
  if (select.value !== chosen && document.activeElement !== select) select.value = chosen;
}

function tellAge() {
  const age_ms = Date.now() - state.fetchedAt_ms;
  const at = state.fetchedAt_ms ? clock(state.fetchedAt_ms / 1000) : "";
  say("updated", !at ? "connecting" : state.paused ? `paused, as of ${at}` : `as of ${at}`);
  const old = state.fetchedAt_ms && !state.paused && age_ms > SILENT_AFTER_MS ? `What you see is ${duration(Math.round(age_ms / 1000))} old.` : "";
  const stale = state.overview?.freshness?.stale ?? [];
  banner("stale", [old, stale.length ? `Out of date in the system itself: ${stale.join("; ")}.` : ""].filter(Boolean).join(" "));
}

// API Gateway itself answers 401 without a key or token and 403 for a wrong one, or for what IAM does not allow.
function askWho(error) {
  state.signedOut = true;
  const known = api.hasKey();
  const why = error.status === 401
    ? known ? "The key or token was not accepted." : "This stack wants an API key or a token."
    : known ? `Not allowed: ${error.message}.`
    : "This stack wants signed requests (ApiAuth=iam), which a page cannot make: run `markserve console --open`. If it takes API keys, enter yours.";
  say("signin-why", why);
  $("signin").hidden = false;
  $("panels").hidden = true;
  banner("error", "");
}

async function refresh(force = false) {
  clearTimeout(state.timer);
  state.timer = setTimeout(refresh, REFRESH_MS);
  if (state.running || (!force && (state.paused || state.signedOut || document.hidden || Date.now() < state.waitUntil_ms))) return tellAge();
  state.running = true;
  try {
    const minutes = $("minutes").value;
    [state.overview, state.decisions] = await Promise.all([api.overview(state.overview ? $("model").value : "", minutes), api.decisions(minutes)]);
    const first = !state.fetchedAt_ms || state.signedOut;
    Object.assign(state, { fetchedAt_ms: Date.now(), signedOut: false });
    $("signin").hidden = true;
    $("panels").hidden = false;
    banner("error", "");
    drawAll();
    if (first) showParameters();
  } catch (error) {
    if (error.status === 401 || error.status === 403) askWho(error);
    else if (error instanceof api.Refused) {
      state.waitUntil_ms = Date.now() + 1000 * error.retryAfter_s;
      banner("error", `No new data: ${error.message}. ${error.retryAfter_s ? `Tried again in ${error.retryAfter_s} s.` : "Tried again in a few seconds."}`);
    } else {
      banner("error", "The page failed to draw what came; reload it. The browser's console has the details.");
      console.error(error);
    }
  } finally {
    state.running = false;
    tellAge();
  }
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem("markserve-theme", theme);
}

$("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("markserve-theme") ?? "auto") + 1) % THEMES.length]));
$("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  $("pause").setAttribute("aria-pressed", String(state.paused));
  refresh();
});
$("model").addEventListener("change", () => refresh(true));
$("minutes").addEventListener("change", () => refresh(true));
$("scope").addEventListener("change", showParameters);
$("log-filter").addEventListener("input", () => state.decisions && drawDecisions(state.decisions, $("log-filter").value));
$("signin-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.keep($("key").value.trim());
  $("key").value = "";
  refresh(true);
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());
let width = 0;
new ResizeObserver(([entry]) => {
  if (Math.abs(entry.contentRect.width - width) < 2) return;
  width = entry.contentRect.width;
  drawAll();
}).observe($("content"));

setTheme(localStorage.getItem("markserve-theme") ?? "auto");
api.takeKeyFromAddress();
refresh(true);
