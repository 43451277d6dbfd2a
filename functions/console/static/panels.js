// What each panel says of an overview. Every chart has its sentence and its table.

import { columns, costChart, latencyChart, loadChart, nothing, ticks } from "./charts.js";
import { $, attained, clock, duration, el, fixed, percent, say, table, usd } from "./dom.js";

const WAYS = { markserve: "markserve (as it runs)", lambda: "Lambda alone", sagemaker: "SageMaker endpoint" };
const rate = (value) => (value === null || value === undefined ? "-" : `${fixed(value)}/s`);
const ago = (now, at) => (at === null || at === undefined ? "-" : now - at < 1 ? "just now" : `${duration(Math.round(now - at))} ago`);

export function draw(o) {
  tiles(o);
  load(o);
  attainment(o);
  latency(o);
  tiers(o);
  cost(o);
  fleet(o);
}

function tile(title, value, note, kind) {
  return el("div", { class: `tile ${kind ?? ""}` }, el("h2", {}, title), el("strong", {}, value), el("p", {}, note));
}

function tiles({ service: s, load: l, cost: c }) {
  const met = s.attainment === null ? "" : s.attainment >= s.sl_min ? "good" : "bad";
  const verdict = s.attainment === null ? "no requests" : met === "good" ? "objective met" : "objective missed";
  const known = l.arrivals.filter((p) => p.rate_rps !== null).slice(-3);
  const now = known.length ? known.reduce((sum, p) => sum + p.rate_rps, 0) / known.length : null;
  const capacity = l.capacity.at(-1).capacity_rps;
  const [ours, ...others] = c.ways;
  const cheapest = others.toSorted((a, b) => a.total_usd_per_hour - b.total_usd_per_hour)[0];
  const answered = s.by_tier.worker + s.by_tier.lambda;
  $("tiles").replaceChildren(
    tile("In time", attained(s.attainment), `${verdict}: ${percent(s.sl_min, 2)} within ${duration(s.rt_max_s)}`, met),
    tile("Error budget burns", `${fixed(s.burn_rate_long, 2)} x`, s.at_risk ? "objective at risk" : `${fixed(s.burn_rate_short, 2)} x just now; 1 x just meets it`, s.at_risk ? "bad" : ""),
    tile("Arriving", rate(now), `capacity of workers ${rate(capacity)}`, ""),
    tile("Costs", `${usd(ours.total_usd_per_hour)}/h`, `${usd(ours.usd_per_million)} per million` + (cheapest ? `; ${WAYS[cheapest.name]} ${usd(cheapest.total_usd_per_hour)}/h` : ""), ""),
    tile("Answered by Lambda", percent(answered ? s.by_tier.lambda / answered : null), `of ${answered}; ${s.by_tier.rejected} rejected`, ""),
  );
}

function load({ load: l, since_s, until_s, at_s }) {
  const f = l.forecast;
  say("band-name", f ? `forecast, quantile ${f.quantiles[0]} to ${f.quantiles[2]}` : "forecast");
  const peak = Math.max(0, ...l.arrivals.map((p) => p.rate_rps ?? 0));
  const unknown = l.arrivals.filter((p) => p.rate_rps === null).length;
  const said = `At most ${rate(peak)} arrived; workers can take ${rate(l.capacity.at(-1).capacity_rps)} now. ` +
    (f ? `Forecast by ${f.forecaster} (${f.reason}), made ${ago(at_s, f.origin_at_s)}.` : "No forecast yet.") +
    (unknown ? ` ${unknown} of ${l.arrivals.length} windows are not known, which is not zero.` : "");
  say("load-said", said);
  if (!l.arrivals.some((p) => p.rate_rps !== null) && !l.band.length) nothing("load-chart", "Nothing arrived, and nothing is forecast yet.");
  else loadChart("load-chart", `Arrival rate against forecast and capacity. ${said}`, l, since_s, until_s);
  const bandAt = (at) => l.band.find((b) => b.at_s <= at && at < b.until_s);
  const capacityAt = (at) => l.capacity.findLast((p) => p.at_s <= at)?.capacity_rps;
  table("load-table", "Load by window, newest first",
    [{ title: "Window from", head: true, nowrap: true }, { title: "Arrivals", number: true }, { title: "Forecast", number: true }, { title: "Capacity", number: true }],
    l.arrivals.toReversed().slice(0, 240).map((p) => {
      const b = bandAt(p.at_s);
      return [clock(p.at_s), p.rate_rps === null ? "not known" : rate(p.rate_rps), b ? `${fixed(b.low_rps)} to ${fixed(b.high_rps)}/s` : "-", rate(capacityAt(p.at_s))];
    }), "No windows yet.");
}

const total = (p) => p.by_worker + p.by_lambda + p.rejected;
const share = (p) => p.within_slo / Math.max(1, total(p));

function attainment(o) {
  const s = o.service;
  const said = s.requests
    ? `${attained(s.attainment)} of ${s.requests} requests within ${duration(s.rt_max_s)}; the objective is ${percent(s.sl_min, 2)}. Judged by the controller: ${s.reason}.`
    : "No requests in this interval.";
  say("slo-said", said);
  if (!s.points.length) nothing("slo-chart", "No requests in this interval.");
  else {
    const worst = Math.min(...s.points.map(share));
    // What matters is the distance from the objective: the axis begins near it, so these are strokes, not columns.
    const from = worst >= 0.9 ? 0.9 : worst >= 0.5 ? 0.5 : 0;
    columns("slo-chart", `Share of requests in time. ${said}`, s.points, o.since_s, o.until_s, o.service.point_s, {
      parts: [{ name: (p) => (share(p) >= s.sl_min ? "worker" : "over"), value: share }],
      most: 1, text: (v) => percent(v, 1).replace(".0", ""),
      line: { at: s.sl_min, label: `objective ${percent(s.sl_min, 1)}`, from, ticks: ticks(1 - from).map((t) => from + t) },
    });
  }
  table("slo-table", "Attainment by step, newest first",
    [{ title: "From", head: true, nowrap: true }, { title: "Requests", number: true }, { title: "In time", number: true }, { title: "Share", number: true }],
    s.points.toReversed().map((p) => [clock(p.at_s), String(total(p)), String(p.within_slo), attained(share(p))]), "No requests.");
}

function latency({ service: s }) {
  const said = s.latency.length
    ? `Median ${duration(s.p50_s)}, p98 ${duration(s.p98_s)}, p99 ${duration(s.p99_s)}; RT_max is ${duration(s.rt_max_s)}. Seen from the front, bars 16 % wide.`
    : "No answers in this interval.";
  say("latency-said", said);
  if (s.latency.length) latencyChart("latency-chart", `Latency histogram. ${said}`, s.latency, s.rt_max_s);
  else nothing("latency-chart", "No answers in this interval.");
  const all = s.latency.reduce((sum, b) => sum + b.count, 0);
  let seen = 0;
  table("latency-table", "Latency distribution", [{ title: "Up to", head: true, nowrap: true }, { title: "Requests", number: true }, { title: "Cumulated", number: true }],
    s.latency.map((b) => [duration(b.upper_s), String(b.count), percent((seen += b.count) / all)]), "No answers.");
}

function tiers(o) {
  const s = o.service;
  const of = (count) => `${count} (${percent(s.requests ? count / s.requests : null)})`;
  const said = `Workers ${of(s.by_tier.worker)}, Lambda ${of(s.by_tier.lambda)}, rejected ${of(s.by_tier.rejected)}.`;
  say("tier-said", s.requests ? said : "No requests in this interval.");
  if (!s.points.length) nothing("tier-chart", "No requests in this interval.");
  else
    columns("tier-chart", `Requests by who answered. ${said}`, s.points, o.since_s, o.until_s, o.service.point_s, {
      parts: [
        { name: () => "worker", value: (p) => p.by_worker },
        { name: () => "lambda", value: (p) => p.by_lambda },
        { name: () => "rejected", value: (p) => p.rejected },
      ],
      most: 1.05 * Math.max(...s.points.map(total)), text: (v) => String(Number(fixed(v))),
    });
  table("tier-table", "Requests by who answered, newest first",
    [{ title: "From", head: true, nowrap: true }, { title: "Workers", number: true }, { title: "Lambda", number: true }, { title: "Rejected", number: true }],
    s.points.toReversed().map((p) => [clock(p.at_s), String(p.by_worker), String(p.by_lambda), String(p.rejected)]), "No requests.");
}

function cost({ cost: c, until_s }) {
  const [ours] = c.ways;
  say("cost-said", `On this load, averaged over the last ${Math.round((until_s - c.since_s) / 60)} minutes, at list prices. ` +
    `The fleet that lives now costs ${usd(c.fleet_usd_per_hour)}/h of at most ${usd(c.max_hourly_cost_usd)}/h.`);
  const parts = (way) =>
    way.name === "markserve"
      ? [{ name: "worker", value: c.workers_usd_per_hour }, { name: "lambda", value: c.lambda_usd_per_hour }, { name: "plumbing", value: c.plumbing_usd_per_hour }]
      : [{ name: way.name === "lambda" ? "lambda" : "endpoint", value: way.compute_usd_per_hour }, { name: "plumbing", value: way.plumbing_usd_per_hour }];
  costChart("cost-chart", `Cost per hour: ${c.ways.map((w) => `${WAYS[w.name]} ${usd(w.total_usd_per_hour)}`).join(", ")}`,
    c.ways.map((way) => ({ title: WAYS[way.name], parts: parts(way), least: way.least_usd_per_hour, text: `${usd(way.total_usd_per_hour)}/h` })));
  const against = (way) => (!ours.total_usd_per_hour ? "-" : `${fixed(way.total_usd_per_hour / ours.total_usd_per_hour, 2)} x`);
  table("cost-table", "Cost by way of serving",
    [{ title: "Way", head: true }, { title: "Compute/h", number: true }, { title: "Plumbing/h", number: true }, { title: "Total/h", number: true }, { title: "Per million", number: true }, { title: "Against ours", number: true }],
    c.ways.map((w) => [WAYS[w.name], usd(w.compute_usd_per_hour), usd(w.plumbing_usd_per_hour), usd(w.total_usd_per_hour), usd(w.usd_per_million), against(w)]), "No costs.");
  const kinds = Object.entries(c.plumbing_by_kind_usd_per_hour).filter(([, v]) => v > 0).sort((a, b) => b[1] - a[1]);
  $("cost-basis").replaceChildren(
    ...c.ways.map((w) => el("li", {}, `${WAYS[w.name]}: ${w.basis}.`, w.least_usd_per_hour === null ? "" : ` At the very least ${usd(w.least_usd_per_hour)}/h (the upright stroke).`)),
    ...c.missing.map((text) => el("li", {}, text)),
    el("li", {}, `Per million here: workers ${usd(c.workers_usd_per_million)}, Lambda ${usd(c.lambda_usd_per_million)}, plumbing ${usd(c.plumbing_usd_per_million)}.`),
    el("li", {}, `Plumbing by kind, an hour: ${kinds.map(([kind, v]) => `${kind.replaceAll("_", " ")} ${usd(v)}`).join(", ")}.`),
  );
}

function fleet({ fleet: members, at_s }) {
  const count = {};
  for (const m of members) count[m.state] = (count[m.state] ?? 0) + 1;
  say("fleet-said", members.length ? Object.entries(count).map(([state, n]) => `${n} ${state}`).join(", ") + "; ended ones stay for a quarter of an hour." : "");
  const live = (m) => !["terminated", "failed"].includes(m.state);
  table("fleet-table", "Instances",
    [{ title: "Instance", head: true, nowrap: true }, { title: "State" }, { title: "Offering" }, { title: "Price/h", number: true }, { title: "Capacity", number: true }, { title: "Answers", number: true }, { title: "Heard of", nowrap: true }, { title: "Why", why: true }],
    members.toSorted((a, b) => live(b) - live(a) || b.requested_at_s - a.requested_at_s).map((m) => [
      m.instance_id,
      el("span", {}, el("span", { class: `state ${m.state}` }, m.state), ` ${ago(at_s, m.since_s)}`),
      m.offering, usd(m.price_usd_per_hour), rate(m.capacity_rps),
      m.mean_batch_size === null ? String(m.completed) : `${m.completed} in batches of ${fixed(m.mean_batch_size, 2)}`,
      live(m) ? ago(at_s, m.heartbeat_at_s) : "-",
      m.end_reason ? `ended: ${m.end_reason}; launched: ${m.reason}` : m.reason,
    ]), "No instances: Lambda answers everything, or nothing arrives.");
}

const ACTIONS = { launch_instances: "launch", drain_instance: "drain", terminate_instance: "terminate", warm_spillover: "warm Lambda" };

export function drawDecisions(d, filter) {
  const p = d.plan;
  const inOrder = (values) => Object.entries(values).map(([model, value]) => `${model} ${rate(value)}`).join(", ");
  say("plan-said", p
    ? `Plan ${p.plan_id} (${p.trigger}), ${ago(d.at_s, p.created_at_s)}: ${p.reason}. Demand ${inOrder(p.demand_rps)}; capacity ${inOrder(p.capacity_rps)}; ${usd(p.hourly_cost_usd)}/h.`
    : "Nothing was planned yet; a plan comes with the first control cycle.");
  table("plan-actions", "Actions of the latest plan", [{ title: "Action", head: true, nowrap: true }, { title: "Model" }, { title: "What" }, { title: "Why", why: true }],
    (p?.actions ?? []).map((a) => [ACTIONS[a.action] ?? a.action, a.model, a.offering ? `${a.count} x ${a.offering.instance_type}/${a.offering.capacity_type}/${a.offering.zone}` : a.instance_id ?? `${a.environments} environments`, a.reason]),
    p ? "It changes nothing." : "No plan yet.");
  say("rejected-title", `What was considered and rejected (${p?.alternatives.length ?? 0})`);
  table("plan-rejected", "Rejected alternatives", [{ title: "Offering", head: true }, { title: "Would cost", number: true }, { title: "Why not", why: true }],
    (p?.alternatives ?? []).map((a) => [a.offering, a.cost_usd === null ? "-" : usd(a.cost_usd), a.reason]), "Nothing else was considered.");
  const wanted = filter.trim().toLowerCase();
  const rows = d.decisions.filter((r) => !wanted || `${r.event} ${r.subject} ${r.model} ${r.reason}`.toLowerCase().includes(wanted));
  table("log-table", "Decision log, newest first", [{ title: "At", head: true, nowrap: true }, { title: "What" }, { title: "About" }, { title: "Why", why: true }],
    rows.map((r) => [clock(r.at_s), r.event.replaceAll("_", " "), r.subject, r.reason]), wanted ? "Nothing in the log matches." : "Nothing was decided in this interval.");
}
